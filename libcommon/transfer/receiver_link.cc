// Links of KvReceiver: who is there, Register, the verified test write, liveness, the fence.
#include <algorithm>
#include <string_view>
#include <utility>

#include "base/log.h"
#include "proto/ops_messages.h"
#include "transfer/faults.h"
#include "transfer/planted.h"
#include "transfer/receiver_impl.h"

namespace kvd::transfer {
namespace {

constexpr Duration kMaxBackoff{2'000'000'000};
constexpr std::string_view kLocal = "local";
constexpr std::uint32_t kMostFailures = 3;       // of `local`, before the next provider is taken
constexpr Duration kLocalAgain{60'000'000'000};  // a link made later tries `local` again

StatusCode code_of_refusal(const std::string& code) {
  if (code == "incompatible") return StatusCode::kIncompatible;
  if (code == "no_provider") return StatusCode::kNoProvider;
  if (code == "unauthorized") return StatusCode::kUnauthorized;
  return StatusCode::kUnavailable;
}

int gauge_of(LinkState state) {
  switch (state) {
    case LinkState::kDown:
      return 0;
    case LinkState::kConnecting:
    case LinkState::kRegistering:
    case LinkState::kTesting:
      return 1;
    case LinkState::kReady:
      return 2;
    case LinkState::kRefused:
      return 3;
  }
  return 0;
}

}  // namespace

ReceiverLink* KvReceiver::Impl::link_of(control::PeerRef ref) {
  for (auto& [address, link] : links_) {
    if (link->ref == ref && ref != 0) return link.get();
  }
  return nullptr;
}

fabric::Domain* KvReceiver::Impl::domain_of(const std::string& provider) const {
  for (fabric::Domain* domain : domains_) {
    if (domain->capabilities().provider == provider) return domain;
  }
  return nullptr;
}

bool KvReceiver::Impl::asking(const ReceiverLink& link) const {
  return link.state == LinkState::kConnecting || link.state == LinkState::kDown ||
         link.state == LinkState::kRefused;
}

void KvReceiver::Impl::set_state(ReceiverLink* link, LinkState state, Status why) {
  link->state = state;
  link->why = std::move(why);
  metrics_.link_state(link->address, gauge_of(state));
}

// Dialling takes a moment, or the prefill was not there: it is asked as soon as it is.
bool KvReceiver::Impl::may_ask(const ReceiverLink& link) const {
  return link.unasked && messenger_->channel().connected(link.ref);
}

void KvReceiver::Impl::ask(ReceiverLink* link, TimePoint now) {
  // Until somebody is there to be asked, looking costs nothing: no backoff.
  link->next_ask = now + options_.reconnect;
  if (link->ref == 0) {
    auto ref = messenger_->channel().dial(link->address);
    if (!ref.ok()) {
      link->why = ref.status();
      return;
    }
    link->ref = *ref;
  }
  const Status sent = messenger_->send(link->ref, Incarnation{}, proto::Describe{});
  link->unasked = sent.code() == StatusCode::kUnavailable;
  if (sent.ok()) {
    link->asked = true;
    link->asked_at = now;
    if (link->state != LinkState::kConnecting) link->next_ask = now + link->backoff;
  }
}

// Ours, less `local` where it cannot reach this prefill: a step down is never silent.
std::vector<std::string> KvReceiver::Impl::usable_providers(ReceiverLink* link,
                                                            const proto::Described& described) {
  std::vector<std::string> ours = options_.providers;
  const auto local = std::find(ours.begin(), ours.end(), kLocal);
  const auto has = [](const std::vector<std::string>& names, std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  link->another_provider = std::any_of(ours.begin(), ours.end(), [&](const std::string& name) {
    return name != kLocal && has(described.providers, name);
  });
  const bool offered = local != ours.end() && has(described.providers, kLocal);
  // With nothing else in common it is tried, and its own error is the reason that is shown.
  if (!offered || options_.require_rdma || !link->another_provider) return ours;
  Status why = clock_->now() < link->local_again ? link->no_local : Status();
  if (why.ok()) why = fabric::check_local_scope(described.scope);
  if (why.ok()) return ours;
  if (std::exchange(link->told, why.message()) != why.message()) {
    log_warn("local does not carry this link, the next provider does",
             {{"prefill", link->address}, {"why", why.message()}});
  }
  ours.erase(local);
  return ours;
}

// After a link over `local` has ended. True when the next try goes over another provider.
bool KvReceiver::Impl::give_local_up(ReceiverLink* link, const Status& why) {
  const bool setting_up =
      link->state == LinkState::kRegistering || link->state == LinkState::kTesting;
  if (link->provider != kLocal || !setting_up || !link->another_provider) return false;
  // Anything but a reason of its own may pass: the prefill was restarted, or stopped.
  if (++link->local_failures < kMostFailures && why.code() != StatusCode::kNoProvider) return false;
  link->no_local = why;
  link->local_again = clock_->now() + kLocalAgain;
  link->local_failures = 0;
  return true;
}

Status KvReceiver::Impl::check_described(ReceiverLink* link, const proto::Described& described) {
  if (described.role != "prefill") {
    return {StatusCode::kIncompatible,
            "the worker there is a " + described.role.substr(0, 16) + ", not a prefill"};
  }
  const std::string diff = compare_models(pool_->layout(), options_.fingerprint, described.layout,
                                          described.fingerprint);
  if (!diff.empty()) return {StatusCode::kIncompatible, "model or KV layout differ: " + diff};
  auto chosen = fabric::choose_provider(usable_providers(link, described), described.providers,
                                        options_.require_rdma);
  if (!chosen.ok()) return chosen.status();
  const fabric::Domain* domain = domain_of(*chosen);
  if (domain == nullptr) return {StatusCode::kNoProvider, "provider " + *chosen + " is not open"};
  if (!domain->capabilities().delivery_complete) {
    return {StatusCode::kNoProvider, "provider " + *chosen + " cannot prove delivery"};
  }
  link->provider = *chosen;
  return {};
}

bool KvReceiver::Impl::on_described(ReceiverLink* link, const control::Received& received) {
  if (!asking(*link)) {
    if (link->peer != received.envelope.from) {
      note_end(link, unavailable("the prefill was restarted"));
    }
    return false;  // somebody else asked
  }
  if (!link->asked) return false;
  link->asked = false;
  auto body = proto::decode_body<proto::Described>(received.envelope);
  if (!body.ok() || !received.envelope.from) {
    messenger_->refuse(received, "malformed",
                       body.ok() ? "no incarnation" : body.status().message());
    return true;
  }
  const TimePoint now = clock_->now();
  link->round_trip = now - link->asked_at;
  if (link->peer != received.envelope.from) {
    // What local did with the run before says nothing of this one.
    link->no_local = Status();
    link->local_failures = 0;
    link->told.clear();
  }
  link->peer = received.envelope.from;
  link->context = body->context;
  link->load = body->load;
  const auto later = [&](LinkState state, const Status& why) {
    if (link->state != state || link->why.message() != why.message()) {
      log_warn("no link to the prefill", {{"prefill", link->address}, {"why", why.message()}});
    }
    set_state(link, state, why);
    link->backoff = kMaxBackoff;
    link->next_ask = now + link->backoff;
  };
  if (const Status fits = check_described(link, *body); !fits.ok()) {
    later(LinkState::kRefused, fits);
  } else if (body->load.draining) {
    later(LinkState::kDown, unavailable("the prefill drains"));
  } else if (const Status begun = register_link(link); !begun.ok()) {
    close_link(link);
    later(LinkState::kDown, begun);
  }
  return true;
}

// An endpoint, a key and a test slot of its own for this peer; then Register.
Status KvReceiver::Impl::register_link(ReceiverLink* link) {
  if constexpr (planted::kBuilt) planted::close_now();
  link->domain = domain_of(link->provider);
  auto endpoint = link->domain->open_endpoint();
  if (!endpoint.ok()) return endpoint.status();
  link->endpoint = std::move(endpoint).value();
  const std::uint64_t slots_offset = static_cast<std::uint64_t>(slot_memory_ - pool_->memory());
  const std::uint64_t bytes = slots_offset + std::uint64_t{slots_.size()} * proto::kSlotBytes;
  auto region = link->domain->register_memory(pool_->memory(), bytes, true, link->endpoint.get());
  if (!region.ok()) return region.status();
  link->region = std::move(region).value();
  link->test = slots_.lease(link->owner);
  if (!link->test) return unavailable("no metadata slot is free for the test write");
  const fabric::RemoteRegion remote = link->region->remote();
  proto::Register& request = link->request;
  request = {};
  request.epoch = ++link->highest_epoch;  // each attempt has its own: late repeats are told apart
  request.fingerprint = options_.fingerprint;
  request.model = options_.model;
  request.layout = to_info(pool_->layout());
  request.provider = link->provider;
  request.address = link->endpoint->address();
  request.region_base = remote.base;
  request.region_bytes = remote.bytes;
  request.region_key = remote.key;
  request.page_count = pool_->page_count();
  request.slots_offset = slots_offset;
  request.slot_bytes = proto::kSlotBytes;
  request.slot_count = slots_.size();
  request.test_slot = link->test->slot;
  request.test_generation = link->test->generation;
  request.test_nonce = rng_->next();
  request.digest = std::string(to_string(options_.digest));
  request.dead_after_ms = static_cast<std::uint32_t>(options_.dead_after.count() / 1'000'000);
  const TimePoint now = clock_->now();
  set_state(link, LinkState::kRegistering, {});
  link->step_deadline = now + options_.dead_after;
  link->next_ask = now;
  return {};
}

void KvReceiver::Impl::on_registered(ReceiverLink* link, const control::Received& received) {
  const proto::Envelope& envelope = received.envelope;
  if (envelope.from != link->peer || asking(*link)) return metrics_.ignored_event();
  if (link->state != LinkState::kRegistering) {
    if (link->epoch < envelope.epoch) note_end(link, unavailable("the peer is in a newer epoch"));
    return;
  }
  auto body = proto::decode_body<proto::Registered>(envelope);
  if (!body.ok()) return messenger_->refuse(received, "malformed", body.status().message());
  if (envelope.epoch.value <= link->highest_epoch) return metrics_.ignored_event();
  link->highest_epoch = envelope.epoch.value;
  if (body->provider != link->provider) {
    return note_end(link, {StatusCode::kIncompatible, "the peer chose another provider"});
  }
  auto handle = link->endpoint->insert(body->address);
  if (!handle.ok()) return note_end(link, handle.status());
  const TimePoint now = clock_->now();
  link->epoch = envelope.epoch;
  link->sequence = LinkSequence();
  link->last_heard = now;
  link->step_deadline = now + 2 * options_.dead_after;
  set_state(link, LinkState::kTesting, {});
  heartbeat(link, now);  // tells prefill that its address is known here: the test write may come
}

void KvReceiver::Impl::on_refused(ReceiverLink* link, const control::Received& received) {
  if (link->state != LinkState::kRegistering || received.envelope.from != link->peer) return;
  auto body = proto::decode_body<proto::Refused>(received.envelope);
  const std::string code = body.ok() ? body->code : "malformed";
  const std::string text = body.ok() ? body->text : body.status().message();
  const Status why(code_of_refusal(code), "refused by prefill: " + text.substr(0, 500));
  note_end(link, why);
}

void KvReceiver::Impl::on_stale(ReceiverLink* link, const control::Received& received) {
  const auto body = proto::decode_body<proto::StaleIncarnation>(received.envelope);
  if (!body.ok() || asking(*link) || body->incarnation == link->peer.value) return;
  note_end(link, unavailable("the prefill was restarted"));
}

void KvReceiver::Impl::on_error(ReceiverLink* link, const control::Received& received) {
  const auto body = proto::decode_body<proto::Error>(received.envelope);
  if (!body.ok() || asking(*link)) return;
  log_warn("peer reports an error", {{"prefill", link->address},
                                     {"code", body->code.substr(0, 32)},
                                     {"text", body->text.substr(0, 200)}});
  const bool of_this_link = received.envelope.epoch.value != 0 &&
                            received.envelope.epoch == link->epoch && body->code == "unexpected";
  if (of_this_link) note_end(link, unavailable("the prefill has no such link any more"));
  if (link->state == LinkState::kRegistering && received.envelope.epoch.value == 0) {
    note_end(link,
             unavailable("Register was answered with an error: " + body->text.substr(0, 200)));
  }
}

bool KvReceiver::Impl::accept(ReceiverLink* link, const control::Received& received) {
  const proto::Envelope& envelope = received.envelope;
  const bool linked = link->state == LinkState::kTesting || link->state == LinkState::kReady;
  if (!linked || !link->end.ok() || envelope.from != link->peer || envelope.epoch < link->epoch) {
    metrics_.ignored_event();
    return false;
  }
  if (link->epoch < envelope.epoch) {
    note_end(link, unavailable("the peer is in a newer epoch"));
    return false;
  }
  switch (link->sequence.arrived(envelope.seq)) {
    case LinkSequence::Arrival::kRepeat:
      metrics_.ignored_event();
      return false;
    case LinkSequence::Arrival::kGap:
      note_end(link, unavailable("a control message was lost"));
      return false;
    case LinkSequence::Arrival::kNext:
      break;
  }
  link->last_heard = clock_->now();
  return true;
}

void KvReceiver::Impl::on_test_record(ReceiverLink* link) {
  const auto record = proto::decode_record(slots_.record(link->test->slot));
  const bool good = record.ok() && !record->room && record->epoch == link->epoch &&
                    record->incarnation == link->peer &&
                    record->generation == link->test->generation &&
                    record->digest == link->request.test_nonce;
  if (!good) {
    return note_end(link, {StatusCode::kCorrupted, "the test write did not arrive as it was sent"});
  }
  slots_.free(*link->test);  // the record proves that nothing else is on its way there
  link->test.reset();
  link->backoff = options_.reconnect;
  link->step_deadline = kNever;
  set_state(link, LinkState::kReady, {});
  log_info("link ready", {{"prefill", link->address},
                          {"peer", link->peer},
                          {"epoch", link->epoch.value},
                          {"provider", link->provider}});
  link->local_failures = 0;
  if (link->provider == kLocal) link->told.clear();
  const bool told = !link->told.empty() && options_.providers.front() == kLocal;
  if (link->provider != options_.providers.front() && !told) {
    log_warn("link is not carried by this worker's best provider: the prefill does not have it",
             {{"prefill", link->address},
              {"best", options_.providers.front()},
              {"provider", link->provider}});
  }
}

void KvReceiver::Impl::note_end(ReceiverLink* link, Status why) {
  if (!link->end.ok()) return;
  link->end = std::move(why);
  links_to_end_ = true;
}

// Closing is the fence: key and endpoint go first; only then pages and slots may be given back.
void KvReceiver::Impl::close_link(ReceiverLink* link) {
  fence_proof_.reset();
  if (link->endpoint != nullptr) {
    const fabric::Capabilities& capabilities = link->domain->capabilities();
    if (capabilities.target_copies) {
      fence_proof_ = kv::Proof::kCopyReturned;  // of poll(), on this thread
    } else if (capabilities.endpoint_close_fences) {
      fence_proof_ = kv::Proof::kEndpointClosed;
    } else if (capabilities.region_close_fences) {
      fence_proof_ = kv::Proof::kRegionClosed;
    }
  }
  if constexpr (faults::kBuilt) {
    if (faults::unfenced()) faults::keep_open(std::move(link->endpoint), std::move(link->region));
  }
  if constexpr (planted::kBuilt) {
    if (planted::is(planted::Defect::kPagesEarly)) {
      planted::close_later(std::move(link->endpoint), std::move(link->region));
    }
  }
  link->region.reset();
  link->endpoint.reset();
  link->gathering.end();
  link->trial = {};
  link->write_bytes = 0;
  // A test slot that no proof covers stays out of use for the life of the process.
  if (link->test && (fence_proof_ || link->request.epoch == 0)) slots_.free(*link->test);
  link->test.reset();
}

void KvReceiver::Impl::end_link(ReceiverLink* link) {
  const Status why = link->end;
  log_info("link ended", {{"prefill", link->address},
                          {"epoch", link->epoch.value},
                          {"rooms", link->rooms.size()},
                          {"why", why.message()}});
  close_link(link);
  const room::Event event = fence_proof_ ? room::Event::kFenced : room::Event::kLost;
  const std::set<RoomKey> ended = link->rooms;
  for (RoomKey key : ended) {
    ReceiverRoom* room = find(key);
    if (room == nullptr || room->over) continue;
    if (room->why.ok()) room->why = unavailable("the link to prefill ended: " + why.message());
    apply(room, event);
    // What no proof covers stays quarantined, whatever becomes of the link.
    if (!room->over) room->link = nullptr;
  }
  link->rooms.clear();
  link->by_room.clear();
  link->epoch = {};
  link->request = {};
  link->end = Status();
  link->asked = false;
  link->step_deadline = link->next_heartbeat = kNever;
  metrics_.link_ended();
  const bool stepped_down = give_local_up(link, why);
  const bool refused = why.code() == StatusCode::kIncompatible ||
                       why.code() == StatusCode::kNoProvider ||
                       why.code() == StatusCode::kUnauthorized;
  set_state(link, refused ? LinkState::kRefused : LinkState::kDown, why);
  if (refused) link->backoff = kMaxBackoff;
  link->next_ask = clock_->now() + link->backoff;
  link->backoff = std::min(2 * link->backoff, kMaxBackoff);
  if (stepped_down) {
    set_state(link, LinkState::kDown, why);
    link->backoff = options_.reconnect;
    link->next_ask = clock_->now();
  }
}

void KvReceiver::Impl::heartbeat(ReceiverLink* link, TimePoint now) {
  link->next_heartbeat = now + options_.heartbeat;
  const Status sent =
      messenger_->send_in_link(link->ref, link->peer, link->epoch, link->sequence.next_out(),
                               RoomId{}, proto::Heartbeat{host_->load()});
  if (sent.ok()) {
    link->sequence.sent();
  } else if (sent.code() == StatusCode::kUnavailable) {
    // The connection is gone: a process that died is known now, not only by its silence.
    note_end(link, sent.with_context("the prefill is gone"));
  }
}

void KvReceiver::Impl::tend_link(ReceiverLink* link, TimePoint now) {
  if (!link->end.ok()) return;
  switch (link->state) {
    case LinkState::kConnecting:
    case LinkState::kDown:
    case LinkState::kRefused:
      if (!link->removing && (now >= link->next_ask || may_ask(*link))) ask(link, now);
      return;
    case LinkState::kRegistering:
      if (now >= link->step_deadline) {
        return note_end(link, unavailable("the prefill does not answer Register"));
      }
      if (now >= link->next_ask) {
        link->next_ask = now + options_.heartbeat;
        (void)messenger_->send(link->ref, link->peer, link->request);
      }
      return;
    case LinkState::kTesting:
    case LinkState::kReady:
      break;
  }
  if (now - link->last_heard > options_.dead_after) {
    return note_end(link,
                    unavailable("the prefill has been silent for " +
                                std::to_string(options_.dead_after.count() / 1'000'000) + " ms"));
  }
  if (now >= link->step_deadline) {
    return note_end(link, unavailable("the test write did not come"));
  }
  if (now >= link->next_heartbeat) heartbeat(link, now);
  if (link->removing && link->rooms.empty()) note_end(link, unavailable("the prefill was removed"));
}

bool KvReceiver::Impl::has_long_writes(const ReceiverLink& link) {
  // Between hosts under bbr a provider wants shorter writes, and each answer at once.
  const bool answers = link.domain->capabilities().best_write_bytes < Gathering::kLongWrite;
  return link.write_bytes >= (answers ? Gathering::kLongWrite : Gathering::kLongAwake);
}

bool KvReceiver::Impl::may_gather(const ReceiverLink& link) {
  if (!has_long_writes(link) || !link.trial.gathers()) return false;
  std::uint64_t bytes = 0;
  for (const RoomKey key : link.rooms) {
    const ReceiverRoom* room = find(key);
    if (room == nullptr || !room->exposed || room->over) continue;
    bytes += pool_->layout().page_bytes() * pool_->layout().pages_for(room->request.prompt.size());
    if (bytes >= Gathering::kMuch) return true;
  }
  return false;
}

bool KvReceiver::Impl::poll_endpoint(ReceiverLink* link) {
  if (link->gathering.active()) {
    if (link->gathering.lasts(clock_->now())) return false;
    link->gathering.end();
  }
  bool busy = false;
  const bool expects = link->domain != nullptr && !link->rooms.empty();
  const bool by_looks = expects && fabric::takes_by_looks(link->domain->capabilities());
  int looks = expects ? fabric::looks_for_data(link->domain->capabilities()) : 1;
  while (link->endpoint != nullptr && link->end.ok()) {
    const TimePoint began = by_looks ? clock_->now() : TimePoint{0};
    const std::size_t count = link->endpoint->poll(completions_);
    const Duration took = by_looks ? clock_->now() - began : Duration(0);
    for (std::size_t i = 0; i < count && link->end.ok(); ++i) {
      if (completions_[i].kind == fabric::CompletionKind::kFault) {
        note_end(link, completions_[i].status.with_context("the endpoint failed"));
      } else if (completions_[i].kind == fabric::CompletionKind::kRemoteData) {
        on_record(link, proto::slot_of(completions_[i].data),
                  proto::generation_of(completions_[i].data));
      }
    }
    busy = busy || count != 0;
    if (count == completions_.size()) continue;
    if (took >= Gathering::kLongLook && may_gather(*link)) {
      link->gathering.begin(began, link->write_bytes >= Gathering::kLongWrite);
      break;
    }
    if (count != 0 || --looks == 0) break;
  }
  return busy;
}

}  // namespace kvd::transfer
