// Addresses that other hosts can reach need a guard: keys on the control channel, an API key on
// HTTP, or
// --insecure. One place for every daemon. Any thread.
#pragma once

#include "base/status.h"
#include "node/options.h"

namespace kvd::node {

// kInvalidArgument: an address that cannot be read, or that nothing guards. `binds_control`:
// --listen is bound at all. Without an HTTP address only the control channel counts.
Status check_exposure(const CommonOptions& options, bool binds_control = true);

}  // namespace kvd::node
