// Exit codes (DESIGN 9): one table, every program.
#pragma once

#include "base/status.h"

namespace kvd::cli {

enum ExitCode : int {
  kExitOk = 0,            // done, passed
  kExitCheckFailed = 1,   // ran, but a check or threshold failed
  kExitUsage = 2,         // usage or configuration; model or file unreadable; address in use
  kExitNoProvider = 3,    // no provider, device or permission
  kExitUnreachable = 4,   // peer unreachable, or a deadline passed
  kExitIncompatible = 5,  // peer incompatible
  kExitCorrupted = 6,     // data corrupted
  kExitPartial = 7,       // transfer or request failed, results are partial
};
int exit_code(const Status& status);

}  // namespace kvd::cli
