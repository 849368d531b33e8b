// Scripts that make a shell complete a program's verbs, options and values, from the option table.
#pragma once

#include <string>
#include <vector>

#include "cli/option.h"

namespace kvd::cli {

enum class Shell { kBash, kZsh, kFish };

struct CompletedCommand {
  std::string name;  // empty: the program has no subcommands
  std::string summary;
  std::vector<Option> options;  // all of them, the standard ones too
};

// A script to be sourced (bash, fish), or put into a folder of $fpath as _PROGRAM (zsh). Hidden
// options are left out. Values: those of Option::words, files where the metavar is FILE, folders
// where it is DIR.
std::string completion_script(Shell shell, const std::string& program,
                              const std::vector<CompletedCommand>& commands);

}  // namespace kvd::cli
