// KvReceiver: the decode side of every link and room of one worker. It keeps a link to each prefill
// it was given, opens rooms, tells prefill where pages go, checks the commit record and the digest,
// and owns the proof that a failed room's pages can be written by nobody before they are free
// again.
//
// Calling thread, reentrancy and injection: as KvSender. ReceiverHost may call open_room() and
// abort() from inside on_committed()/on_failed(). The host is called from on_message() and poll()
// only, never from inside its own calls.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/metrics.h"
#include "base/rng.h"
#include "base/sampling.h"
#include "base/status.h"
#include "control/messenger.h"
#include "fabric/fabric.h"
#include "kv/page_pool.h"
#include "proto/link_messages.h"
#include "transfer/options.h"

namespace kvd::transfer {

// One prompt to be computed elsewhere.
struct RoomRequest {
  std::uint64_t request = 0;  // the caller's key, unique among open requests, never 0
  std::vector<TokenId> prompt;
  SamplingParams sampling;
  std::uint32_t choice = 0;
  // Reserved by the caller for prompt + max_tokens; the first pages_for(prompt) receive the prompt.
  // From open_room() on the lease belongs to KvReceiver, until on_committed() gives it back. On
  // failure KvReceiver releases or quarantines it.
  kv::LeaseId lease;
  TimePoint deadline;
  RoomId room;  // standalone: minted by the router; 0: prefill mints it
};

struct CommittedRoom {
  std::uint64_t request = 0;
  RoomId room;
  kv::LeaseId lease;
  SampledToken first;
  std::uint32_t prompt_tokens = 0;
  std::string provider;
  Incarnation prefill;
  std::uint64_t bytes = 0;  // KV bytes that were written
  std::uint32_t pages = 0;
  // open_room -> RoomOpened (decode's clock) without what it waited at prefill; a round trip, at
  // most, where the record came first
  Duration bootstrap{0};
  Duration queue{0};  // prefill's clock
  Duration prefill_compute{0};
  Duration commit{0};               // record posted -> validated here
  bool commit_is_estimate = false;  // half a round trip: the two ends do not share a boot id
  Duration digest{0};
  TimePoint validated;  // decode's clock: the record and the digest were found good
};

// Prefill's last timings (RoomDone, or a later RoomOpened); may come after the request is over, or
// never.
struct RoomTimings {
  Duration transfer_total{0}, transfer_exposed{0};
};

enum class LinkState { kConnecting, kRegistering, kTesting, kReady, kRefused, kDown };

struct PrefillView {
  std::string address;  // control address as given to add_prefill
  Incarnation incarnation;
  LinkState state = LinkState::kConnecting;
  Status why;  // of kRefused and kDown
  std::string provider;
  proto::Load load;
  std::uint32_t context = 0;
  std::size_t rooms = 0;
  Duration round_trip{0};
};

// A metadata slot that is leased: `leaks` and the simulation look at them. Room 0: a link's test
// write, or a room whose pages went with OpenRoom, before it is answered.
struct SlotView {
  std::uint32_t slot = 0, generation = 0;
  RoomId room;
};

class ReceiverHost {
 public:
  virtual ~ReceiverHost() = default;
  virtual void on_committed(CommittedRoom room) = 0;
  // `retryable`: another prefill may be tried (nothing wrong with the request itself).
  virtual void on_failed(std::uint64_t request, Status why, bool retryable) = 0;
  virtual void on_timings(std::uint64_t request, const RoomTimings& timings) = 0;
  // Pages came back from a lease (a waiting reservation may now succeed).
  virtual void on_pages_freed() = 0;
  virtual proto::Load load() = 0;
};

class KvReceiver {
 public:
  // `slot_memory`: kSlotBytes * options.slots, following the pool's pages in one allocation, so
  // that one registration covers both: region = [pool->memory(), slot_memory end).
  KvReceiver(TransferOptions options, kv::PagePool* pool, std::byte* slot_memory,
             control::Messenger* messenger, std::vector<fabric::Domain*> domains,
             const Clock* clock, Rng* rng, Metrics* metrics, ReceiverHost* host);
  ~KvReceiver();
  KvReceiver(const KvReceiver&) = delete;
  KvReceiver& operator=(const KvReceiver&) = delete;

  // Keeps a link to the prefill at this control address until removed; idempotent.
  void add_prefill(const std::string& address);
  // Its rooms fail; the link ends once they are proven over.
  void remove_prefill(const std::string& address);
  std::vector<PrefillView> prefills() const;

  // kUnavailable: no ready link there. The lease stays the caller's when this fails.
  Status open_room(const std::string& prefill_address, RoomRequest request);
  // The client went away, or the deadline passed: on_failed() is not called. No-op when unknown.
  void abort(std::uint64_t request, const std::string& reason);
  // A reservation of `pages` has waited since `since`: after fence_after, if quarantined pages
  // would satisfy it, the peer that holds most of them is fenced.
  void starving(std::uint32_t pages, TimePoint since);

  bool on_message(const control::Received& message);
  bool poll();
  TimePoint next_deadline() const;
  void wait_fds(std::vector<int>* out) const;
  bool may_wait();
  bool idle() const;  // no rooms, nothing quarantined
  std::size_t rooms() const;
  std::vector<SlotView> slots() const;  // those that are leased

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvd::transfer
