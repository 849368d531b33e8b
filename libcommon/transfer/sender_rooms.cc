// Rooms of KvSender: opening, meeting, allocation, abort, and the actions of the room's table.
#include <algorithm>

#include "base/log.h"
#include "transfer/faults.h"
#include "transfer/planted.h"
#include "transfer/sender_impl.h"

namespace kvd::transfer {
namespace {
constexpr std::uint64_t kMaxTimeoutMs = 24ull * 3600 * 1000;
constexpr std::uint64_t kMaxRoomId = 1ull << 63;
// What RoomOpened and RoomDone wait for others to go with; longer where rooms follow each other.
constexpr Duration kLater{500'000}, kMuchLater{10'000'000};
}  // namespace

SenderRoom* KvSender::Impl::find(RoomId room) {
  const auto it = rooms_.find(room);
  return it == rooms_.end() ? nullptr : it->second.get();
}

SenderRoom* KvSender::Impl::find_on(const SenderLink* link, RoomId room) {
  SenderRoom* found = find(room);
  return found != nullptr && found->link == link ? found : nullptr;
}

Status KvSender::Impl::check_open(const control::Received& received, const proto::OpenRoom& open,
                                  std::string* code) const {
  *code = "draining";
  if (draining_) return unavailable("this prefill drains and takes no new requests");
  *code = "mismatch";
  if (open.prompt.empty()) return invalid_argument("the prompt is empty");
  if (received.envelope.room.value >= kMaxRoomId) return invalid_argument("room id out of range");
  if (received.envelope.room && rooms_.contains(received.envelope.room)) {
    return invalid_argument("the room exists already");
  }
  *code = "too_long";
  const std::uint32_t pages = pool_->layout().pages_for(open.prompt.size());
  if (pages > pool_->page_count()) {
    return invalid_argument("the prompt needs " + std::to_string(pages) +
                            " pages and this prefill has " + std::to_string(pool_->page_count()) +
                            ": shorten it or raise --kv-memory there");
  }
  *code = "busy";
  if (rooms_.size() >= options_.max_rooms) {
    return {StatusCode::kResourceExhausted, "this prefill has all the rooms that it may have"};
  }
  return {};
}

void KvSender::Impl::on_open_room(SenderLink* link, const control::Received& received) {
  auto body = proto::decode_body<proto::OpenRoom>(received.envelope);
  if (!body.ok()) {
    messenger_->refuse(received, "malformed", body.status().message());
    return;
  }
  proto::OpenRoom& open = *body;
  RoomId id = received.envelope.room;
  std::string code;
  Status checked = check_open(received, open, &code);
  const auto half = halves_.find(id);
  const bool standalone = static_cast<bool>(id);
  if (checked.ok() && standalone && half != halves_.end() && half->second.prompt != open.prompt) {
    code = "mismatch";
    checked = invalid_argument("the two halves of the room have different prompts");
  }
  if (!checked.ok()) {
    send(link, id, proto::RoomRefused{open.request, code, checked.message()});
    log_info("room refused", {{"room", id}, {"code", code}, {"why", checked.message()}});
    if (standalone && half != halves_.end()) {
      halves_.erase(half);
      SenderOutcome outcome;
      outcome.status = checked;
      host_->room_over(id, outcome);
    }
    return;
  }
  while (!id || rooms_.contains(id) || halves_.contains(id)) {
    if (standalone) break;
    id.value = rng_->next() >> 1;
  }
  auto room = std::make_unique<SenderRoom>();
  room->id = id;
  room->link = link;
  room->provider = link->capabilities().provider;
  room->request = open.request;
  room->prompt = std::move(open.prompt);
  room->tokens = static_cast<std::uint32_t>(room->prompt.size());
  room->sampling = std::move(open.sampling);
  room->choice = open.choice;
  room->opened = clock_->now();
  room->deadline =
      room->opened + std::chrono::milliseconds(std::min(open.timeout_ms, kMaxTimeoutMs));
  room->written.assign(groups_.size(), 0);
  next_deadline_ = std::min(next_deadline_, room->deadline);
  metrics_.enter(room->state, room->drain);
  link->rooms.insert(id);
  SenderRoom* placed = (rooms_[id] = std::move(room)).get();
  if (!standalone) {
    const bool allocated = !open.allocate.runs.empty();
    meet(placed, allocated);
    if (allocated) take_allocation(placed, open.allocate);
  } else if (half != halves_.end()) {
    halves_.erase(half);
    meet(placed);
  } else {
    log_debug("room waits for the router", {{"room", id}});
  }
}

void KvSender::Impl::meet(SenderRoom* room, bool allocated) {
  room->met = true;
  // Where its pages came with OpenRoom nothing waits for RoomOpened, but an abort.
  SenderLink* const link = room->link;
  link->opened.push_back({room->id, allocated});
  if (allocated && link->rooms.size() > 1) {
    send_later(link, kMuchLater);
  } else {
    send_waiting(link);
  }
  log_info("room opened",
           {{"room", room->id}, {"peer", room->link->peer}, {"tokens", room->tokens}});
}

Status KvSender::Impl::read_allocation(const SenderLink& link, const proto::Allocate& allocate,
                                       SenderRoom* room) {
  const std::uint32_t wanted = pool_->layout().pages_for(room->tokens);
  std::vector<PageIndex> pages;
  pages.reserve(wanted);
  for (const proto::PageRunInfo& run : allocate.runs) {
    if (run.count == 0 || run.count > wanted - pages.size() ||
        run.first >= link.request.page_count || run.count > link.request.page_count - run.first) {
      return invalid_argument("page run out of range");
    }
    for (std::uint32_t i = 0; i < run.count; ++i) pages.push_back(run.first + i);
  }
  if (pages.size() != wanted) return invalid_argument("wrong number of pages");
  // That no page is named twice was checked with the message.
  if (allocate.slot >= link.request.slot_count ||
      allocate.generation >= (1u << proto::kGenerationBits)) {
    return invalid_argument("slot out of range");
  }
  room->destination = std::move(pages);
  room->slot = allocate.slot;
  room->generation = allocate.generation;
  return {};
}

void KvSender::Impl::on_allocate(SenderLink* link, const control::Received& received) {
  SenderRoom* room = find_on(link, received.envelope.room);
  if (room == nullptr) {
    metrics_.ignored_event();  // the room failed here while Allocate was on its way
    return;
  }
  if (room->state == room::RoomState::kBootstrapping) {
    if (!room->met) {
      link->end = invalid_argument("Allocate came before RoomOpened was sent");
      links_to_end_ = true;
      return;
    }
    const auto body = proto::decode_body<proto::Allocate>(received.envelope);
    if (!body.ok()) return refuse_allocation(room, body.status());
    return take_allocation(room, *body);
  }
  apply(room, room::Event::kAllocate);
}

void KvSender::Impl::take_allocation(SenderRoom* room, const proto::Allocate& allocate) {
  const Status read = read_allocation(*room->link, allocate, room);
  if (!read.ok()) return refuse_allocation(room, read);
  log_debug("pages allocated",
            {{"room", room->id}, {"pages", room->destination.size()}, {"slot", room->slot}});
  apply(room, room::Event::kAllocate);
}

void KvSender::Impl::refuse_allocation(SenderRoom* room, const Status& why) {
  fail(room, "transfer", why.with_context("the pages are refused"));
}

void KvSender::Impl::on_abort(SenderLink* link, const control::Received& received) {
  SenderRoom* room = find_on(link, received.envelope.room);
  if (room == nullptr) {
    // It never began or is long over; in this epoch nothing of it is on its way.
    send(link, received.envelope.room, proto::AbortDrained{});
    return;
  }
  room->abort_asked = true;
  if (room->why.ok() && !room->over) {
    const auto body = proto::decode_body<proto::Abort>(received.envelope);
    room->why = {StatusCode::kCancelled,
                 "decode aborted: " + (body.ok() ? body->reason.substr(0, 200) : std::string())};
  }
  apply(room, room::Event::kAbort);
}

void KvSender::Impl::fail(SenderRoom* room, std::string code, Status why) {
  if (room->why.ok() && !room->over) {
    room->code = std::move(code);
    room->why = std::move(why);
  }
  apply(room, room::Event::kFail);
}

void KvSender::Impl::apply(SenderRoom* room, room::Event event) {
  const room::Transition next =
      room::transition(room::Role::kSender, room->state, room->drain, event);
  if (next.verdict == room::Verdict::kIgnored) {
    metrics_.ignored_event();
    return;
  }
  if (next.verdict == room::Verdict::kViolation) {
    metrics_.violation();
    if (room->link != nullptr && room->link->end.ok()) {
      room->link->end =
          invalid_argument("the peer broke the protocol: " + std::string(to_string(event)) +
                           " in " + std::string(to_string(room->state)));
      links_to_end_ = true;
    }
    return;
  }
  [[maybe_unused]] const room::RoomState before = room->state;
  metrics_.leave(room->state, room->drain);
  room->state = next.state;
  room->drain = next.drain;
  metrics_.enter(room->state, room->drain);
  for (room::Action action : next.actions) act(room, action);
  if constexpr (faults::kBuilt) faults::at_step(room::Role::kSender, before, event);
}

void KvSender::Impl::act(SenderRoom* room, room::Action action) {
  using enum room::Action;
  switch (action) {
    case kLeaseSources:
      source_line_.push_back(room->id);
      break;
    case kStartCompute:
      start_compute(room);
      break;
    case kCancelCompute:
      if (room->job_started && !room->engine_done && !room->cancelled) {
        room->cancelled = true;
        host_->cancel_compute(room->id);
      }
      break;
    case kPurge:
      if constexpr (planted::kBuilt) {
        if (planted::is(planted::Defect::kDrainedEarly)) return send_drained(room);
      }
      room->link->pipeline->purge(room->id.value);
      break;
    case kBeginDrain:
      log_debug("room drains", {{"room", room->id},
                                {"in_flight", room->link->pipeline->inflight(room->id.value)}});
      continue_drain(room);
      break;
    case kSendDrained:
      send_drained(room);
      break;
    case kSendUnproven:
      send_unproven(room);
      break;
    case kSendDone: {
      proto::RoomDone done;
      done.transfer_total_ns =
          static_cast<std::uint64_t>((room->finished - room->first_posted).count());
      done.transfer_exposed_ns =
          static_cast<std::uint64_t>((room->finished - room->compute_ended).count());
      done.commit_posted_ns = static_cast<std::uint64_t>(room->record_posted.ns);
      done.bytes = room->bytes;
      done.writes = room->writes;
      // Its record told decode of it.
      std::erase_if(room->link->opened,
                    [&](const OpenedRoom& other) { return other.id == room->id; });
      room->link->done.push_back({room->id.value, done});
      send_later(room->link, room->link->rooms.size() > 1 ? kMuchLater : kLater);
      break;
    }
    case kFinish:
      room->over = true;
      over_.push_back(room->id);
      break;
    default:
      KVD_CHECK(false);  // an action of the receiver
  }
}

void KvSender::Impl::send_drained(SenderRoom* room) {
  if (room->link == nullptr) return;
  if (room->abort_asked) {
    send(room->link, room->id, proto::AbortDrained{});
  } else if (room->met) {
    send(room->link, room->id, proto::RoomFailed{true, room->code, room->why.message()});
  } else {
    refuse(room);
  }
}

// The link has ended: what decode gets are its last messages of the epoch, if it still gets
// anything.
void KvSender::Impl::send_unproven(SenderRoom* room) {
  if (room->link == nullptr) return;
  if (room->abort_asked) {
    send(room->link, room->id, proto::AbortUnproven{room->why.message()});
  } else if (room->met) {
    send(room->link, room->id, proto::RoomFailed{false, room->code, room->why.message()});
  } else {
    refuse(room);
  }
}

void KvSender::Impl::refuse(SenderRoom* room) {
  const std::string code = room->code == "mismatch" ? room->code : "busy";
  send(room->link, room->id, proto::RoomRefused{room->request, code, room->why.message()});
}

// First come, first served, and only whole prompts: a room that has its pages can always finish.
void KvSender::Impl::lease_sources() {
  while (!source_line_.empty()) {
    SenderRoom* room = find(source_line_.front());
    if (room == nullptr || room->state != room::RoomState::kWaitingForInput || room->lease) {
      source_line_.pop_front();
      continue;
    }
    const std::uint32_t pages = pool_->layout().pages_for(room->tokens);
    if (pool_->counts().free < pages) return;
    auto lease = pool_->lease(pages, clock_->now());
    if (!lease.ok()) return;
    source_line_.pop_front();
    room->lease = *lease;
    pool_->assign(room->lease, room->id, room->link->peer);
    const std::uint32_t page_size = pool_->layout().page_size;
    if (room->tokens % page_size != 0) {
      // Unused rows of the last page are zero, also in decode's copy of it.
      std::byte* last = pool_->page(pool_->pages(room->lease).back());
      std::fill_n(last, pool_->layout().page_bytes(), std::byte{0});
    }
    apply(room, room::Event::kSources);
  }
}

void KvSender::Impl::start_compute(SenderRoom* room) {
  PrefillJob job;
  job.room = room->id;
  job.prompt = std::move(room->prompt);
  job.sampling = room->sampling;
  job.choice = room->choice;
  const auto pages = pool_->pages(room->lease);
  job.pages.assign(pages.begin(), pages.end());
  if (options_.stream) job.groups = groups_;
  room->job_started = true;
  room->compute_began = clock_->now();
  log_debug("compute started", {{"room", room->id}, {"pages", job.pages.size()}});
  host_->start_compute(std::move(job));
}

// In settle(): the room is over for the peer; it is forgotten once the engine has let go of the
// pages.
void KvSender::Impl::finish(SenderRoom* room) {
  if (room->job_started && !room->engine_done) return;
  if (room->link != nullptr) room->link->rooms.erase(room->id);
  if (room->lease) pool_->release(room->lease, kv::Proof::kSourceDone);
  staging_.give_back(room->cell);
  SenderOutcome outcome;
  const bool committed = room->state == room::RoomState::kSuccess;
  if (!committed) {
    outcome.status = room->why.ok() ? Status(StatusCode::kFailed, "the room failed") : room->why;
  }
  outcome.prompt_tokens = room->tokens;
  outcome.bytes = room->bytes;
  outcome.writes = room->writes;
  outcome.pieces = room->pieces;
  outcome.queue =
      room->job_started ? room->compute_began - room->opened + room->queued : Duration{0};
  outcome.compute = room->compute;
  outcome.provider = room->provider;
  if (committed) {
    outcome.transfer_total = room->finished - room->first_posted;
    outcome.transfer_exposed = room->finished - room->compute_ended;
    metrics_.stage("transfer", outcome.transfer_total);
    log_info("room committed", {{"room", room->id},
                                {"bytes", room->bytes},
                                {"writes", room->writes},
                                {"transfer_ms", to_ms(outcome.transfer_total)},
                                {"exposed_ms", to_ms(outcome.transfer_exposed)}});
  } else {
    log_info("room failed", {{"room", room->id}, {"why", outcome.status.message()}});
  }
  metrics_.leave(room->state, room->drain);
  const RoomId id = room->id;
  rooms_.erase(id);
  host_->room_over(id, outcome);
}

void KvSender::Impl::check_deadlines(TimePoint now) {
  if (now < next_deadline_) return;
  next_deadline_ = kNever;
  std::vector<RoomId> late;
  for (const auto& [id, room] : rooms_) {
    if (room->over || room->state == room::RoomState::kFailed) continue;
    if (room->deadline <= now) {
      late.push_back(id);
    } else {
      next_deadline_ = std::min(next_deadline_, room->deadline);
    }
  }
  std::sort(late.begin(), late.end());  // the same order in every run of a simulation
  for (RoomId id : late) {
    SenderRoom* room = find(id);
    fail(room, "deadline",
         {StatusCode::kDeadline, room->met ? "the request's deadline passed on prefill"
                                           : "the router's half of the room did not come"});
  }
  for (auto it = halves_.begin(); it != halves_.end();) {
    if (it->second.deadline > now) {
      next_deadline_ = std::min(next_deadline_, it->second.deadline);
      ++it;
      continue;
    }
    const RoomId id = it->first;
    it = halves_.erase(it);
    SenderOutcome outcome;
    outcome.status = {StatusCode::kDeadline, "decode did not open the room in time"};
    host_->room_over(id, outcome);
  }
}

}  // namespace kvd::transfer
