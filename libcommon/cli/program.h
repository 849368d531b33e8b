// A program and its subcommands, and the one way from argv to filled fields.
//
// Every program has --help, --help-all, --version, --json, --config FILE, --print-config,
// --log-level and
// --log-format; they need not be declared. Where a value comes from, first one wins: flag,
// environment (KVD_NAME), --config file, default. Single-threaded: call before threads start.
#pragma once

#include <functional>
#include <iosfwd>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/status.h"
#include "cli/option.h"

namespace kvd::cli {

struct Positional {
  std::string metavar;  // "WORKER"; "RESULT..." of `rest`
  std::string help;
  std::string* field = nullptr;  // one word
  bool optional = false;         // as are those behind it
  // In place of `field`, of the last one: this word and all behind it.
  std::vector<std::string>* rest = nullptr;
};

struct Command {
  std::string name;     // "serve"; empty: the program has no subcommands
  std::string summary;  // lower case, no final stop
  std::vector<Positional> positionals;
  OptionTable options;
  std::string examples;                  // lines of a shell
  LogLevel log_level = LogLevel::kInfo;  // the default of --log-level
};

struct Program {
  std::string name;     // "kvd-route"
  std::string summary;  // lower case, no final stop
  std::vector<Command> commands;
  // More fields for --version --json: name and value.
  std::vector<std::pair<std::string, std::string>> version_fields;
};

// One of the process's variables; nothing when it is not set.
using Environment = std::function<std::optional<std::string>(const std::string& name)>;
Environment process_environment();
// Those of the process's variables whose names begin with one of `prefixes`.
std::map<std::string, std::string> environment_with(const std::vector<std::string>& prefixes);

// What parse() decided, besides the fields it filled.
struct Invocation {
  std::optional<int> exit;  // set: end now with this code, everything is said
  std::size_t command = 0;  // index into Program::commands
  bool json = false;
  LogLevel log_level = LogLevel::kInfo;
  LogFormat log_format = LogFormat::kText;
};

// `out` and `err` are the program's stdout and stderr.
Invocation parse(const Program& program, const std::vector<std::string>& arguments,
                 const Environment& environment, std::ostream& out, std::ostream& err);
// The usual way: argv, the process's environment, stdout and stderr. Also configures the log.
Invocation parse(const Program& program, int argc, const char* const* argv);

// The text of --help (brief) and --help-all. `command` null: of a program with subcommands, its
// list.
std::string help_text(const Program& program, const Command* command,
                      const std::vector<Option>& options, bool all);
// The line under a usage error: "see kvd-route generate --help".
std::string help_pointer(const Program& program, const Command* command);

}  // namespace kvd::cli
