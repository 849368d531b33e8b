// Rooms of KvReceiver: messages, the commit record, and the actions of the room's table.
#include <algorithm>

#include "base/log.h"
#include "transfer/faults.h"
#include "transfer/planted.h"
#include "transfer/receiver_impl.h"

namespace kvd::transfer {
namespace {
constexpr std::uint64_t kMostNs = std::uint64_t{1} << 62;  // of a peer's durations

constexpr std::size_t kMaxDone = 4096;

struct Verdict {
  StatusCode code;
  bool retryable;
};

Verdict verdict_of_refusal(const std::string& code) {
  if (code == "too_long" || code == "mismatch") return {StatusCode::kInvalidArgument, false};
  if (code == "draining") return {StatusCode::kUnavailable, true};
  return {StatusCode::kResourceExhausted, true};
}

Verdict verdict_of_failure(const std::string& code) {
  if (code == "invalid") return {StatusCode::kInvalidArgument, false};
  if (code == "deadline") return {StatusCode::kDeadline, false};
  if (code == "cancelled") return {StatusCode::kCancelled, false};
  if (code == "draining") return {StatusCode::kUnavailable, true};
  return {StatusCode::kFailed, true};
}

}  // namespace

ReceiverRoom* KvReceiver::Impl::find(RoomKey key) {
  const auto it = rooms_.find(key);
  return it == rooms_.end() ? nullptr : it->second.get();
}

ReceiverRoom* KvReceiver::Impl::find_on(ReceiverLink* link, RoomId room) {
  const auto it = link->by_room.find(room);
  return it == link->by_room.end() ? nullptr : find(it->second);
}

void KvReceiver::Impl::on_room_message(ReceiverLink* link, const control::Received& received) {
  using enum proto::MessageType;
  ReceiverRoom* room = find_on(link, received.envelope.room);
  switch (received.envelope.type) {
    case kRoomOpened:
      return on_opened(link, received);
    case kRoomRefused:
      return on_room_refused(link, received);
    case kRoomFailed:
      return on_room_failed(link, received);
    case kRoomDone:
      return on_room_done(link, received);
    case kAbortDrained:
      if (room == nullptr) return metrics_.ignored_event();
      return apply(room, room::Event::kDrained);
    case kAbortUnproven:
      if (room == nullptr) return metrics_.ignored_event();
      return apply(room, room::Event::kUnproven);
    case kCommitted: {
      const auto body = proto::decode_body<proto::Committed>(received.envelope);
      if (!body.ok()) return messenger_->refuse(received, "malformed", body.status().message());
      return on_record(link, body->slot, body->generation);
    }
    default:
      return;
  }
}

void KvReceiver::Impl::on_opened(ReceiverLink* link, const control::Received& received) {
  const auto body = proto::decode_body<proto::RoomOpened>(received.envelope);
  if (!body.ok()) return messenger_->refuse(received, "malformed", body.status().message());
  for (const auto& [room, done] : body->done) {
    if (knows(*link, RoomId{room})) continue;
    look_for_records(link);
    break;
  }
  for (const auto& [room, done] : body->done) note_done(link, RoomId{room}, done);
  const auto since = [&](TimePoint opened) {
    const Duration waited(static_cast<std::int64_t>(std::min(body->waited_ns, kMostNs)));
    return std::max(clock_->now() - opened - waited, Duration(0));
  };
  const RoomId id = received.envelope.room;
  const auto done = done_.find(id);
  if (done != done_.end() && done->second.key == body->request) {
    // Its record came first.
    link->round_trip = std::min(link->round_trip, since(done->second.opened));
    return;
  }
  ReceiverRoom* room = find(body->request);
  if (room == nullptr || room->link != link) {
    send(link, id, proto::Abort{"nobody waits for this room"});
    return;
  }
  if (room->over) return metrics_.ignored_event();  // its record came first, and proved the drain
  if (room->id || !may_name(room, id)) {
    metrics_.violation();
    return note_end(link, invalid_argument("the peer opened a room twice or under a wrong id"));
  }
  name(room, id, since(room->opened));
  if (!room->request.room) link->round_trip = std::min(link->round_trip, room->bootstrap);
  // It skipped the pages in OpenRoom.
  const bool told = room->state == room::RoomState::kTransferring;
  if (told && !body->allocated) send(link, id, offer(room));
  apply(room, room::Event::kOpened);
}

bool KvReceiver::Impl::may_name(const ReceiverRoom* room, RoomId id) const {
  return id && (!room->request.room || room->request.room == id) &&
         !room->link->by_room.contains(id);
}

// RoomOpened tells the id; the record of a room whose pages went with OpenRoom may overtake it.
void KvReceiver::Impl::name(ReceiverRoom* room, RoomId id, Duration bootstrap) {
  room->id = id;
  room->link->by_room[id] = room->key;
  room->bootstrap = bootstrap;
  log_info("room opened", {{"room", id}, {"prefill", room->link->address}});
  if (room->exposed && room->request.lease) expose(room);  // under its name
}

void KvReceiver::Impl::on_room_refused(ReceiverLink* link, const control::Received& received) {
  const auto body = proto::decode_body<proto::RoomRefused>(received.envelope);
  if (!body.ok()) return messenger_->refuse(received, "malformed", body.status().message());
  ReceiverRoom* room = find(body->request);
  if (room == nullptr || room->link != link) return metrics_.ignored_event();
  if (room->id) {
    metrics_.violation();
    return note_end(link, invalid_argument("the peer refused a room that it had opened"));
  }
  if (room->why.ok()) {
    const Verdict verdict = verdict_of_refusal(body->code);
    room->why = {verdict.code, body->text.substr(0, 500)};
    room->retryable = verdict.retryable;
  }
  apply(room, room::Event::kRefused);
}

void KvReceiver::Impl::on_room_failed(ReceiverLink* link, const control::Received& received) {
  const auto body = proto::decode_body<proto::RoomFailed>(received.envelope);
  ReceiverRoom* room = find_on(link, received.envelope.room);
  if (room == nullptr) return metrics_.ignored_event();
  if (!body.ok()) return note_end(link, body.status().with_context("RoomFailed"));
  if (room->why.ok()) {
    const Verdict verdict = verdict_of_failure(body->code);
    room->why = {verdict.code, "prefill: " + body->text.substr(0, 500)};
    room->retryable = verdict.retryable;
  }
  apply(room, body->drained ? room::Event::kFail : room::Event::kFailUnproven);
}

void KvReceiver::Impl::on_room_done(ReceiverLink* link, const control::Received& received) {
  const auto body = proto::decode_body<proto::RoomDone>(received.envelope);
  if (!body.ok()) return messenger_->refuse(received, "malformed", body.status().message());
  if (!knows(*link, received.envelope.room)) look_for_records(link);
  note_done(link, received.envelope.room, *body);
}

bool KvReceiver::Impl::knows(const ReceiverLink& link, RoomId id) const {
  return done_.contains(id) || link.by_room.contains(id);
}

// Of a room that RoomOpened did not tell of the record does. Where a look of this side lets it
// complete at prefill (all but NICs) it has come before the RoomDone.
void KvReceiver::Impl::look_for_records(ReceiverLink* link) {
  link->gathering.end();
  poll_endpoint(link);
}

void KvReceiver::Impl::note_done(ReceiverLink* link, RoomId id, const proto::RoomDone& done) {
  std::uint64_t request = 0;
  std::uint32_t trial_part = 0;
  if (const auto committed = done_.find(id); committed != done_.end()) {
    request = committed->second.request;
    trial_part = committed->second.trial_part;
    done_.erase(committed);
  } else if (ReceiverRoom* room = find_on(link, id);
             room != nullptr && room->state != room::RoomState::kFailed) {
    request = room->request.request;  // overtook the signal of the commit
    trial_part = room->trial_part;
  }
  if (request == 0) return metrics_.ignored_event();
  const Duration total(static_cast<std::int64_t>(std::min(done.transfer_total_ns, kMostNs)));
  const Duration exposed(static_cast<std::int64_t>(std::min(done.transfer_exposed_ns, kMostNs)));
  // Small rooms say nothing of large ones.
  if (done.bytes >= Gathering::kMuch && done.writes != 0) {
    // Not the first one, which is slow for other reasons; and not the time of the prompt's compute.
    if (has_long_writes(*link)) {
      link->trial.moved(trial_part, done.bytes, std::min(total, exposed));
    }
    link->write_bytes = done.bytes / done.writes;
  }
  Report report;
  report.request = request;
  report.timings = RoomTimings{total, exposed};
  reports_.push_back(std::move(report));
}

// A slot is read only here, on its event.
void KvReceiver::Impl::on_record(ReceiverLink* link, std::uint32_t slot, std::uint32_t generation) {
  const std::uint64_t owner = slots_.owner(slot, generation);
  if (link->test && owner == link->owner) {
    if (link->state == LinkState::kTesting) on_test_record(link);
    return;
  }
  ReceiverRoom* room = find(owner);
  if (room == nullptr || room->link != link || room->over) {
    metrics_.stale_commit();
    return;
  }
  const Status checked = check_record(room);
  if (!checked.ok()) {
    log_error("commit record refused", {{"room", room->id}, {"why", checked.message()}});
    room->why = checked;
    room->retryable = true;
  }
  apply(room, checked.ok() ? room::Event::kCommit : room::Event::kBadCommit);
}

Status KvReceiver::Impl::check_record(ReceiverRoom* room) {
  auto record = proto::decode_record(slots_.record(room->slot->slot));
  if (!record.ok()) return record.status();
  const std::uint32_t pages = pool_->layout().pages_for(room->request.prompt.size());
  const bool named = room->id ? record->room == room->id : may_name(room, record->room);
  const bool fits = named && record->epoch == room->link->epoch &&
                    record->incarnation == room->link->peer &&
                    record->generation == room->slot->generation &&
                    record->tokens == room->request.prompt.size() && record->pages == pages &&
                    record->streamed <= pages;
  if (!fits) return {StatusCode::kCorrupted, "the commit record does not match the allocation"};
  if (!room->id) {
    name(room, record->room, std::min(clock_->now() - room->opened, room->link->round_trip));
  }
  const TimePoint begin = clock_->now();
  Duration let_go{0};
  const LetGo between = [&] {
    const TimePoint at = clock_->now();
    keep_moving();
    let_go += clock_->now() - at;
  };
  // An aborted room may have given its pages up already; then its record proves the drain alone.
  if (room->request.lease) {
    const std::uint64_t digest =
        digest_pages(options_.digest, *pool_, pool_->pages(room->request.lease).first(pages),
                     room->request.prompt.size(), record->streamed, room->id, between);
    if (digest != record->digest && options_.digest != Digest::kOff) {
      return {StatusCode::kCorrupted, "the digest of the pages is not what prefill sent"};
    }
  }
  room->digest = clock_->now() - begin - let_go;
  room->first = std::move(record->first);
  room->queue_ns = record->queue_ns;
  room->compute_ns = record->compute_ns;
  room->posted_at_ns = record->posted_at_ns;
  room->boot = record->boot_id;
  return {};
}

void KvReceiver::Impl::apply(ReceiverRoom* room, room::Event event) {
  const room::Transition next =
      room::transition(room::Role::kReceiver, room->state, room->drain, event);
  if (next.verdict == room::Verdict::kIgnored) return metrics_.ignored_event();
  if (next.verdict == room::Verdict::kViolation) {
    metrics_.violation();
    if (room->link != nullptr) {
      note_end(room->link,
               invalid_argument("the peer broke the protocol: " + std::string(to_string(event)) +
                                " in " + std::string(to_string(room->state))));
    }
    return;
  }
  [[maybe_unused]] const room::RoomState before = room->state;
  metrics_.leave(room->state, room->drain);
  room->state = next.state;
  room->drain = next.drain;
  metrics_.enter(room->state, room->drain);
  for (room::Action action : next.actions) act(room, action, event);
  if constexpr (faults::kBuilt) faults::at_step(room::Role::kReceiver, before, event);
  // Without pages and slot there is nothing left to prove.
  const bool holds = static_cast<bool>(room->request.lease) || room->slot.has_value();
  if (is_over(room->state, room->drain) || (room->drain == room::Drain::kUnproven && !holds)) {
    room->over = true;
    over_.push_back(room->key);
  }
}

void KvReceiver::Impl::act(ReceiverRoom* room, room::Action action, room::Event event) {
  using enum room::Action;
  switch (action) {
    case kLeaseSlot:
      slot_line_.push_back(room->key);
      break;
    case kSendAllocate:
      send(room->link, room->id, offer(room));
      expose(room);
      break;
    case kSendAbort:
      room->abort_sent = clock_->now();
      next_deadline_ = std::min(next_deadline_, room->abort_sent + options_.drain_timeout);
      // Before RoomOpened tells the id there is nothing to name: then it is sent.
      if (room->id) send(room->link, room->id, proto::Abort{room->reason});
      break;
    case kQuarantine:
      if constexpr (faults::kBuilt) {
        if (faults::unfenced()) return free_pages(room, kv::Proof::kDrained);
      }
      pool_->quarantine(room->request.lease, "drained from prefill, or its endpoint closed",
                        clock_->now());
      if constexpr (planted::kBuilt) {
        if (planted::is(planted::Defect::kSlotEarly) && room->slot) {
          slots_.free(*room->slot);
          room->slot.reset();
        }
      }
      break;
    case kRelease:
      release(room, event);
      break;
    case kFreeSlot:
      slots_.free(*room->slot);
      room->slot.reset();
      break;
    case kReportCommitted:
      report_committed(room);
      break;
    case kReportFailed:
      report_failed(room);
      break;
    case kEndLink:
      note_end(room->link,
               room->why.ok() ? unavailable("prefill could not prove a drain") : room->why);
      break;
    default:
      KVD_CHECK(false);  // an action of the sender
  }
}

// Where a slot is free the pages go along, and prefill may begin without another message. Not in
// the standalone flow: a room may wait there for its other half, and pages that a peer knows of
// come back by a proof alone.
Status KvReceiver::Impl::send_open(ReceiverRoom* room) {
  ReceiverLink* link = room->link;
  RoomRequest& request = room->request;
  proto::OpenRoom open;
  open.request = room->key;
  open.sampling = request.sampling;
  open.choice = request.choice;
  if (request.deadline > room->opened) {
    open.timeout_ms =
        static_cast<std::uint64_t>((request.deadline - room->opened).count() / 1'000'000);
  }
  keep_moving();
  if (!request.room && slot_line_.empty()) room->slot = slots_.lease(room->key);
  if (room->slot) open.allocate = offer(room);
  // A long prompt's message takes some 10 us; the prompt is not copied.
  keep_moving();
  open.prompt = std::move(request.prompt);
  send(link, request.room, open);
  request.prompt = std::move(open.prompt);
  if (!link->end.ok()) {
    if (room->slot) slots_.free(*room->slot);  // nobody was told
    return link->end;
  }
  if (room->slot) expose(room);
  return {};
}

void KvReceiver::Impl::keep_moving() {
  for (auto& [address, link] : links_) {
    if (link->endpoint != nullptr && !link->rooms.empty()) link->endpoint->keep_moving();
  }
}

// What the peer is told of the room's pages and slot. The pages are marked before it can know them.
proto::Allocate KvReceiver::Impl::offer(ReceiverRoom* room) {
  const std::uint32_t count = pool_->layout().pages_for(room->request.prompt.size());
  const std::span<const PageIndex> pages = pool_->pages(room->request.lease).first(count);
  if (options_.digest == Digest::kSample && !room->exposed) {
    mark_pages(*pool_, pages, room->request.prompt.size(), rng_->next(), [this] { keep_moving(); });
  }
  proto::Allocate allocate;
  for (const kv::PageRun& run : kv::to_runs(pages)) {
    allocate.runs.push_back({run.first, run.count});
  }
  allocate.slot = room->slot->slot;
  allocate.generation = room->slot->generation;
  return allocate;
}

// The peer was told: it may write to the room's pages and slot. Again once the room has an id.
void KvReceiver::Impl::expose(ReceiverRoom* room) {
  room->exposed = true;
  pool_->assign(room->request.lease, room->id, room->link->peer);
  if (!room->id || !room->slot) return;
  log_debug("pages allocated", {{"room", room->id},
                                {"pages", pool_->layout().pages_for(room->request.prompt.size())},
                                {"slot", room->slot->slot}});
}

// The only way back to the free list for pages of a room that failed.
void KvReceiver::Impl::release(ReceiverRoom* room, room::Event event) {
  kv::Proof proof = kv::Proof::kDrained;
  if (!room->exposed) {
    proof = kv::Proof::kNeverExposed;
  } else if (event == room::Event::kFenced) {
    KVD_CHECK(fence_proof_.has_value());
    proof = *fence_proof_;
  }
  if (room->request.lease) free_pages(room, proof);
  if (room->slot) {
    slots_.free(*room->slot);
    room->slot.reset();
  }
}

void KvReceiver::Impl::free_pages(ReceiverRoom* room, kv::Proof proof) {
  if constexpr (faults::kBuilt) faults::freed(*pool_, pool_->pages(room->request.lease));
  pool_->release(room->request.lease, proof);
  room->request.lease = {};
  pages_freed_ = true;
}

void KvReceiver::Impl::report_committed(ReceiverRoom* room) {
  const std::uint32_t pages = pool_->layout().pages_for(room->request.prompt.size());
  CommittedRoom out;
  out.request = room->request.request;
  out.room = room->id;
  out.lease = room->request.lease;
  out.first = std::move(room->first);
  out.prompt_tokens = static_cast<std::uint32_t>(room->request.prompt.size());
  out.provider = room->link->provider;
  out.prefill = room->link->peer;
  out.pages = pages;
  out.bytes = pages * pool_->layout().page_bytes();
  out.bootstrap = room->bootstrap;
  out.queue = Duration(static_cast<std::int64_t>(room->queue_ns));
  out.prefill_compute = Duration(static_cast<std::int64_t>(room->compute_ns));
  out.digest = room->digest;
  out.validated = clock_->now();
  const Duration since{out.validated.ns - static_cast<std::int64_t>(room->posted_at_ns)};
  // Only on one host do the two ends read one clock.
  const bool one_clock = room->boot != 0 && room->boot == boot_id() && since.count() >= 0;
  out.commit_is_estimate = !one_clock;
  out.commit = one_clock ? since : room->link->round_trip / 2;
  metrics_.stage("bootstrap", out.bootstrap);
  metrics_.stage("commit", out.commit);
  metrics_.stage("digest", out.digest);
  metrics_.bytes(out.provider, room->link->address, out.bytes);
  log_info("room committed", {{"room", room->id},
                              {"prefill", room->link->address},
                              {"bytes", out.bytes},
                              {"commit_ms", to_ms(out.commit)}});
  done_[room->id] = {out.request, room->key, room->opened, room->trial_part};
  done_order_.push_back(room->id);
  if (done_order_.size() > kMaxDone) {
    done_.erase(done_order_.front());
    done_order_.pop_front();
  }
  room->request.lease = {};  // the sequence's from here on
  by_request_.erase(out.request);
  Report report;
  report.request = out.request;
  report.committed = std::move(out);
  reports_.push_back(std::move(report));
}

void KvReceiver::Impl::report_failed(ReceiverRoom* room) {
  log_info("room failed", {{"room", room->id}, {"why", room->why.message()}});
  by_request_.erase(room->request.request);
  Report report;
  report.request = room->request.request;
  report.why = room->why.ok() ? Status(StatusCode::kFailed, "the room failed") : room->why;
  report.retryable = room->retryable;
  reports_.push_back(std::move(report));
}

// Slots are few and short-lived; rooms wait for one in line, holding nothing that a peer knows of.
void KvReceiver::Impl::lease_slots() {
  while (!slot_line_.empty()) {
    ReceiverRoom* room = find(slot_line_.front());
    const bool waits = room != nullptr && room->state == room::RoomState::kWaitingForInput &&
                       room->link != nullptr && room->link->end.ok();
    if (waits) {
      room->slot = slots_.lease(room->key);
      if (!room->slot) return;
    }
    slot_line_.pop_front();
    if (waits) apply(room, room::Event::kAllocate);
  }
}

void KvReceiver::Impl::forget(ReceiverRoom* room) {
  if (room->link != nullptr) {
    room->link->rooms.erase(room->key);
    if (room->id) room->link->by_room.erase(room->id);
  }
  metrics_.leave(room->state, room->drain);
  rooms_.erase(room->key);
}

void KvReceiver::Impl::give_up(ReceiverRoom* room, Status why, bool retryable) {
  room->reason = why.message();
  room->why = std::move(why);
  room->retryable = retryable;
  apply(room, room::Event::kGiveUp);
}

void KvReceiver::Impl::check_deadlines(TimePoint now) {
  if (now < next_deadline_) return;
  next_deadline_ = kNever;
  std::vector<RoomKey> late;
  for (const auto& [key, room] : rooms_) {
    if (room->over) continue;
    const bool drains = room->drain == room::Drain::kPending;
    if (room->state == room::RoomState::kFailed && !drains) continue;
    // An abort that waits for RoomOpened does not wait for ever either.
    const TimePoint asked = room->abort_sent != kNever ? room->abort_sent : room->request.deadline;
    const TimePoint due = drains ? asked + options_.drain_timeout : room->request.deadline;
    if (due <= now) {
      late.push_back(key);
    } else {
      next_deadline_ = std::min(next_deadline_, due);
    }
  }
  std::sort(late.begin(), late.end());  // the same order in every run of a simulation
  for (RoomKey key : late) {
    ReceiverRoom* room = find(key);
    if (room->drain == room::Drain::kPending) {
      if constexpr (planted::kBuilt) {
        if (planted::is(planted::Defect::kTimerFrees)) {
          apply(room, room::Event::kDrained);
          continue;
        }
      }
      // Time proves nothing: it only decides that the peer is fenced.
      if (room->link != nullptr) {
        note_end(room->link, unavailable(room->id ? "prefill did not answer an abort in time"
                                                  : "prefill did not answer OpenRoom in time"));
      }
    } else {
      give_up(room, {StatusCode::kDeadline, "the request's deadline passed before its KV came"},
              false);
    }
  }
}

}  // namespace kvd::transfer
