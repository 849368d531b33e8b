// How kvd-prefill, kvd-decode and `kvd-route serve` start, tell that they are ready, and end.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/status.h"
#include "cli/program.h"
#include "node/worker.h"

namespace kvd::tools {

// Starts the daemon, prints its ready line, runs it until it has drained; returns the exit code.
using Start = std::function<Result<std::unique_ptr<node::Daemon>>()>;
int run_daemon(const std::string& program, const cli::Invocation& invocation,
               const node::CommonOptions& options, const Start& start);

// The rows that each daemon has. `dead_after` also sets `more_dead_after` where that is not null.
void add_daemon_options(cli::OptionTable* table, node::CommonOptions* options,
                        Duration* more_dead_after);
void add_security_options(cli::OptionTable* table, node::CommonOptions* options);

}  // namespace kvd::tools
