// The sending process that `kvd-bench pages` starts itself.
#pragma once

#include "kvd-bench/pages_mailbox.h"
#include "kvd-bench/pages_options.h"

namespace kvd::tools {

// Serves until the order to exit, or until the other process has gone. Returns the exit code; why
// it failed is in the mailbox. `isolated`: the record waits for the delivery of its pages, as on a
// provider that keeps no order.
int run_forked_sender(const PagesPlan& plan, const std::string& provider, bool isolated,
                      MailboxPair* mailbox);

}  // namespace kvd::tools
