// Plain writes over the fabric interface, with nothing of a KV transfer: no room, no lease, no
// record. What `kvd-probe ping` measures with, and the ceiling of `kvd-bench pages`.
//
// A round is a number of writes (or reads) of one size; the last one asks for delivery-complete, so
// that the round ends when its bytes have landed (where the provider keeps no order, every one
// does). Calling thread: that of the endpoint's loop.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "base/status.h"
#include "fabric/fabric.h"

namespace kvd::probe {

constexpr std::size_t kMostPieces = 16;

// One round: `count` writes of `pieces` pieces each. Trivial, so that it can lie in memory that two
// processes share.
struct PlainOrder {
  std::uint64_t write_bytes = 0;
  std::uint32_t pieces = 1, depth = 1, count = 0;
  std::uint64_t seed = 0;  // of the places
  bool signal = false;     // the last write tells the target (remote CQ data)
  bool read = false;       // reads instead; one piece each
  // Write i of the round goes from place p to place p of the target, each place once, `count`
  // places in all; otherwise places are drawn at random from both memories.
  bool in_place = false;
};

// The side that writes.
class PlainWriter {
 public:
  // `memory` must outlive it and be registered with the domain where that is needed. Reads go into
  // it; writes leave it alone.
  PlainWriter(fabric::Domain* domain, std::byte* memory, std::uint64_t bytes, const Clock* clock);
  Status open();  // the endpoint; connect() does that too
  fabric::FabricAddress address() const { return endpoint_->address(); }
  Status connect(const fabric::FabricAddress& target, const fabric::RemoteRegion& region,
                 std::uint64_t target_bytes);

  // kInvalidArgument: the provider cannot carry writes of this size, or they do not fit the memory.
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
  Status post_write(std::uint64_t piece, bool last);
  void draw_places(std::uint64_t piece);

  fabric::Domain* domain_;
  std::byte* memory_;
  std::uint64_t bytes_, target_bytes_ = 0;
  const Clock* clock_;
  std::unique_ptr<fabric::Endpoint> endpoint_;
  fabric::PeerHandle peer_ = 0;
  fabric::RemoteRegion region_;
  PlainOrder order_;
  std::vector<std::uint64_t> from_, to_;  // offsets of pieces, used in turn
  std::size_t place_ = 0;
  std::uint32_t posted_ = 0, completed_ = 0;
  TimePoint began_{0};
  Status health_;
  std::vector<fabric::Completion> completions_{64};
};

// The side that is written to.
class PlainTarget {
 public:
  // A peer may write to `memory` until the target is destroyed.
  static Result<std::unique_ptr<PlainTarget>> open(fabric::Domain* domain, std::byte* memory,
                                                   std::uint64_t bytes);
  fabric::FabricAddress address() const { return endpoint_->address(); }
  fabric::RemoteRegion region() const { return region_->remote(); }
  // Some providers take writes only from a peer whose address they know.
  Status insert(const fabric::FabricAddress& writer);
  // True once a write that signals has landed.
  bool step(bool* busy);
  const Status& health() const { return health_; }
  const fabric::Endpoint& endpoint() const { return *endpoint_; }
  bool may_wait() { return endpoint_->may_wait(); }

 private:
  std::unique_ptr<fabric::Endpoint> endpoint_;
  std::unique_ptr<fabric::MemoryRegion> region_;
  int looks_ = 1;  // fabric.h, looks_for_data
  Status health_;
  std::vector<fabric::Completion> completions_{64};
};

}  // namespace kvd::probe
