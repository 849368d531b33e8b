// SIGINT and SIGTERM are counted: one drains, the second ends at once (node::Daemon::run). A third
// ends the process without asking. SIGPIPE is ignored, so that a broken pipe is an error of the
// write.
#pragma once

#include <atomic>

namespace kvd::cli {

// Installs the handlers, once per process, before threads start. The counter lives for ever.
const std::atomic<int>& count_signals();
// Readable from the first counted signal on, for poll(); -1 (which poll ignores) before
// count_signals().
int signal_fd();

}  // namespace kvd::cli
