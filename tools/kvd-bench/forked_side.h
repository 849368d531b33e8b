// The sending side as a process of our own, joined by a mailbox.
#pragma once

#include <memory>

#include "kvd-bench/far_side.h"
#include "kvd-bench/pages_options.h"

namespace kvd::tools {

// Forks: the process must have no other thread. `isolated` as run_forked_sender.
Result<std::unique_ptr<FarSide>> fork_sender(const PagesPlan& plan, const std::string& provider,
                                             bool isolated);

}  // namespace kvd::tools
