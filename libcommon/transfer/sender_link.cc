// Links of KvSender: Register, the test write, sequence and liveness, the end.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "proto/ops_messages.h"
#include "transfer/sender_impl.h"

namespace kvd::transfer {
namespace {

// a * b + c, or false when it does not fit.
bool fits(std::uint64_t a, std::uint64_t b, std::uint64_t c, std::uint64_t* out) {
  return !__builtin_mul_overflow(a, b, out) && !__builtin_add_overflow(*out, c, out);
}

Status check_region(const proto::Register& request, const kv::KvLayout& layout) {
  std::uint64_t pages = 0, slots = 0, end = 0;
  if (request.page_count == 0 || !fits(request.page_count, layout.page_bytes(), 0, &pages) ||
      request.slots_offset < pages) {
    return invalid_argument("the pages do not fit before the slots");
  }
  if (request.slot_bytes != proto::kSlotBytes || request.slot_count == 0 ||
      request.slot_count >= (1u << proto::kSlotBits)) {
    return invalid_argument("slot size or count out of range");
  }
  if (!fits(request.slot_count, request.slot_bytes, request.slots_offset, &slots) ||
      slots > request.region_bytes || !fits(1, request.region_base, request.region_bytes, &end)) {
    return invalid_argument("the slots do not fit into the region");
  }
  if (request.test_slot >= request.slot_count ||
      request.test_generation >= (1u << proto::kGenerationBits)) {
    return invalid_argument("test slot out of range");
  }
  if (request.address.empty() || request.address.size() > 256) {
    return invalid_argument("fabric address empty or longer than 256 bytes");
  }
  if (request.epoch >= kMaxEpoch) return invalid_argument("epoch out of range");
  if (!parse_digest(request.digest)) return invalid_argument("unknown digest mode");
  return {};
}

}  // namespace

Staging::Staging(std::size_t cells, bool shared) : used_(cells, false) {
  const std::size_t bytes = cells * proto::kSlotBytes;
  if (shared) {
    auto memory = device::HostBuffer::allocate(bytes, device::Backing::kSharedSmall);
    // Without it the registration fails, and with that reason the domain is not offered.
    if (memory.ok()) memory_ = std::move(*memory);
  }
  if (memory_.data() == nullptr) memory_ = device::HostBuffer::allocate(bytes).value();
}

std::byte* Staging::take() {
  for (std::size_t tried = 0; tried < used_.size(); ++tried) {
    const std::size_t index = next_;
    next_ = (next_ + 1) % used_.size();
    if (used_[index]) continue;
    used_[index] = true;
    return memory_.data() + index * proto::kSlotBytes;
  }
  return nullptr;
}

void Staging::give_back(std::byte* cell) {
  if (cell == nullptr) return;
  const auto index = static_cast<std::size_t>(cell - memory_.data()) / proto::kSlotBytes;
  KVD_CHECK(index < used_.size() && used_[index]);
  used_[index] = false;
}

fabric::Domain* KvSender::Impl::domain_of(const std::string& provider) const {
  for (fabric::Domain* domain : domains_) {
    if (domain->capabilities().provider == provider) return domain;
  }
  return nullptr;
}

Status KvSender::Impl::check_register(const proto::Register& request, std::string* code,
                                      std::string* diff) const {
  *diff =
      compare_models(pool_->layout(), options_.fingerprint, request.layout, request.fingerprint);
  if (!diff->empty()) {
    *code = "incompatible";
    return {StatusCode::kIncompatible, "model or KV layout differ: " + *diff};
  }
  *code = "malformed";
  KVD_RETURN_IF_ERROR(check_region(request, pool_->layout()));
  *code = "no_provider";
  const fabric::Domain* domain = domain_of(request.provider);
  if (domain == nullptr) {
    return {StatusCode::kNoProvider,
            "provider " + request.provider.substr(0, 64) + " is not in use here"};
  }
  const fabric::Capabilities& capabilities = domain->capabilities();
  if (!capabilities.delivery_complete) {
    return {StatusCode::kNoProvider,
            "provider " + capabilities.provider + " cannot prove delivery here"};
  }
  if (options_.require_rdma && !capabilities.rdma) {
    return {StatusCode::kNoProvider,
            "--require-rdma is given here and provider " + capabilities.provider + " is not RDMA"};
  }
  return {};
}

void KvSender::Impl::refuse_register(const control::Received& received, const std::string& code,
                                     const std::string& text, const std::string& diff) {
  log_warn("link refused", {{"peer", received.envelope.from}, {"code", code}, {"why", text}});
  (void)messenger_->send(received.from, received.envelope.from, proto::Refused{code, text, diff});
}

void KvSender::Impl::on_register(const control::Received& received) {
  const Incarnation from = received.envelope.from;
  auto body = proto::decode_body<proto::Register>(received.envelope);
  if (!body.ok() || !from) {
    messenger_->refuse(received, "malformed",
                       body.ok() ? "register without incarnation" : body.status().message());
    return;
  }
  const proto::Register& request = *body;
  const auto it = links_.find(from);
  SenderLink* link = it == links_.end() ? nullptr : it->second.get();
  if (link != nullptr && link->identity != received.identity) {
    messenger_->refuse(received, "unauthorized", "another key holds the link of this incarnation");
    return;
  }
  const auto seen = seen_.find(from);
  if (seen != seen_.end() && request.epoch <= seen->second.request_epoch) {
    const bool same = link != nullptr && link->end.ok() && link->request.epoch == request.epoch &&
                      link->request.address == request.address &&
                      link->request.region_key == request.region_key;
    if (same) {
      link->ref = received.from;
      answer_registered(link);
    } else {
      // A late repeat of a Register that a newer one has replaced, or whose link is over.
      metrics_.ignored_event();
    }
    return;
  }
  if (draining_) {
    return refuse_register(received, "draining", "this worker drains and takes no new links", "");
  }
  std::string code, diff;
  if (const Status checked = check_register(request, &code, &diff); !checked.ok()) {
    return refuse_register(received, code, checked.message(), diff);
  }
  if (link != nullptr) {
    // The old endpoint closes before the new one opens: a provider that reconnects by itself must
    // not revive the old stream.
    link->end = unavailable("the peer registered again");
    end_link(link);
  }
  if (const Status opened = open_link(received, request); !opened.ok()) {
    // What is full now may have room later; it is no reason to choose another provider for good.
    const bool never = opened.code() == StatusCode::kNoProvider;
    refuse_register(received, never ? "no_provider" : "busy", opened.message(), "");
  }
}

Status KvSender::Impl::open_link(const control::Received& received,
                                 const proto::Register& request) {
  if (links_.size() >= kMaxLinks) {
    return {StatusCode::kResourceExhausted, "this worker has no room for another link"};
  }
  auto link = std::make_unique<SenderLink>();
  link->domain = domain_of(request.provider);
  auto endpoint = link->domain->open_endpoint();
  if (!endpoint.ok()) return endpoint.status();
  auto handle = (*endpoint)->insert(request.address);
  if (!handle.ok()) return handle.status();
  const TimePoint now = clock_->now();
  link->peer = received.envelope.from;
  link->ref = received.from;
  link->identity = received.identity;
  link->request = request;
  link->endpoint = std::move(endpoint).value();
  link->handle = *handle;
  link->pipeline = std::make_unique<fabric::WritePipeline>(
      link->endpoint.get(), link->handle, link->capabilities(), clock_, options_.dead_after);
  link->digest = *parse_digest(request.digest);
  link->region = {request.region_base, request.region_bytes, request.region_key};
  link->last_heard = link->last_progress = now;
  link->next_heartbeat = now + options_.heartbeat;
  Seen& seen = seen_[link->peer];
  seen.epoch = std::max(request.epoch, seen.epoch) + 1;
  seen.request_epoch = request.epoch;
  link->epoch.value = seen.epoch;
  // Epochs of peers long gone are forgotten first; a peer always brings its own highest epoch
  // along.
  for (auto old = seen_.begin(); seen_.size() > 4 * kMaxLinks && old != seen_.end();) {
    const bool live = old->first == link->peer || links_.contains(old->first);
    old = live ? std::next(old) : seen_.erase(old);
  }
  log_info("link registered", {{"peer", link->peer},
                               {"epoch", link->epoch.value},
                               {"provider", link->capabilities().provider}});
  answer_registered(link.get());
  links_[link->peer] = std::move(link);
  return {};
}

void KvSender::Impl::answer_registered(SenderLink* link) {
  proto::Registered answer;
  answer.provider = link->capabilities().provider;
  answer.address = link->endpoint->address();
  answer.dead_after_ms = static_cast<std::uint32_t>(options_.dead_after.count() / 1'000'000);
  // Sequence 0: it may have to be sent again. A loss shows as a repeated Register.
  (void)messenger_->send_in_link(link->ref, link->peer, link->epoch, 0, RoomId{}, answer);
}

SenderLink* KvSender::Impl::accept(const control::Received& received) {
  const proto::Envelope& envelope = received.envelope;
  const auto it = links_.find(envelope.from);
  SenderLink* link = it == links_.end() ? nullptr : it->second.get();
  if (link == nullptr || !link->end.ok()) {
    // Tells decode at once that its link is over; silence would tell it in two seconds.
    (void)messenger_->send_in_link(received.from, envelope.from, envelope.epoch, 0, envelope.room,
                                   proto::Error{"unexpected", "no such link", envelope.seq});
    return nullptr;
  }
  if (link->identity != received.identity) {
    messenger_->refuse(received, "unauthorized", "another key holds this link");
    return nullptr;
  }
  if (envelope.epoch < link->epoch) {
    metrics_.ignored_event();
    return nullptr;
  }
  if (link->epoch < envelope.epoch) {
    link->end = unavailable("the peer is in a newer epoch");
    links_to_end_ = true;
    return nullptr;
  }
  switch (link->sequence.arrived(envelope.seq)) {
    case LinkSequence::Arrival::kRepeat:
      metrics_.ignored_event();
      return nullptr;
    case LinkSequence::Arrival::kGap:
      link->end = unavailable("a control message was lost");
      links_to_end_ = true;
      return nullptr;
    case LinkSequence::Arrival::kNext:
      break;
  }
  link->last_heard = clock_->now();
  link->ref = received.from;
  link->heard = true;
  return link;
}

void KvSender::Impl::on_stale(const control::Received& received) {
  const auto body = proto::decode_body<proto::StaleIncarnation>(received.envelope);
  if (!body.ok()) return;
  for (auto& [peer, link] : links_) {
    if (link->ref != received.from || peer.value == body->incarnation) continue;
    link->end = unavailable("the peer was restarted");
    links_to_end_ = true;
  }
}

// Order matters: the endpoint closes first, so that nothing is on its way when rooms and pages go.
void KvSender::Impl::end_link(SenderLink* link) {
  log_info("link ended",
           {{"peer", link->peer}, {"epoch", link->epoch.value}, {"why", link->end.message()}});
  link->pipeline.reset();
  link->endpoint.reset();
  staging_.give_back(link->test_cell);
  const std::set<RoomId> ended = link->rooms;
  for (RoomId id : ended) {
    SenderRoom* room = find_on(link, id);
    if (room == nullptr) continue;
    if (!room->over) {
      if (room->why.ok()) {
        room->code = "transfer";
        room->why = unavailable("the link ended: " + link->end.message());
      }
      apply(room, room::Event::kLinkEnd);
    }
    room->link = nullptr;
  }
  metrics_.link_ended();
  links_.erase(link->peer);
}

void KvSender::Impl::post_test(SenderLink* link) {
  link->test_cell = staging_.take();
  if (link->test_cell == nullptr) return;  // cells come back as rooms end
  proto::CommitRecord record;
  record.epoch = link->epoch;
  record.incarnation = messenger_->self();
  record.generation = link->request.test_generation;
  record.digest = link->request.test_nonce;
  record.posted_at_ns = static_cast<std::uint64_t>(clock_->now().ns);
  record.boot_id = boot_id();
  proto::encode_record(
      record, std::span<std::byte, proto::kRecordBytes>(link->test_cell, proto::kRecordBytes));
  fabric::QueuedWrite write;
  write.local.push_back({link->test_cell, proto::kRecordBytes});
  write.remote.push_back({link->region.base + link->request.slots_offset +
                              std::uint64_t{link->request.test_slot} * proto::kSlotBytes,
                          proto::kRecordBytes, link->region.key});
  write.delivery_complete = true;
  if (link->capabilities().remote_cq_data) {
    write.remote_data = proto::remote_data(link->request.test_slot, link->request.test_generation);
  }
  write.tag = kTestTag;
  link->pipeline->enqueue(kLinkStream, std::move(write));
  link->test_posted = true;
}

void KvSender::Impl::send_later(SenderLink* link, Duration most) {
  link->later_due = std::min(link->later_due, clock_->now() + most);
  constexpr std::size_t kMost = proto::RoomOpened::kMaxDone;
  // The process ends with its last room.
  if (draining_ || link->opened.size() == kMost || link->done.size() == kMost) send_waiting(link);
}

void KvSender::Impl::send_waiting(SenderLink* link) {
  if (link->opened.empty() && link->done.empty()) return;
  link->later_due = kNever;
  const auto opened = std::exchange(link->opened, {});
  auto done = std::exchange(link->done, {});
  for (const auto& [id, allocated] : opened) {
    const SenderRoom* room = find_on(link, id);
    if (room == nullptr) continue;
    const Duration waited = allocated ? clock_->now() - room->opened : Duration(0);
    send(link, id,
         proto::RoomOpened{room->request, allocated, static_cast<std::uint64_t>(waited.count()),
                           std::exchange(done, {})});
  }
  for (const auto& [id, each] : done) send(link, RoomId{id}, each);
}

void KvSender::Impl::tend_link(SenderLink* link, TimePoint now) {
  if (!link->end.ok()) return;
  if (now - link->last_heard > options_.dead_after) {
    link->end = unavailable("the peer has been silent for " +
                            std::to_string(options_.dead_after.count() / 1'000'000) + " ms");
    links_to_end_ = true;
    return;
  }
  if (link->pipeline->idle()) {
    link->last_progress = now;
  } else if (now - link->last_progress > 5 * options_.dead_after) {
    // A provider may lose a write without a word; the room behind it would wait for ever.
    link->end = unavailable("writes to the peer do not complete");
    links_to_end_ = true;
    return;
  }
  if (link->heard && !link->test_posted) post_test(link);
  if (now >= std::min(link->later_due, link->next_heartbeat)) send_waiting(link);
  if (!link->end.ok()) return;
  if (now >= link->next_heartbeat) {
    link->next_heartbeat = now + options_.heartbeat;
    const Status sent =
        messenger_->send_in_link(link->ref, link->peer, link->epoch, link->sequence.next_out(),
                                 RoomId{}, proto::Heartbeat{host_->load()});
    if (sent.ok()) {
      link->sequence.sent();
    } else if (sent.code() == StatusCode::kUnavailable) {
      link->end = sent.with_context("the decode is gone");
      links_to_end_ = true;
    }
  }
}

}  // namespace kvd::transfer
