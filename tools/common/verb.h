// A verb of a program that has several: main.cc lists them, each lives in a pair of files of its
// own.
#pragma once

#include <functional>

#include "cli/program.h"

namespace kvd::tools {

struct Verb {
  cli::Command command;                            // its rows point into what `run` holds
  std::function<int(const cli::Invocation&)> run;  // returns the exit code
};

}  // namespace kvd::tools
