// What both ends of a link share: the sequence rule, the layout on the wire, the host's boot id.
#pragma once

#include <cstdint>
#include <string>

#include "kv/layout.h"
#include "proto/link_messages.h"

namespace kvd::transfer {

// The sequence numbers of one link in one epoch, both directions (DESIGN 5: a repeat is dropped, a
// gap ends the epoch; a refused message still counts as received).
class LinkSequence {
 public:
  enum class Arrival { kNext, kRepeat, kGap };
  std::uint64_t next_out() const { return out_ + 1; }
  void sent() { ++out_; }
  Arrival arrived(std::uint64_t seq) {
    if (seq <= in_) return Arrival::kRepeat;
    if (seq != in_ + 1) return Arrival::kGap;
    ++in_;
    return Arrival::kNext;
  }

 private:
  std::uint64_t out_ = 0, in_ = 0;
};

proto::LayoutInfo to_info(const kv::KvLayout& layout);
// What differs, "" when KV can move between the two: fields of the layout, model fingerprint.
// "here" is the first one.
std::string compare_models(const kv::KvLayout& here, const std::string& fingerprint_here,
                           const proto::LayoutInfo& there, const std::string& fingerprint_there);

// First 64 bits of this host's boot id, 0 when unknown: equal on both ends means one
// CLOCK_MONOTONIC.
std::uint64_t boot_id();

}  // namespace kvd::transfer
