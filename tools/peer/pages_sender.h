// The sending side of `kvd-bench pages`: the daemons' KvSender over a pool of its own, with an
// engine that is done at once, and the writer of plain writes beside it. It is driven by the forked
// process of kvd-bench, or by a session of `kvd-probe serve`.
//
// Calling thread: the event loop's.
#pragma once

#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "control/messenger.h"
#include "device/host_buffer.h"
#include "fabric/fabric.h"
#include "kv/page_pool.h"
#include "peer/page_sets.h"
#include "peer/sender_spec.h"
#include "probe/plain_writes.h"
#include "transfer/kv_sender.h"

namespace kvd::tools {

// One request as the sender saw it, on its clock. Trivial: it lies in memory that two processes
// share.
struct SentTimes {
  std::uint64_t room = 0;
  std::int64_t started_ns = 0;   // Allocate was there and the source pages leased
  std::int64_t computed_ns = 0;  // all pages were handed over
  std::int64_t transfer_total_ns = 0, transfer_exposed_ns = 0;
  std::uint64_t bytes = 0, writes = 0, pieces = 0;
};

// Where plain writes go.
struct PlainPlace {
  fabric::FabricAddress address;
  fabric::RemoteRegion region;
  std::uint64_t bytes = 0;
};

class PagesSender final : transfer::SenderHost {
 public:
  using Sent = std::function<void(const SentTimes&)>;
  // `domain`, `messenger` and `clock` must outlive it. `sent` hears of each request that is over.
  PagesSender(const SenderSpec& spec, fabric::Domain* domain, control::Messenger* messenger,
              const Clock* clock, Sent sent);
  ~PagesSender() override;

  // Takes the memory. kResourceExhausted, kNoProvider.
  Status open();
  fabric::FabricAddress plain_address() const { return plain_->address(); }
  device::HugePages huge_pages() const { return buffer_.huge_pages(); }
  Status connect(const PlainPlace& place);
  void describe(proto::Described* out) const;

  // Pages have the pattern of their room from now on, or not.
  void fill(bool pattern) { fill_ = pattern; }
  Status start_plain(const probe::PlainOrder& order);
  bool plain_running() const { return plain_running_; }
  // Of the last round of plain writes: the first was posted, the last has landed.
  TimePoint plain_began() const { return plain_->began(); }
  TimePoint plain_ended() const { return plain_ended_; }
  bool idle() const { return sender_->idle() && jobs_.empty(); }
  const Status& health() const { return plain_->health(); }

  // True if the message was one of KvSender's.
  bool on_message(const control::Received& message) { return sender_->on_message(message); }
  // True if anything happened.
  bool step();
  void wait_fds(std::vector<int>* out) const;
  bool may_wait();
  TimePoint next_deadline() const;

 private:
  struct Job {  // of a transfer::PrefillJob what is needed
    RoomId room;
    std::uint32_t tokens;
    std::vector<PageIndex> pages;  // to be filled
    std::vector<kv::LayerGroup> groups;
    TimePoint started;
  };

  void start_compute(transfer::PrefillJob job) override;
  void cancel_compute(RoomId room) override { sender_->compute_stopped(room); }
  void room_over(RoomId room, const transfer::SenderOutcome& outcome) override;
  proto::Load load() override { return load_now(); }

  proto::Load load_now() const;
  void compute(const Job& job);

  const SenderSpec spec_;
  const Sent sent_;
  control::Messenger* messenger_;
  const Clock* clock_;
  Rng rng_;
  std::unique_ptr<fabric::Domain> unordered_;  // isolated: around the caller's
  fabric::Domain* domain_;
  device::HostBuffer buffer_;
  std::unique_ptr<kv::PagePool> pool_;
  std::unique_ptr<PageSets> sets_;
  std::unique_ptr<fabric::MemoryRegion> source_region_;
  std::unique_ptr<probe::PlainWriter> plain_;
  std::unique_ptr<transfer::KvSender> sender_;
  std::vector<Job> jobs_, taken_;
  std::unordered_map<RoomId, std::pair<TimePoint, TimePoint>> computed_;  // started, computed
  bool fill_ = false, plain_running_ = false;
  TimePoint plain_ended_{0};
};

}  // namespace kvd::tools
