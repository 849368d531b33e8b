#include "node/route_control.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/log.h"
#include "base/rng.h"
#include "base/units.h"
#include "node/key_roles.h"

namespace kvd::node {
namespace {

constexpr int kMessagesPerStep = 64;
// ZeroMQ reconnects when TCP says that the peer is gone; a host that vanished says nothing.
constexpr Duration kRedialInterval{5'000'000'000};
// Requests wait for the answer of a suspect.
constexpr Duration kSuspectInterval{10'000'000};

Status check_addresses(const char* flag, const std::vector<std::string>& addresses) {
  for (const std::string& address : addresses) {
    const Result<HostPort> parsed = parse_host_port(address);
    if (!parsed.ok()) return parsed.status().with_context(flag);
    if (parsed->port == 0) {
      return invalid_argument(std::string(flag) + " " + address + ": port 0 names no worker");
    }
  }
  return {};
}

}  // namespace

RouteControl::RouteControl(RouteControlOptions options, RouteMembers* members, const Clock* clock,
                           RouteControlHooks hooks)
    : options_(std::move(options)),
      members_(members),
      clock_(clock),
      hooks_(std::move(hooks)),
      incarnation_{secure_random_u63()},
      loop_(clock, LoopOptions{Duration(0), false, Duration(100'000'000)}) {}

Result<std::unique_ptr<RouteControl>> RouteControl::start(RouteControlOptions options,
                                                          RouteMembers* members, Metrics* metrics,
                                                          const Clock* clock,
                                                          RouteControlHooks hooks) {
  KVD_RETURN_IF_ERROR(check_addresses("--prefill", options.prefills));
  KVD_RETURN_IF_ERROR(check_addresses("--decode", options.decodes));
  std::unique_ptr<RouteControl> made(
      new RouteControl(std::move(options), members, clock, std::move(hooks)));
  KVD_RETURN_IF_ERROR(made->open(metrics));
  made->thread_ = std::thread([raw = made.get()] { raw->loop_.run(*raw); });
  return made;
}

Status RouteControl::open(Metrics* metrics) {
  control::ZmqOptions zmq;
  zmq.listen = options_.listen;
  zmq.keys = options_.keys;
  Result<std::unique_ptr<control::Channel>> channel = control::open_zmq_channel(zmq);
  if (!channel.ok()) return channel.status();
  channel_ = std::move(*channel);
  address_ = channel_->address();
  messenger_ = std::make_unique<control::Messenger>(channel_.get(), incarnation_, clock_, metrics);
  for (const std::string& address : options_.prefills) members_->add_listed("prefill", address);
  for (const std::string& address : options_.decodes) members_->add_listed("decode", address);
  if (!options_.listen.empty()) {
    registry_ = std::make_unique<Registry>(messenger_.get(), options_.dead_after,
                                           options_.keys ? &*options_.keys : nullptr);
  }
  if (!options_.join.empty()) {
    client_ = std::make_unique<RegistryClient>(messenger_.get(), options_.join, clock_,
                                               options_.dead_after);
    KVD_RETURN_IF_ERROR(client_->open().with_context("--join"));
  }
  for (const std::string& address : members_->addresses()) {
    const Result<control::PeerRef> ref = channel_->dial(address);
    if (!ref.ok()) return ref.status().with_context("cannot dial " + address);
  }
  sync_peers();
  return {};
}

RouteControl::~RouteControl() { stop(); }

void RouteControl::stop() {
  stopping_ = true;
  wake();
  if (thread_.joinable()) thread_.join();
}

void RouteControl::set_http(const std::string& url) {
  const std::lock_guard lock(mutex_);
  http_ = url;
}

bool RouteControl::wait_for(const std::function<bool()>& condition, Duration timeout) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  std::unique_lock lock(mutex_);
  while (true) {
    const std::uint64_t before = changes_;
    lock.unlock();
    const bool met = condition();
    lock.lock();
    if (met) return true;
    if (!changed_.wait_until(lock, end, [&] { return changes_ != before; })) return false;
  }
}

void RouteControl::notify() {
  {
    const std::lock_guard lock(mutex_);
    ++changes_;
  }
  changed_.notify_all();
}

void RouteControl::wait_fds(std::vector<int>* out) const { out->push_back(channel_->wait_fd()); }

bool RouteControl::step() {
  int handled = 0;
  for (; handled < kMessagesPerStep; ++handled) {
    std::optional<control::Received> received = messenger_->receive();
    if (!received) break;
    dispatch(*received, clock_->now());
  }
  const TimePoint now = clock_->now();
  next_ = now + kDescribeInterval;
  if (registry_) {
    registry_->poll(now);
    next_ = std::min(next_, registry_->next_deadline());
  }
  if (client_) {
    client_->poll(now);
    next_ = std::min(next_, client_->next_deadline());
  }
  sync_discovered();
  // After a stall of our own nobody was asked: their silence says nothing until they had their
  // turn.
  if (last_step_.ns != 0 && now - last_step_ > 2 * kDescribeInterval) {
    silence_counts_from_ = now + 2 * kDescribeInterval;
    for (auto& [address, peer] : peers_) peer.next_describe = now;
  }
  last_step_ = now;
  std::vector<std::string> silent;
  if (now >= silence_counts_from_) silent = members_->take_silent(now);
  for (const std::string& address : silent) {
    const auto peer = peers_.find(address);
    if (peer != peers_.end()) peer->second.alive = false;
    if (hooks_.on_lost) hooks_.on_lost(address);
  }
  for (const std::string& address : members_->suspects()) {
    const auto peer = peers_.find(address);
    if (peer == peers_.end()) continue;
    peer->second.next_describe = std::min(peer->second.next_describe, now + kSuspectInterval);
  }
  for (auto& [address, peer] : peers_) {
    ask(address, peer, now);
    next_ = std::min(next_, peer.next_describe);
  }
  if (hooks_.tick) next_ = std::min(next_, hooks_.tick(now));
  if (handled > 0 || !silent.empty()) notify();
  return handled > 0;
}

void RouteControl::ask(const std::string& address, Peer& peer, TimePoint now) {
  if (now < peer.next_describe) return;
  peer.next_describe = now + (peer.alive ? kDescribeInterval : kSearchInterval);
  if (!peer.alive && now >= peer.next_redial) {
    if (peer.ref != 0 && peer.next_redial.ns != 0) channel_->forget(peer.ref);
    const Result<control::PeerRef> ref = channel_->dial(address);
    peer.next_redial = now + kRedialInterval;
    if (!ref.ok()) {
      if (!peer.reported) {
        log_warn("cannot dial", {{"worker", address}, {"why", ref.status().message()}});
      }
      peer.reported = true;
      peer.ref = 0;
      return;
    }
    peer.ref = *ref;
  }
  // Not connected (now): silence says it soon enough.
  if (peer.ref != 0) (void)messenger_->send(peer.ref, Incarnation{}, proto::Describe{});
}

void RouteControl::sync_discovered() {
  if (registry_ && registry_->version() != discovered_version_) {
    discovered_version_ = registry_->version();
    members_->set_discovered(registry_->members());
  } else if (client_ && client_->version() != discovered_version_) {
    discovered_version_ = client_->version();
    members_->set_discovered(client_->members());
  }
  sync_peers();
}

void RouteControl::sync_peers() {
  const std::vector<std::string> wanted = members_->addresses();  // ordered
  for (auto peer = peers_.begin(); peer != peers_.end();) {
    if (std::binary_search(wanted.begin(), wanted.end(), peer->first)) {
      ++peer;
      continue;
    }
    if (peer->second.ref != 0) channel_->forget(peer->second.ref);
    peer = peers_.erase(peer);
  }
  const TimePoint now = clock_->now();
  for (const std::string& address : wanted) {
    const auto [peer, fresh] = peers_.try_emplace(address);
    if (fresh) ask(address, peer->second, now);
  }
}

void RouteControl::dispatch(const control::Received& received, TimePoint now) {
  if (const std::string wrong = key_objection(options_.keys ? &*options_.keys : nullptr, received);
      !wrong.empty()) {
    messenger_->refuse(received, "unauthorized", wrong);
    return;
  }
  if (registry_ && registry_->on_message(received, now)) return;
  if (client_ && client_->on_message(received)) return;
  switch (received.envelope.type) {
    case proto::MessageType::kDescribed:
      on_described(received, now);
      return;
    case proto::MessageType::kDescribe:
      answer_describe(received);
      return;
    case proto::MessageType::kDrain:
      draining_ = true;
      answer_describe(received);
      if (hooks_.on_drain) hooks_.on_drain();
      return;
    case proto::MessageType::kError:
    case proto::MessageType::kStaleIncarnation:
      return;  // Describe goes to whoever is there; what else it complains of, it has logged
    default:
      messenger_->refuse(
          received, "unexpected",
          "a router does not take " + std::string(proto::to_string(received.envelope.type)));
  }
}

void RouteControl::on_described(const control::Received& received, TimePoint now) {
  const auto peer = std::find_if(peers_.begin(), peers_.end(), [&](const auto& entry) {
    return entry.second.ref == received.from;
  });
  if (peer == peers_.end()) return;
  const Result<proto::Described> described =
      proto::decode_body<proto::Described>(received.envelope);
  if (!described.ok()) {
    messenger_->refuse(received, "malformed", described.status().message());
    return;
  }
  peer->second.alive = true;
  peer->second.next_describe = std::max(peer->second.next_describe, now + kDescribeInterval / 2);
  if (client_) client_->seen(peer->first, now);
  if (members_->on_described(peer->first, received.envelope.from, *described, now) &&
      hooks_.on_lost) {
    hooks_.on_lost(peer->first);
  }
}

void RouteControl::answer_describe(const control::Received& received) {
  proto::Described self;
  self.role = "route";
  self.program = options_.program;
  self.version = options_.version;
  {
    const std::lock_guard lock(mutex_);
    self.http = http_;
  }
  self.load.draining = draining_;
  (void)messenger_->send(received.from, received.envelope.from, self);
}

}  // namespace kvd::node
