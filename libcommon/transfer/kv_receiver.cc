#include "transfer/kv_receiver.h"

#include <algorithm>

#include "base/log.h"
#include "transfer/faults.h"
#include "transfer/receiver_impl.h"

namespace kvd::transfer {
namespace {
// Owners of test slots are apart from room keys, which count from 1.
constexpr std::uint64_t kTestOwner = 1ull << 63;
}  // namespace

KvReceiver::Impl::Impl(TransferOptions options, kv::PagePool* pool, std::byte* slot_memory,
                       control::Messenger* messenger, std::vector<fabric::Domain*> domains,
                       const Clock* clock, Rng* rng, Metrics* metrics, ReceiverHost* host)
    : options_(std::move(options)),
      pool_(pool),
      slot_memory_(slot_memory),
      messenger_(messenger),
      domains_(std::move(domains)),
      clock_(clock),
      rng_(rng),
      metrics_(metrics),
      host_(host),
      slots_(slot_memory, options_.slots) {
  KVD_CHECK(slot_memory_ >= pool_->memory() + pool_->memory_bytes());
}

KvReceiver::Impl::~Impl() {
  if constexpr (faults::kBuilt) faults::check_all(*pool_);
  // Nothing may be written once the pool's memory goes away.
  for (auto& [address, link] : links_) close_link(link.get());
  if constexpr (faults::kBuilt) faults::close_kept_open();
}

void KvReceiver::Impl::settle() {
  tidy();
  deliver();
}

// Ends what was only noted on the way, until nothing is left to end. What the host must hear waits
// in reports_: calls of the host's own (abort, starving) must not call it back.
void KvReceiver::Impl::tidy() {
  bool again = true;
  while (again) {
    again = false;
    lease_slots();
    if (links_to_end_) {
      links_to_end_ = false;
      for (auto& [address, link] : links_) {
        if (link->end.ok()) continue;
        end_link(link.get());
        again = true;
      }
    }
    std::vector<RoomKey> over;
    over.swap(over_);
    for (RoomKey key : over) {
      if (ReceiverRoom* room = find(key)) forget(room);
    }
    again = again || links_to_end_ || !over.empty();
  }
  std::erase_if(links_, [&](auto& entry) {
    ReceiverLink& link = *entry.second;
    if (!link.removing || !asking(link)) return false;
    if (link.ref != 0) messenger_->channel().forget(link.ref);
    return true;
  });
}

void KvReceiver::Impl::deliver() {
  if (delivering_) return;  // the host called back: the outer call goes on with the queue
  delivering_ = true;
  while (!reports_.empty() || pages_freed_) {
    if (pages_freed_) {
      pages_freed_ = false;
      host_->on_pages_freed();
      continue;
    }
    Report report = std::move(reports_.front());
    reports_.pop_front();
    if (report.committed) {
      host_->on_committed(std::move(*report.committed));
    } else if (report.timings) {
      host_->on_timings(report.request, *report.timings);
    } else {
      host_->on_failed(report.request, std::move(report.why), report.retryable);
    }
    keep_moving();  // the host may have taken long
  }
  delivering_ = false;
}

KvReceiver::KvReceiver(TransferOptions options, kv::PagePool* pool, std::byte* slot_memory,
                       control::Messenger* messenger, std::vector<fabric::Domain*> domains,
                       const Clock* clock, Rng* rng, Metrics* metrics, ReceiverHost* host)
    : impl_(std::make_unique<Impl>(std::move(options), pool, slot_memory, messenger,
                                   std::move(domains), clock, rng, metrics, host)) {}
KvReceiver::~KvReceiver() = default;

void KvReceiver::add_prefill(const std::string& address) {
  auto& link = impl_->links_[address];
  if (link != nullptr) {
    link->removing = false;
    return;
  }
  link = std::make_unique<ReceiverLink>();
  link->address = address;
  link->owner = kTestOwner + impl_->next_key_++;
  link->backoff = impl_->options_.reconnect;
  impl_->set_state(link.get(), LinkState::kConnecting, {});
}

void KvReceiver::remove_prefill(const std::string& address) {
  const auto it = impl_->links_.find(address);
  if (it == impl_->links_.end() || it->second->removing) return;
  ReceiverLink* link = it->second.get();
  link->removing = true;
  if (link->state == LinkState::kRegistering) {
    impl_->note_end(link, unavailable("the prefill was removed"));
  }
  const std::set<RoomKey> rooms = link->rooms;
  for (RoomKey key : rooms) {
    ReceiverRoom* room = impl_->find(key);
    if (room != nullptr && room->state != room::RoomState::kFailed) {
      impl_->give_up(room, unavailable("the prefill was removed"), true);
    }
  }
  impl_->tidy();
}

std::vector<PrefillView> KvReceiver::prefills() const {
  std::vector<PrefillView> out;
  for (const auto& [address, link] : impl_->links_) {
    PrefillView view;
    view.address = address;
    view.incarnation = link->peer;
    view.state = link->end.ok() ? link->state : LinkState::kDown;
    view.why = link->end.ok() ? link->why : link->end;
    view.provider = link->provider;
    view.load = link->load;
    view.context = link->context;
    view.rooms = link->rooms.size();
    view.round_trip = link->round_trip;
    out.push_back(std::move(view));
  }
  return out;
}

Status KvReceiver::open_room(const std::string& prefill_address, RoomRequest request) {
  const auto it = impl_->links_.find(prefill_address);
  if (it == impl_->links_.end()) {
    return unavailable("no prefill is configured at " + prefill_address);
  }
  ReceiverLink* link = it->second.get();
  if (link->state != LinkState::kReady || !link->end.ok() || link->removing) {
    return unavailable("no ready link to the prefill at " + prefill_address +
                       (link->why.ok() ? std::string() : ": " + link->why.message()));
  }
  if (impl_->rooms_.size() >= impl_->options_.max_rooms) {
    return {StatusCode::kResourceExhausted, "this decode has all the rooms that it may have"};
  }
  if (request.request == 0 || impl_->by_request_.contains(request.request) ||
      request.prompt.empty() || request.room.value >> 63 != 0 ||
      impl_->pool_->pages(request.lease).size() <
          impl_->pool_->layout().pages_for(request.prompt.size())) {
    return invalid_argument("not a request that can be opened");
  }
  const TimePoint now = impl_->clock_->now();
  auto room = std::make_unique<ReceiverRoom>();
  room->key = impl_->next_key_++;
  room->link = link;
  room->opened = now;
  room->trial_part = link->trial.part();
  room->request = std::move(request);
  if constexpr (faults::kBuilt) {
    faults::leased(*impl_->pool_, impl_->pool_->pages(room->request.lease));
  }
  const Status sent = impl_->send_open(room.get());
  if (!sent.ok()) return sent;
  impl_->next_deadline_ = std::min(impl_->next_deadline_, room->request.deadline);
  impl_->by_request_[room->request.request] = room->key;
  link->rooms.insert(room->key);
  impl_->metrics_.enter(room->state, room->drain);
  ReceiverRoom* placed = (impl_->rooms_[room->key] = std::move(room)).get();
  if (placed->exposed) impl_->apply(placed, room::Event::kAllocate);
  return {};
}

void KvReceiver::abort(std::uint64_t request, const std::string& reason) {
  const auto pending = std::find_if(
      impl_->reports_.begin(), impl_->reports_.end(),
      [&](const Impl::Report& report) { return report.request == request && !report.timings; });
  if (pending != impl_->reports_.end()) {
    // Decided, but the host has not heard of it: it never will.
    if (pending->committed) {
      impl_->pool_->release(pending->committed->lease, kv::Proof::kSequenceDone);
      impl_->pages_freed_ = true;
    }
    impl_->reports_.erase(pending);
  }
  const auto it = impl_->by_request_.find(request);
  if (it != impl_->by_request_.end()) {
    ReceiverRoom* room = impl_->find(it->second);
    impl_->by_request_.erase(it);
    KVD_CHECK(room != nullptr);
    room->reason = reason.substr(0, 200);
    room->why = {StatusCode::kCancelled, room->reason};
    log_info("room aborted", {{"room", room->id}, {"why", room->reason}});
    impl_->apply(room, room::Event::kAbort);
  }
  impl_->tidy();
}

void KvReceiver::starving(std::uint32_t pages, TimePoint since) {
  const kv::PageCounts counts = impl_->pool_->counts();
  const bool helps = counts.free < pages && counts.free + counts.quarantined >= pages;
  if (!helps || impl_->clock_->now() - since < impl_->options_.fence_after) return;
  ReceiverLink* worst = nullptr;
  std::uint32_t most = 0;
  const auto by_peer = impl_->pool_->quarantined_by_peer();
  for (auto& [address, link] : impl_->links_) {
    const auto held = by_peer.find(link->peer);
    if (impl_->asking(*link) || held == by_peer.end() || held->second <= most) continue;
    worst = link.get();
    most = held->second;
  }
  if (worst == nullptr) return;
  impl_->note_end(worst, unavailable("fenced: it held " + std::to_string(most) +
                                     " quarantined pages that a request waits for"));
  impl_->tidy();
}

bool KvReceiver::on_message(const control::Received& message) {
  ReceiverLink* link = impl_->link_of(message.from);
  if (link == nullptr) return false;
  if (message.refused) {
    impl_->accept(link, message);
    impl_->settle();
    return true;
  }
  using enum proto::MessageType;
  bool ours = true;
  switch (message.envelope.type) {
    case kDescribed:
      ours = impl_->on_described(link, message);
      break;
    case kRegistered:
      impl_->on_registered(link, message);
      break;
    case kRefused:
      impl_->on_refused(link, message);
      break;
    case kStaleIncarnation:
      impl_->on_stale(link, message);
      break;
    case kError:
      impl_->on_error(link, message);
      break;
    case kHeartbeat:
      if (!impl_->accept(link, message)) break;
      if (auto body = proto::decode_body<proto::Heartbeat>(message.envelope); body.ok()) {
        link->load = body->load;
      }
      break;
    case kRoomOpened:
    case kRoomRefused:
    case kAbortDrained:
    case kAbortUnproven:
    case kRoomFailed:
    case kCommitted:
    case kRoomDone:
      if (impl_->accept(link, message)) impl_->on_room_message(link, message);
      break;
    default:
      return false;
  }
  impl_->settle();
  return ours;
}

bool KvReceiver::poll() {
  const TimePoint now = impl_->clock_->now();
  bool busy = false;
  for (auto& [address, link] : impl_->links_) {
    busy = impl_->poll_endpoint(link.get()) || busy;
    impl_->tend_link(link.get(), now);
  }
  if constexpr (faults::kBuilt) {
    faults::poll_kept_open();
    faults::watch(*impl_->pool_, now);
  }
  impl_->check_deadlines(now);
  impl_->settle();
  return busy;
}

TimePoint KvReceiver::next_deadline() const {
  if (!impl_->reports_.empty() || impl_->pages_freed_) return impl_->clock_->now();
  TimePoint next = impl_->next_deadline_;
  for (const auto& [address, link] : impl_->links_) {
    if (impl_->asking(*link) || link->state == LinkState::kRegistering) {
      next = std::min(next, link->next_ask);
    } else {
      next = std::min(next, link->last_heard + impl_->options_.dead_after);
    }
    next = std::min({next, link->step_deadline, link->next_heartbeat, link->gathering.wake()});
  }
  return next;
}

void KvReceiver::wait_fds(std::vector<int>* out) const {
  for (const auto& [address, link] : impl_->links_) {
    if (link->endpoint == nullptr || link->gathering.lasts_asleep()) continue;
    if (const int fd = link->endpoint->wait_fd(); fd >= 0) out->push_back(fd);
  }
}

bool KvReceiver::may_wait() {
  for (auto& [address, link] : impl_->links_) {
    if (link->endpoint == nullptr || link->gathering.lasts_asleep()) continue;
    link->gathering.end();
    if (!link->endpoint->may_wait()) return false;
  }
  return true;
}

bool KvReceiver::idle() const {
  return impl_->rooms_.empty() && impl_->pool_->counts().quarantined == 0;
}

std::size_t KvReceiver::rooms() const { return impl_->rooms_.size(); }

std::vector<SlotView> KvReceiver::slots() const {
  std::vector<SlotView> out;
  for (std::uint32_t slot = 0; slot < impl_->slots_.size(); ++slot) {
    const std::uint32_t generation = impl_->slots_.generation(slot);
    const std::uint64_t owner = impl_->slots_.owner(slot, generation);
    if (owner == 0) continue;
    const ReceiverRoom* room = impl_->find(owner);
    out.push_back({slot, generation, room == nullptr ? RoomId{} : room->id});
  }
  return out;
}

}  // namespace kvd::transfer
