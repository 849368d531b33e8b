// KvReceiver's inside, shared by its source files: receiver_link.cc (links), receiver_rooms.cc
// (rooms and their actions), kv_receiver.cc (the public doors and poll).
//
// Every public entry ends in settle(): links that must end and rooms that are over are only noted
// on the way; the host is called last, when everything is consistent, so it may call back.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "proto/room_messages.h"
#include "room/room.h"
#include "transfer/digest.h"
#include "transfer/gathering.h"
#include "transfer/kv_receiver.h"
#include "transfer/slot_table.h"
#include "transfer/transfer_metrics.h"
#include "transfer/wire.h"

namespace kvd::transfer {

// A room's key here and on the wire (OpenRoom.request): unlike the caller's key it is never used
// again.
using RoomKey = std::uint64_t;

struct ReceiverLink {
  std::string address;
  std::uint64_t owner = 0;  // of its test slot in the slot table
  control::PeerRef ref = 0;
  LinkState state = LinkState::kConnecting;
  Status why;
  bool removing = false;
  Incarnation peer;
  std::uint64_t highest_epoch = 0;
  Epoch epoch;
  std::string provider;
  fabric::Domain* domain = nullptr;
  std::unique_ptr<fabric::Endpoint> endpoint;
  std::unique_ptr<fabric::MemoryRegion> region;
  std::optional<SlotLease> test;
  proto::Register request;
  Gathering gathering;
  GatheringTrial trial;
  std::uint64_t write_bytes =
      0;  // of the last large room that ended well, in the mean; 0: none yet
  LinkSequence sequence;
  proto::Load load;
  std::uint32_t context = 0;
  bool asked = false;     // a Describe is on its way
  bool unasked = false;   // nobody was there to be sent one
  TimePoint next_ask{0};  // Describe or Register is (re)sent
  TimePoint asked_at{0}, step_deadline = kNever, last_heard{0}, next_heartbeat = kNever;
  Duration backoff{0};
  Duration round_trip{0};
  std::set<RoomKey> rooms;
  std::unordered_map<RoomId, RoomKey> by_room;
  Status end;  // not ok: ends in settle()
  // `local` was tried with this incarnation, and is not again before `local_again`: why, or ok.
  Status no_local;
  TimePoint local_again;
  bool another_provider = false;     // besides `local` the two have one in common
  std::uint32_t local_failures = 0;  // links in a row that ended before they were ready
  std::string told;                  // the last reason against `local` that was logged
};

struct ReceiverRoom {
  RoomKey key = 0;
  RoomRequest request;
  ReceiverLink* link = nullptr;  // null once the link ended
  RoomId id;
  room::RoomState state = room::RoomState::kBootstrapping;
  room::Drain drain = room::Drain::kNone;
  std::optional<SlotLease> slot;
  bool exposed = false;  // the peer was told of pages and slot: it can write
  bool over = false;
  std::uint32_t trial_part = 0;  // of the link's trial, as it was opened
  TimePoint opened, abort_sent = kNever;
  Duration bootstrap{0}, digest{0};
  SampledToken first;
  std::uint64_t queue_ns = 0, compute_ns = 0, posted_at_ns = 0, boot = 0;
  std::string reason;
  Status why;
  bool retryable = true;
};

struct KvReceiver::Impl {
  // What the host is still to be told.
  struct Report {
    std::uint64_t request = 0;
    std::optional<CommittedRoom> committed;
    std::optional<RoomTimings> timings;
    Status why;
    bool retryable = false;
  };

  Impl(TransferOptions options, kv::PagePool* pool, std::byte* slot_memory,
       control::Messenger* messenger, std::vector<fabric::Domain*> domains, const Clock* clock,
       Rng* rng, Metrics* metrics, ReceiverHost* host);
  ~Impl();

  // receiver_link.cc
  ReceiverLink* link_of(control::PeerRef ref);
  fabric::Domain* domain_of(const std::string& provider) const;
  bool asking(const ReceiverLink& link) const;
  void set_state(ReceiverLink* link, LinkState state, Status why);
  bool may_ask(const ReceiverLink& link) const;
  void ask(ReceiverLink* link, TimePoint now);
  bool on_described(ReceiverLink* link, const control::Received& received);
  Status check_described(ReceiverLink* link, const proto::Described& described);
  std::vector<std::string> usable_providers(ReceiverLink* link, const proto::Described& described);
  bool give_local_up(ReceiverLink* link, const Status& why);
  Status register_link(ReceiverLink* link);
  void on_registered(ReceiverLink* link, const control::Received& received);
  void on_refused(ReceiverLink* link, const control::Received& received);
  void on_stale(ReceiverLink* link, const control::Received& received);
  void on_error(ReceiverLink* link, const control::Received& received);
  bool accept(ReceiverLink* link, const control::Received& received);
  void on_test_record(ReceiverLink* link);
  void note_end(ReceiverLink* link, Status why);
  void end_link(ReceiverLink* link);
  void close_link(ReceiverLink* link);
  void heartbeat(ReceiverLink* link, TimePoint now);
  void tend_link(ReceiverLink* link, TimePoint now);
  bool poll_endpoint(ReceiverLink* link);
  static bool has_long_writes(const ReceiverLink& link);
  bool may_gather(const ReceiverLink& link);
  template <typename Message>
  void send(ReceiverLink* link, RoomId room, const Message& message);

  // receiver_rooms.cc
  void on_room_message(ReceiverLink* link, const control::Received& received);
  void on_opened(ReceiverLink* link, const control::Received& received);
  void on_room_refused(ReceiverLink* link, const control::Received& received);
  void on_room_failed(ReceiverLink* link, const control::Received& received);
  void on_room_done(ReceiverLink* link, const control::Received& received);
  bool knows(const ReceiverLink& link, RoomId id) const;
  void look_for_records(ReceiverLink* link);
  void note_done(ReceiverLink* link, RoomId id, const proto::RoomDone& done);
  void on_record(ReceiverLink* link, std::uint32_t slot, std::uint32_t generation);
  Status check_record(ReceiverRoom* room);
  // Between two parts of what takes long for a room: other rooms' bytes go on coming.
  void keep_moving();
  ReceiverRoom* find(RoomKey key);
  ReceiverRoom* find_on(ReceiverLink* link, RoomId room);
  void apply(ReceiverRoom* room, room::Event event);
  void act(ReceiverRoom* room, room::Action action, room::Event event);
  bool may_name(const ReceiverRoom* room, RoomId id) const;
  void name(ReceiverRoom* room, RoomId id, Duration bootstrap);
  Status send_open(ReceiverRoom* room);
  proto::Allocate offer(ReceiverRoom* room);
  void expose(ReceiverRoom* room);
  void release(ReceiverRoom* room, room::Event event);
  void free_pages(ReceiverRoom* room, kv::Proof proof);
  void report_committed(ReceiverRoom* room);
  void report_failed(ReceiverRoom* room);
  void lease_slots();
  void forget(ReceiverRoom* room);
  void give_up(ReceiverRoom* room, Status why, bool retryable);
  void check_deadlines(TimePoint now);

  // kv_receiver.cc
  void settle();
  void tidy();
  void deliver();

  TransferOptions options_;
  kv::PagePool* pool_;
  std::byte* slot_memory_;
  control::Messenger* messenger_;
  std::vector<fabric::Domain*> domains_;
  const Clock* clock_;
  Rng* rng_;
  TransferMetrics metrics_;
  // Reused by every poll: an idle loop polls each link some hundred thousand times a second.
  std::vector<fabric::Completion> completions_{64};
  ReceiverHost* host_;
  SlotTable slots_;

  std::map<std::string, std::unique_ptr<ReceiverLink>> links_;  // by address
  std::unordered_map<RoomKey, std::unique_ptr<ReceiverRoom>> rooms_;
  std::unordered_map<std::uint64_t, RoomKey> by_request_;  // the caller still waits for these
  std::deque<RoomKey> slot_line_;                          // opened, but no slot was free yet
  std::vector<RoomKey> over_;
  // Committed rooms whose RoomOpened or RoomDone may still come, oldest first, at most kMaxDone.
  struct Done {
    std::uint64_t request = 0;
    RoomKey key = 0;
    TimePoint opened;
    std::uint32_t trial_part = 0;
  };
  std::unordered_map<RoomId, Done> done_;
  std::deque<RoomId> done_order_;
  std::deque<Report> reports_;
  bool pages_freed_ = false, delivering_ = false, links_to_end_ = false;
  RoomKey next_key_ = 1;
  TimePoint next_deadline_ = kNever;  // no deadline of a room or drain is earlier
  // Kept for the end of the link that is being ended: may its rooms' pages be freed?
  std::optional<kv::Proof> fence_proof_;
};

template <typename Message>
void KvReceiver::Impl::send(ReceiverLink* link, RoomId room, const Message& message) {
  const Status sent = messenger_->send_in_link(link->ref, link->peer, link->epoch,
                                               link->sequence.next_out(), room, message);
  if (sent.ok()) {
    link->sequence.sent();
  } else {
    note_end(link, sent.with_context("cannot send to the peer"));
  }
}

}  // namespace kvd::transfer
