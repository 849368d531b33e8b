// Telling a supervisor that a daemon is ready to take work.
#pragma once

#include <string>

#include "base/status.h"

namespace kvd::cli {

// Writes `line` and a newline to stdout, then to file descriptor `ready_fd` (which is closed; -1:
// none), then READY=1 to the socket that NOTIFY_SOCKET names (systemd's sd_notify protocol).
// Nothing is sent anywhere before. A supervisor that went away is no error. Errors:
// kInvalidArgument when `ready_fd` is not open for writing.
Status announce_ready(const std::string& line, int ready_fd);
// kInvalidArgument unless `ready_fd` is -1 or open for writing: to be asked before the model is
// loaded.
Status check_ready_fd(int ready_fd);

}  // namespace kvd::cli
