// `kvd-probe serve`: the far side of `ping` and of `kvd-bench pages --peer`, and one end of each
// pair of a `mesh`. It holds no KV: pages of a benchmark have patterns in them.
//
// Threads: the event loop, and one for the pair that a mesh has it dial.
#pragma once

#include <memory>
#include <string>

#include "node/worker.h"

namespace kvd::tools {

struct ServeOptions {
  node::CommonOptions common;
  std::string provider, device, fabric_addr;
  bool require_rdma = false;
};

// Errors: kInvalidArgument (address, keys), kNoProvider.
Result<std::unique_ptr<node::Daemon>> start_serve(const ServeOptions& options);
// Where clients reach it: of no use before it is there.
std::string client_command(const ServeOptions& options, const std::string& control);

}  // namespace kvd::tools
