// A running kvd-prefill, kvd-decode or kvd-route: threads and wiring. start() returns when the
// daemon is ready to take work; run() until it has drained.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "base/status.h"
#include "node/options.h"

namespace kvd::node {

class Daemon {
 public:
  virtual ~Daemon() = default;
  // The ready line's JSON object, without newline.
  virtual std::string ready_line() const = 0;
  // Blocks until drained or killed. `signals` counts SIGINT/SIGTERM: 1 drains, 2 ends at once.
  virtual Status run(const std::atomic<int>& signals) = 0;
};

// Errors: kInvalidArgument (model, address, options), kNoProvider.
Result<std::unique_ptr<Daemon>> start_prefill(const WorkerOptions& options);
Result<std::unique_ptr<Daemon>> start_decode(const WorkerOptions& options);
Result<std::unique_ptr<Daemon>> start_route(const RouteOptions& options);

}  // namespace kvd::node
