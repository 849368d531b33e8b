// The sending side as a session of a `kvd-probe serve`.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kvd-bench/far_side.h"
#include "kvd-bench/pages_options.h"
#include "peer/meet.h"

namespace kvd::tools {

// Waits for the peer of the options and finds out what it is. Errors as meet(); kIncompatible: no
// kvd-probe serve.
Result<MetPeer> meet_serve(const PagesOptions& options, const Clock* clock);

// `peer` and `clock` must outlive it.
std::unique_ptr<FarSide> peer_sender(const PagesPlan& plan, const std::string& provider,
                                     bool isolated, const MetPeer* peer, const Clock* clock);

}  // namespace kvd::tools
