// The ceiling: plain writes over the same fabric interface, provider, pools and wait mode, with
// nothing of a KV transfer: no room, no lease, no record. The last write of a round asks for
// delivery-complete and signals the target, so that the round ends when its bytes have landed.
//
// Calling thread: that of the endpoint's loop.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "base/status.h"
#include "fabric/fabric.h"
#include "kvd-bench/pages_mailbox.h"

namespace kvd::tools {

constexpr std::size_t kMostPieces = 16;

// The side that writes.
class PlainWriter {
 public:
  // `source` must stay, and be registered with the domain where that is needed.
  PlainWriter(fabric::Domain* domain, const std::byte* source, std::uint64_t source_bytes,
              const Clock* clock);
  Status connect(const fabric::FabricAddress& target, const fabric::RemoteRegion& region,
                 std::uint64_t target_bytes);

  Status start(const PlainOrder& order);
  // True if anything happened.
  bool step();
  bool running() const { return completed_ < order_.count && health_.ok(); }
  const Status& health() const { return health_; }
  TimePoint began() const { return began_; }
  const fabric::Endpoint& endpoint() const { return *endpoint_; }
  bool may_wait() { return endpoint_->may_wait(); }

 private:
  bool post();

  fabric::Domain* domain_;
  const std::byte* source_;
  std::uint64_t source_bytes_, target_bytes_ = 0;
  const Clock* clock_;
  std::unique_ptr<fabric::Endpoint> endpoint_;
  fabric::PeerHandle peer_ = 0;
  fabric::RemoteRegion region_;
  PlainOrder order_;
  std::vector<std::uint64_t> from_, to_;  // offsets of pieces, used in turn
  std::uint32_t posted_ = 0, completed_ = 0;
  TimePoint began_{0};
  Status health_;
  std::vector<fabric::Completion> completions_{64};
};

// The side that is written to.
class PlainTarget {
 public:
  static Result<std::unique_ptr<PlainTarget>> open(fabric::Domain* domain, std::byte* memory,
                                                   std::uint64_t bytes);
  fabric::FabricAddress address() const { return endpoint_->address(); }
  fabric::RemoteRegion region() const { return region_->remote(); }
  // True once the last write of the round that was ordered has landed; the round is then over.
  bool step(bool* busy);
  const Status& health() const { return health_; }
  const fabric::Endpoint& endpoint() const { return *endpoint_; }
  bool may_wait() { return endpoint_->may_wait(); }

 private:
  std::unique_ptr<fabric::Endpoint> endpoint_;
  std::unique_ptr<fabric::MemoryRegion> region_;
  Status health_;
  std::vector<fabric::Completion> completions_{64};
};

}  // namespace kvd::tools
