// The option table of kvd-prefill and kvd-decode, and their main.
#pragma once

#include "cli/program.h"
#include "node/options.h"
#include "node/worker.h"

namespace kvd::tools {

struct WorkerProgram {
  const char* name;     // "kvd-decode"
  const char* summary;  // lower case, no final stop
  const char* http;     // default addresses
  const char* listen;
  bool decode;
  const char* examples;
  Result<std::unique_ptr<node::Daemon>> (*start)(const node::WorkerOptions&);
};

int worker_main(const WorkerProgram& worker, int argc, const char* const* argv);

}  // namespace kvd::tools
