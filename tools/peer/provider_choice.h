// Which provider carries a measurement between this host and a peer.
//
// Any thread; looks for providers, which takes some milliseconds.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "proto/link_messages.h"

namespace kvd::tools {

struct ProviderWish {
  std::string provider;  // --provider, empty: the best that both have
  std::string device;    // --device
  std::string source;    // address of this host
  bool require_rdma = false;
};
struct ProviderChoice {
  std::string name, why;
  std::vector<std::string> ours, theirs;
  bool rdma = false;  // `name` is
};
// kIncompatible, kNoProvider: nothing that both have.
Result<ProviderChoice> choose_between(const ProviderWish& wish, const proto::Described& peer);

// "verbs;ofi_rxm" for "verbs", as most people call it.
std::string full_provider_name(const std::string& provider);
// kInvalidArgument: no such provider, with the nearest. Nothing is looked for, and "" is right.
Status check_provider_name(const std::string& provider);

// Of this host alone. kInvalidArgument: no such provider, with the nearest; kNoProvider: not here,
// with the remedy.
Status check_provider(const ProviderWish& wish);

}  // namespace kvd::tools
