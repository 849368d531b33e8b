// KvSender's inside, shared by its source files: sender_link.cc (links), sender_rooms.cc (rooms and
// their actions), sender_writes.cc (pages, record, drain), kv_sender.cc (the public doors and
// poll).
//
// Every public entry ends in settle(): rooms that are over and links that must end are only noted
// on the way and dealt with there, so that no function sees an object die under it.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "device/host_buffer.h"
#include "fabric/write_pipeline.h"
#include "proto/commit_record.h"
#include "proto/room_messages.h"
#include "room/room.h"
#include "transfer/digest.h"
#include "transfer/kv_sender.h"
#include "transfer/transfer_metrics.h"
#include "transfer/wire.h"

namespace kvd::transfer {

constexpr std::size_t kMaxLinks = 1024;
constexpr std::uint64_t kMaxEpoch = 1ull << 62;  // beyond it a peer is not counting
constexpr fabric::StreamId kLinkStream = 0;      // the test write; rooms use their id

// Records and scratch words wait here until their write completed: one cell of kSlotBytes each.
class Staging {
 public:
  // `shared`: for domains with Capabilities::shared_sources.
  Staging(std::size_t cells, bool shared);
  // Null when all are taken.
  std::byte* take();
  void give_back(std::byte* cell);
  std::byte* memory() const { return memory_.data(); }
  std::size_t bytes() const { return memory_.size(); }

 private:
  device::HostBuffer memory_;
  std::vector<bool> used_;
  std::size_t next_ = 0;
};

struct OpenedRoom {
  RoomId id;
  bool allocated = false;  // its pages came with OpenRoom
};

struct SenderLink {
  Incarnation peer;
  control::PeerRef ref = 0;
  std::string identity;
  Epoch epoch;
  proto::Register request;  // as it came: a repeat gets the same answer
  fabric::Domain* domain = nullptr;
  std::unique_ptr<fabric::Endpoint> endpoint;
  fabric::PeerHandle handle = 0;
  std::unique_ptr<fabric::WritePipeline> pipeline;
  Digest digest = Digest::kSample;
  fabric::RemoteRegion region;
  bool heard = false;  // a message of this epoch came: decode has our address, the test may go
  bool test_posted = false, ready = false;
  std::byte* test_cell = nullptr;
  LinkSequence sequence;
  TimePoint last_heard, next_heartbeat, last_progress;
  std::set<RoomId> rooms;
  std::vector<RoomId> closing;  // computed, record not yet queued
  // Not sent yet: nobody waits for these, and each message wakes threads on both sides. They go
  // together, and before any other message; earlier than `later_due` where as many came as a
  // RoomOpened holds. The first RoomOpened tells of the rooms that ended, else RoomDone of each.
  std::vector<OpenedRoom> opened;      // at most RoomOpened::kMaxDone
  std::vector<proto::EndedRoom> done;  // the same
  TimePoint later_due = kNever;
  std::uint64_t new_bytes = 0;  // completed, not yet in the metrics
  Status end;                   // not ok: ends in settle()

  const fabric::Capabilities& capabilities() const { return domain->capabilities(); }
};

struct SenderRoom {
  RoomId id;
  SenderLink* link = nullptr;  // null once the link ended
  std::string provider;
  std::uint64_t request = 0;
  room::RoomState state = room::RoomState::kBootstrapping;
  room::Drain drain = room::Drain::kNone;
  std::vector<TokenId> prompt;  // until the engine gets it
  std::uint32_t tokens = 0;     // of the prompt
  SamplingParams sampling;
  std::uint32_t choice = 0;
  TimePoint opened, deadline;
  bool met = false;  // decode is told of it; standalone: the router's half came

  std::vector<PageIndex> destination;
  std::uint32_t slot = 0, generation = 0;
  kv::LeaseId lease;
  bool job_started = false, engine_done = false, cancelled = false;

  std::vector<std::uint32_t> written;  // pages queued, by layer group
  std::uint32_t streamed = 0;          // pages that went group by group, once computed
  bool computed = false;
  SampledToken first;
  Duration queued{0}, compute{0};
  TimePoint compute_began, compute_ended;
  std::unique_ptr<Digester> digest;  // once computed

  std::byte* cell = nullptr;
  bool record_queued = false, record_done = false, scratch_queued = false, scratch_done = false;
  std::uint64_t queued_writes = 0, completed_writes = 0, bytes = 0, writes = 0, pieces = 0;
  TimePoint first_posted{0}, record_posted{0}, finished{0};

  bool abort_asked = false;
  bool over = false;  // terminal for the peer; source pages go back when the engine is done
  std::string code = "cancelled";
  Status why;
};

struct KvSender::Impl {
  // The router's half of a standalone room that decode has not opened yet.
  struct Half {
    std::vector<TokenId> prompt;
    SamplingParams sampling;
    TimePoint deadline;
  };
  struct Seen {  // of a peer, beyond the life of its link
    std::uint64_t epoch = 0, request_epoch = 0;
  };
  struct EngineEnd {
    RoomId room;
    Status why;  // ok: stopped
  };
  enum Tag : std::uint64_t { kPageTag = 1, kRecordTag, kScratchTag, kTestTag };

  Impl(TransferOptions options, kv::PagePool* pool, control::Messenger* messenger,
       std::vector<fabric::Domain*> domains, const Clock* clock, Rng* rng, Metrics* metrics,
       SenderHost* host);
  ~Impl();

  // sender_link.cc
  void on_register(const control::Received& received);
  Status check_register(const proto::Register& request, std::string* code, std::string* diff) const;
  Status open_link(const control::Received& received, const proto::Register& request);
  void answer_registered(SenderLink* link);
  void refuse_register(const control::Received& received, const std::string& code,
                       const std::string& text, const std::string& diff);
  fabric::Domain* domain_of(const std::string& provider) const;
  // The link of an in-link message that is next in its sequence; null when the message is dropped.
  SenderLink* accept(const control::Received& received);
  void on_stale(const control::Received& received);
  void end_link(SenderLink* link);
  void tend_link(SenderLink* link, TimePoint now);
  void post_test(SenderLink* link);
  template <typename Message>
  void send(SenderLink* link, RoomId room, const Message& message);
  void send_later(SenderLink* link, Duration most);  // `opened` and `done`
  void send_waiting(SenderLink* link);

  // sender_rooms.cc
  void on_open_room(SenderLink* link, const control::Received& received);
  void on_allocate(SenderLink* link, const control::Received& received);
  void on_abort(SenderLink* link, const control::Received& received);
  Status check_open(const control::Received& received, const proto::OpenRoom& open,
                    std::string* code) const;
  void take_allocation(SenderRoom* room, const proto::Allocate& allocate);
  void refuse_allocation(SenderRoom* room, const Status& why);
  Status read_allocation(const SenderLink& link, const proto::Allocate& allocate, SenderRoom* room);
  SenderRoom* find(RoomId room);
  SenderRoom* find_on(const SenderLink* link, RoomId room);
  void apply(SenderRoom* room, room::Event event);
  void act(SenderRoom* room, room::Action action);
  void fail(SenderRoom* room, std::string code, Status why);
  void meet(SenderRoom* room, bool allocated = false);
  void send_drained(SenderRoom* room);
  void send_unproven(SenderRoom* room);
  void refuse(SenderRoom* room);
  void start_compute(SenderRoom* room);
  void lease_sources();
  void finish(SenderRoom* room);
  void check_deadlines(TimePoint now);

  // sender_writes.cc
  void write_pages(SenderRoom* room, std::size_t group, std::uint32_t until);
  void write_remaining(SenderRoom* room);
  void enqueue(SenderRoom* room, std::vector<fabric::QueuedWrite> writes);
  void enqueue_control(SenderRoom* room, Tag tag);
  void close_rooms(SenderLink* link);
  void continue_drain(SenderRoom* room);
  void on_completion(SenderLink* link, const fabric::Completion& completion);
  void on_room_write(SenderRoom* room, const fabric::WriteResult& result);
  void on_test_write(SenderLink* link);
  bool pump(SenderLink* link);
  void resume_link(SenderLink* link);  // planted.h: not in what is shipped

  // kv_sender.cc
  void settle();
  void engine_ends();

  TransferOptions options_;
  kv::PagePool* pool_;
  control::Messenger* messenger_;
  std::vector<fabric::Domain*> domains_;
  const Clock* clock_;
  Rng* rng_;
  TransferMetrics metrics_;
  // Reused by every poll: an idle loop polls each link some hundred thousand times a second.
  std::vector<fabric::Completion> completions_{64};
  SenderHost* host_;
  std::vector<kv::LayerGroup> groups_;
  Staging staging_;
  std::vector<std::unique_ptr<fabric::MemoryRegion>> local_regions_;

  std::map<Incarnation, std::unique_ptr<SenderLink>> links_;
  std::map<Incarnation, Seen> seen_;
  std::unordered_map<RoomId, std::unique_ptr<SenderRoom>> rooms_;
  std::unordered_map<RoomId, Half> halves_;
  std::deque<RoomId>
      source_line_;  // decode's pages are known, source pages are not: first come, first served
  std::vector<RoomId> over_;  // to be finished in settle()
  std::vector<EngineEnd> engine_ends_;
  TimePoint next_deadline_ = kNever;  // no deadline of a room or half is earlier
  bool draining_ = false;
  bool links_to_end_ = false;
};

template <typename Message>
void KvSender::Impl::send(SenderLink* link, RoomId room, const Message& message) {
  send_waiting(link);
  const Status sent = messenger_->send_in_link(link->ref, link->peer, link->epoch,
                                               link->sequence.next_out(), room, message);
  if (sent.ok()) {
    link->sequence.sent();
  } else if (link->end.ok()) {
    // The peer would wait for what it never gets; a new link starts from nothing.
    link->end = sent.with_context("cannot send to the peer");
    links_to_end_ = true;
  }
}

}  // namespace kvd::transfer
