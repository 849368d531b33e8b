#include "transfer/kv_sender.h"

#include <algorithm>

#include "base/log.h"
#include "transfer/sender_impl.h"

namespace kvd::transfer {

KvSender::Impl::Impl(TransferOptions options, kv::PagePool* pool, control::Messenger* messenger,
                     std::vector<fabric::Domain*> domains, const Clock* clock, Rng* rng,
                     Metrics* metrics, SenderHost* host)
    : options_(std::move(options)),
      pool_(pool),
      messenger_(messenger),
      domains_(std::move(domains)),
      clock_(clock),
      rng_(rng),
      metrics_(metrics),
      host_(host),
      groups_(kv::layer_groups(pool->layout())),
      staging_(options_.max_rooms + kMaxLinks,
               std::any_of(domains_.begin(), domains_.end(), [](const fabric::Domain* domain) {
                 return domain->capabilities().shared_sources;
               })) {
  // Sources must be registered where the provider reads them by itself; others ignore it. A domain
  // whose registration fails is not offered.
  std::erase_if(domains_, [&](fabric::Domain* domain) {
    auto pages = domain->register_memory(pool_->memory(), pool_->memory_bytes(), false, nullptr);
    auto cells = domain->register_memory(staging_.memory(), staging_.bytes(), false, nullptr);
    if (!pages.ok() || !cells.ok()) {
      log_warn("source memory cannot be registered",
               {{"provider", domain->capabilities().provider},
                {"why", (pages.ok() ? cells.status() : pages.status()).message()}});
      return true;
    }
    local_regions_.push_back(std::move(pages).value());
    local_regions_.push_back(std::move(cells).value());
    return false;
  });
}

KvSender::Impl::~Impl() {
  // Endpoints first: afterwards nothing reads the pages or the staging cells.
  for (auto& [peer, link] : links_) {
    link->pipeline.reset();
    link->endpoint.reset();
  }
  local_regions_.clear();
}

// Ends what was only noted on the way, until nothing is left to end.
void KvSender::Impl::settle() {
  bool again = true;
  while (again) {
    again = false;
    if (links_to_end_) {
      links_to_end_ = false;
      std::vector<SenderLink*> ending;
      for (auto& [peer, link] : links_) {
        if (!link->end.ok()) ending.push_back(link.get());
      }
      for (SenderLink* link : ending) end_link(link);
      again = !ending.empty();
    }
    std::vector<RoomId> over;
    over.swap(over_);
    for (RoomId id : over) {
      if (SenderRoom* room = find(id); room != nullptr && room->over) finish(room);
    }
    lease_sources();
    again = again || links_to_end_ || !over_.empty();
  }
}

void KvSender::Impl::engine_ends() {
  std::vector<EngineEnd> ends;
  ends.swap(engine_ends_);
  for (EngineEnd& end : ends) {
    SenderRoom* room = find(end.room);
    if (room == nullptr || !room->job_started) continue;
    room->engine_done = true;
    if (room->over) {
      over_.push_back(room->id);
    } else if (!end.why.ok()) {
      const bool invalid = end.why.code() == StatusCode::kInvalidArgument;
      fail(room, invalid ? "invalid" : "engine", std::move(end.why));
    } else if (!room->computed && room->state != room::RoomState::kFailed) {
      fail(room, "engine", {StatusCode::kFailed, "the engine stopped before the prompt was done"});
    }
  }
}

KvSender::KvSender(TransferOptions options, kv::PagePool* pool, control::Messenger* messenger,
                   std::vector<fabric::Domain*> domains, const Clock* clock, Rng* rng,
                   Metrics* metrics, SenderHost* host)
    : impl_(std::make_unique<Impl>(std::move(options), pool, messenger, std::move(domains), clock,
                                   rng, metrics, host)) {}
KvSender::~KvSender() = default;

Status KvSender::expect(RoomId room, std::vector<TokenId> prompt, SamplingParams sampling,
                        TimePoint deadline) {
  if (!room || room.value >> 63 != 0) return invalid_argument("bootstrap_room is out of range");
  if (prompt.empty()) return invalid_argument("the prompt is empty");
  if (impl_->draining_) return unavailable("this prefill drains and takes no new requests");
  if (impl_->halves_.contains(room)) return invalid_argument("the room is expected already");
  if (SenderRoom* open = impl_->find(room)) {
    if (open->met) return invalid_argument("the room is in use already");
    if (open->over) return {StatusCode::kCancelled, "decode has given the room up"};
    if (open->prompt != prompt) {
      const Status why = invalid_argument("the two halves of the room have different prompts");
      impl_->fail(open, "mismatch", why);
      impl_->settle();
      return why;
    }
    open->deadline = std::min(open->deadline, deadline);
    impl_->next_deadline_ = std::min(impl_->next_deadline_, open->deadline);
    impl_->meet(open);
    impl_->settle();
    return {};
  }
  if (impl_->halves_.size() >= impl_->options_.max_waiting_halves) {
    return {StatusCode::kResourceExhausted, "too many rooms wait for their decode"};
  }
  impl_->halves_[room] = {std::move(prompt), std::move(sampling), deadline};
  impl_->next_deadline_ = std::min(impl_->next_deadline_, deadline);
  return {};
}

void KvSender::abandon(RoomId room) {
  if (impl_->halves_.erase(room) != 0) return;
  SenderRoom* found = impl_->find(room);
  if (found == nullptr || found->over) return;
  impl_->fail(found, "cancelled", {StatusCode::kCancelled, "the router went away"});
  impl_->settle();
}

void KvSender::layers_ready(RoomId room, kv::LayerGroup group, std::uint32_t token_begin,
                            std::uint32_t token_end) {
  SenderRoom* found = impl_->find(room);
  if (found == nullptr || found->link == nullptr || found->computed ||
      (found->state != room::RoomState::kWaitingForInput &&
       found->state != room::RoomState::kTransferring)) {
    return;  // aborted while the engine was at it
  }
  const auto at = std::find(impl_->groups_.begin(), impl_->groups_.end(), group);
  KVD_CHECK(found->job_started && at != impl_->groups_.end());
  KVD_CHECK(token_begin < token_end && token_end <= found->tokens);
  // A chunk's unfinished last page waits for the next chunk: no destination byte is written twice.
  const kv::KvLayout& layout = impl_->pool_->layout();
  const std::uint32_t pages =
      token_end == found->tokens ? layout.pages_for(token_end) : token_end / layout.page_size;
  impl_->write_pages(found, static_cast<std::size_t>(at - impl_->groups_.begin()), pages);
  if (found->link != nullptr && found->link->end.ok()) found->link->pipeline->pump();
  impl_->settle();
}

void KvSender::computed(RoomId room, const SampledToken& first, Duration queued, Duration compute) {
  SenderRoom* found = impl_->find(room);
  if (found == nullptr || !found->job_started || found->computed) return;
  found->engine_done = found->computed = true;
  found->queued = queued;
  found->compute = compute;
  found->compute_ended = impl_->clock_->now();
  if (found->over) {
    impl_->over_.push_back(room);
  } else if (found->state == room::RoomState::kWaitingForInput ||
             found->state == room::RoomState::kTransferring) {
    found->first = first;
    if (found->first.top.size() > kMaxTopLogprobs) found->first.top.resize(kMaxTopLogprobs);
    log_debug("compute ended", {{"room", room}, {"compute_ms", to_ms(compute)}});
    impl_->write_remaining(found);
    if (found->link->end.ok()) found->link->pipeline->pump();
    // The pages are final from here on.
    found->digest = std::make_unique<Digester>(found->link->digest, impl_->pool_,
                                               impl_->pool_->pages(found->lease), found->tokens,
                                               found->streamed, found->id);
    found->link->closing.push_back(room);
  }
  impl_->settle();
}

void KvSender::compute_failed(RoomId room, Status why) {
  if (why.ok()) why = internal_error("the engine failed without a reason");
  impl_->engine_ends_.push_back({room, std::move(why)});
}

void KvSender::compute_stopped(RoomId room) { impl_->engine_ends_.push_back({room, Status()}); }

bool KvSender::on_message(const control::Received& message) {
  if (message.refused) {
    impl_->accept(message);
    impl_->settle();
    return true;
  }
  using enum proto::MessageType;
  switch (message.envelope.type) {
    case kRegister:
      impl_->on_register(message);
      break;
    case kStaleIncarnation:
      impl_->on_stale(message);
      break;
    case kOpenRoom:
    case kAllocate:
    case kAbort:
    case kHeartbeat:
      if (message.envelope.epoch.value == 0) {
        if (message.envelope.type == kHeartbeat) return false;
        impl_->messenger_->refuse(message, "unexpected", "this message belongs into a link");
        break;
      }
      if (SenderLink* link = impl_->accept(message)) {
        if (message.envelope.type == kOpenRoom) impl_->on_open_room(link, message);
        if (message.envelope.type == kAllocate) impl_->on_allocate(link, message);
        if (message.envelope.type == kAbort) impl_->on_abort(link, message);
      }
      break;
    default:
      return false;
  }
  impl_->settle();
  return true;
}

bool KvSender::poll() {
  const TimePoint now = impl_->clock_->now();
  bool busy = !impl_->engine_ends_.empty();
  impl_->engine_ends();
  for (auto& [peer, link] : impl_->links_) {
    busy = impl_->pump(link.get()) || busy;
    impl_->tend_link(link.get(), now);
  }
  impl_->check_deadlines(now);
  impl_->settle();
  return busy;
}

TimePoint KvSender::next_deadline() const {
  if (!impl_->engine_ends_.empty()) return impl_->clock_->now();
  TimePoint next = impl_->next_deadline_;
  for (const auto& [peer, link] : impl_->links_) {
    next = std::min({next, link->next_heartbeat, link->later_due,
                     link->last_heard + impl_->options_.dead_after});
    // A descriptor tells of completions, not of room in the send queue after EAGAIN.
    constexpr Duration kRetry{1'000'000};
    if (!link->pipeline->idle()) next = std::min(next, impl_->clock_->now() + kRetry);
    if (link->heard && !link->test_posted) next = std::min(next, impl_->clock_->now());
  }
  return next;
}

void KvSender::wait_fds(std::vector<int>* out) const {
  for (const auto& [peer, link] : impl_->links_) {
    if (const int fd = link->endpoint->wait_fd(); fd >= 0) out->push_back(fd);
  }
}

bool KvSender::may_wait() {
  if (!impl_->engine_ends_.empty()) return false;
  for (auto& [peer, link] : impl_->links_) {
    if (!link->endpoint->may_wait()) return false;
  }
  return true;
}

void KvSender::drain() {
  impl_->draining_ = true;
  // The process ends with its last room.
  for (auto& [peer, link] : impl_->links_) impl_->send_waiting(link.get());
  impl_->settle();
}

bool KvSender::idle() const { return impl_->rooms_.empty(); }

std::size_t KvSender::rooms() const { return impl_->rooms_.size(); }

std::size_t KvSender::waiting() const {
  return static_cast<std::size_t>(
      std::count_if(impl_->rooms_.begin(), impl_->rooms_.end(), [](const auto& entry) {
        const SenderRoom& room = *entry.second;
        return room.state == room::RoomState::kBootstrapping ||
               (room.state == room::RoomState::kWaitingForInput && !room.lease);
      }));
}

}  // namespace kvd::transfer
