// A verb of kvd-bench: main.cc lists them, each lives in a pair of files of its own.
#pragma once

#include <functional>

#include "cli/program.h"

namespace kvd::tools {

constexpr const char* kBenchProgram = "kvd-bench";

struct Verb {
  cli::Command command;                            // its rows point into what `run` holds
  std::function<int(const cli::Invocation&)> run;  // returns the exit code
};

}  // namespace kvd::tools
