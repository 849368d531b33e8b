#include "control/zmq_channel.h"

#include <netdb.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <zmq.hpp>

#include "base/units.h"
#include "control/zmq_zap.h"
#include "proto/envelope.h"

namespace kvd::control {
namespace {

constexpr std::size_t kMaxAccepted = 4096;
constexpr std::size_t kMaxDialled = 4096;
constexpr int kReconnectMs = 50, kReconnectMaxMs = 500;
constexpr int kHandshakeMs = 5000, kConnectMs = 2000;
constexpr int kBacklog = 1024;
// A dialled peer takes three of libzmq's sockets: the DEALER and both ends of its monitor.
constexpr int kMaxSockets = 3 * static_cast<int>(kMaxDialled) + 64;

// What an epoll event, or an entry of the hot list, is about.
enum class Kind : std::uint64_t { kArmed, kRouter, kZap, kDealer, kMonitor };
std::uint64_t source_of(Kind kind, PeerRef peer = 0) {
  return (peer << 3) | static_cast<std::uint64_t>(kind);
}
Kind kind_of(std::uint64_t source) { return static_cast<Kind>(source & 7); }
PeerRef peer_of(std::uint64_t source) { return source >> 3; }

Status zmq_fault(const std::string& what, int error) {
  return {StatusCode::kFailed, what + ": " + zmq_strerror(error)};
}

// A long message, as a prompt is, is handed over and not copied.
zmq::message_t to_message(std::string bytes) {
  constexpr std::size_t kCopied = 4096;
  if (bytes.size() <= kCopied) return zmq::message_t(bytes.data(), bytes.size());
  auto owned = std::make_unique<std::string>(std::move(bytes));
  std::string* const text = owned.release();
  return zmq::message_t(
      text->data(), text->size(), [](void*, void* hint) { delete static_cast<std::string*>(hint); },
      text);
}

// And so is one that came.
SharedBytes to_bytes(zmq::message_t message) {
  const auto owner = std::make_shared<const zmq::message_t>(std::move(message));
  return {owner->to_string_view(), owner};
}

// The address to bind: libzmq takes no host names there.
Result<HostPort> resolve_local(const std::string& listen) {
  Result<HostPort> parsed = parse_host_port(listen);
  if (!parsed.ok()) return parsed;
  if (parsed->host == "*") parsed->host = "0.0.0.0";
  if (parsed->host == "localhost") parsed->host = "127.0.0.1";
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int rc = getaddrinfo(parsed->host.c_str(), nullptr, &hints, &found);
  if (rc != 0) return invalid_argument(listen + ": " + gai_strerror(rc));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, freeaddrinfo);
  const addrinfo* chosen = found;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    if (a->ai_family == AF_INET) {
      chosen = a;
      break;
    }
  }
  std::array<char, NI_MAXHOST> host{};
  if (getnameinfo(chosen->ai_addr, chosen->ai_addrlen, host.data(), host.size(), nullptr, 0,
                  NI_NUMERICHOST) != 0) {
    return invalid_argument(listen + ": not an address of this host");
  }
  parsed->host = host.data();
  return parsed;
}

// A libzmq socket whose descriptor is in the channel's epoll set.
class WatchedSocket {
 public:
  WatchedSocket() = default;
  WatchedSocket(zmq::socket_t socket, int epoll_fd, std::uint64_t source)
      : socket_(std::move(socket)), epoll_fd_(epoll_fd), fd_(socket_.get(zmq::sockopt::fd)) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = source;
    if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd_, &event) != 0) throw zmq::error_t(errno);
  }
  ~WatchedSocket() { close(); }
  WatchedSocket(const WatchedSocket&) = delete;
  WatchedSocket& operator=(const WatchedSocket&) = delete;
  WatchedSocket& operator=(WatchedSocket&& other) noexcept {
    if (this == &other) return *this;
    close();
    socket_ = std::move(other.socket_);
    epoll_fd_ = std::exchange(other.epoll_fd_, -1);
    fd_ = std::exchange(other.fd_, -1);
    return *this;
  }

  explicit operator bool() const { return fd_ >= 0; }
  zmq::socket_t& socket() { return socket_; }
  bool readable() { return (socket_.get(zmq::sockopt::events) & ZMQ_POLLIN) != 0; }

 private:
  void close() {
    if (fd_ >= 0) epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd_, nullptr);
    fd_ = -1;
    socket_.close();
  }

  zmq::socket_t socket_;
  int epoll_fd_ = -1;
  int fd_ = -1;
};

class ZmqChannel final : public Channel {
 public:
  explicit ZmqChannel(const ZmqOptions& options)
      : options_(options),
        epoll_fd_(epoll_create1(EPOLL_CLOEXEC)),
        armed_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  ~ZmqChannel() override {
    dialled_.clear();
    router_ = WatchedSocket();
    zap_.reset();
    context_.close();
    if (armed_fd_ >= 0) close(armed_fd_);
    if (epoll_fd_ >= 0) close(epoll_fd_);
  }

  Status open();

  std::string address() const override { return address_; }
  Result<PeerRef> dial(const std::string& address) override;
  Status send(PeerRef peer, std::string bytes) override;
  bool connected(PeerRef peer) const override {
    const auto it = dialled_.find(peer);
    return it != dialled_.end() && it->second.connected;
  }
  std::optional<Incoming> receive() override;
  void forget(PeerRef peer) override;
  int wait_fd() const override { return epoll_fd_; }

 private:
  // Somebody we dialled. The sockets are replaced when it is dialled afresh; the ref stays.
  struct Dialled {
    std::string address;   // as it was given
    std::string endpoint;  // tcp://...
    bool ipv6 = false;
    std::string key;  // its public key, when keys are configured
    WatchedSocket dealer, monitor;
    bool connected = false;
    TimePoint since;  // of `connected`
  };
  // Somebody who dialled us.
  struct Accepted {
    std::string routing_id, identity;
    std::list<PeerRef>::iterator idle;  // in idle_
  };

  Status bind();
  void configure(zmq::socket_t& socket) const;
  Status connect(PeerRef ref, Dialled& peer);
  Status send_dialled(PeerRef ref, Dialled& peer, std::string bytes);
  Status send_accepted(PeerRef ref, const Accepted& peer, std::string bytes);
  std::optional<Incoming> receive_router();
  std::optional<Incoming> receive_dealer(PeerRef ref);
  std::optional<Incoming> receive_hot();
  bool collect_ready();
  void note_monitor(Dialled& peer);
  void redial();
  void drop_accepted(PeerRef ref);
  PeerRef accept(const std::string& routing_id, const std::string& identity);
  void heat(std::uint64_t source);
  void heat_after_send(WatchedSocket& socket, std::uint64_t source);

  const ZmqOptions options_;
  const SteadyClock clock_;
  const int epoll_fd_;
  // Readable while a source is hot though its own descriptor is not: sending may have taken the
  // edge.
  const int armed_fd_;
  bool armed_ = false;
  zmq::context_t context_;
  std::unique_ptr<ZapServer> zap_;
  WatchedSocket router_;
  std::string address_;
  std::map<PeerRef, Dialled> dialled_;
  std::map<std::string, PeerRef> by_address_;
  std::unordered_map<PeerRef, Accepted> accepted_;
  std::unordered_map<std::string, PeerRef> by_routing_id_;
  std::list<PeerRef> idle_;  // accepted peers, the one silent longest first
  // Sources that may have something, each once, served in turn.
  std::deque<std::uint64_t> hot_;
  std::unordered_set<std::uint64_t> hot_set_;
  TimePoint next_redial_;
  std::uint64_t monitors_ = 0;
  PeerRef next_ref_ = 1;
};

Status ZmqChannel::open() {
  if (epoll_fd_ < 0 || armed_fd_ < 0) return {StatusCode::kFailed, "no file descriptor is free"};
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = source_of(Kind::kArmed);
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, armed_fd_, &event) != 0) {
    return {StatusCode::kFailed, "epoll is not available"};
  }
  try {
    context_.set(zmq::ctxopt::max_sockets, kMaxSockets);
    if (options_.keys) {
      Result<std::unique_ptr<ZapServer>> zap = ZapServer::open(context_.handle(), &*options_.keys);
      if (!zap.ok()) return zap.status();
      zap_ = std::move(zap).value();
      event.data.u64 = source_of(Kind::kZap);
      if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, zap_->fd(), &event) != 0) {
        return {StatusCode::kFailed, "epoll is not available"};
      }
    }
    return options_.listen.empty() ? Status() : bind();
  } catch (const zmq::error_t& error) {
    return zmq_fault("cannot open the control channel", error.num());
  }
}

void ZmqChannel::configure(zmq::socket_t& socket) const {
  socket.set(zmq::sockopt::linger, 0);
  socket.set(zmq::sockopt::maxmsgsize, static_cast<std::int64_t>(proto::Bounds::kMaxBytes));
  socket.set(zmq::sockopt::sndhwm, static_cast<int>(options_.queue_messages));
  socket.set(zmq::sockopt::rcvhwm, static_cast<int>(options_.queue_messages));
  socket.set(zmq::sockopt::handshake_ivl, kHandshakeMs);
  socket.set(zmq::sockopt::tcp_keepalive, 1);
  if (!options_.keys) return;
  socket.set(zmq::sockopt::curve_publickey, options_.keys->public_key);
  socket.set(zmq::sockopt::curve_secretkey, options_.keys->secret_key);
}

Status ZmqChannel::bind() {
  Result<HostPort> local = resolve_local(options_.listen);
  if (!local.ok()) return local.status();
  zmq::socket_t router(context_, zmq::socket_type::router);
  configure(router);
  router.set(zmq::sockopt::router_mandatory, 1);
  router.set(zmq::sockopt::backlog, kBacklog);
  router.set(zmq::sockopt::ipv6, local->host.find(':') == std::string::npos ? 0 : 1);
  if (options_.keys) {
    router.set(zmq::sockopt::curve_server, 1);
    router.set(zmq::sockopt::zap_domain, "kvd");
  }
  if (zmq_bind(router.handle(), ("tcp://" + to_string(*local)).c_str()) != 0) {
    const int error = zmq_errno();
    if (error == EADDRINUSE) {
      return invalid_argument("address already in use: " + options_.listen +
                              "; choose another with --listen, or port 0");
    }
    if (error == EADDRNOTAVAIL || error == ENODEV) {
      return invalid_argument("not an address of this host: " + options_.listen +
                              "; choose another with --listen");
    }
    if (error == EACCES || error == EPERM) {
      return {StatusCode::kNoProvider, "no permission to listen on " + options_.listen +
                                           ": choose a port from 1024, or run it with "
                                           "CAP_NET_BIND_SERVICE"};
    }
    return invalid_argument("cannot listen on " + options_.listen + ": " + zmq_strerror(error));
  }
  const std::string endpoint = router.get(zmq::sockopt::last_endpoint);
  address_ = endpoint.substr(endpoint.find("://") + 3);
  router_ = WatchedSocket(std::move(router), epoll_fd_, source_of(Kind::kRouter));
  heat(source_of(Kind::kRouter));
  return {};
}

Result<PeerRef> ZmqChannel::dial(const std::string& address) {
  Result<HostPort> parsed = parse_host_port(address);
  if (!parsed.ok()) return parsed.status();
  if (parsed->port == 0) return invalid_argument(address + ": port 0 cannot be dialled");
  // The listener's default is the IPv4 loopback, and resolvers disagree about the order.
  if (parsed->host == "localhost") parsed->host = "127.0.0.1";
  const std::string canonical = to_string(*parsed);
  if (const auto it = by_address_.find(canonical); it != by_address_.end()) return it->second;
  if (dialled_.size() >= kMaxDialled) {
    return Status(StatusCode::kResourceExhausted, "too many control connections");
  }

  std::string key;
  if (options_.keys) {
    const KeyEntry* entry = options_.keys->find_address(canonical);
    if (entry == nullptr) {
      return invalid_argument("no public key is known for " + address +
                              "; add the line PUBLIC_KEY ROLE " + address + " to the key file");
    }
    key = entry->public_key;
  }
  const PeerRef ref = next_ref_++;
  const auto it = dialled_.try_emplace(ref).first;
  it->second.address = canonical;
  it->second.endpoint = "tcp://" + canonical;
  it->second.ipv6 = parsed->host.find(':') != std::string::npos;
  it->second.key = std::move(key);
  if (Status status = connect(ref, it->second); !status.ok()) {
    dialled_.erase(it);
    return status;
  }
  by_address_[canonical] = ref;
  return ref;
}

Status ZmqChannel::connect(PeerRef ref, Dialled& peer) {
  peer.dealer = WatchedSocket();
  peer.monitor = WatchedSocket();
  peer.connected = false;
  peer.since = clock_.now();
  try {
    zmq::socket_t dealer(context_, zmq::socket_type::dealer);
    configure(dealer);
    // Nothing is queued for a peer that is not there: a message would reach another incarnation.
    dealer.set(zmq::sockopt::immediate, 1);
    dealer.set(zmq::sockopt::reconnect_ivl, kReconnectMs);
    dealer.set(zmq::sockopt::reconnect_ivl_max, kReconnectMaxMs);
    dealer.set(zmq::sockopt::connect_timeout, kConnectMs);
    dealer.set(zmq::sockopt::ipv6, peer.ipv6 ? 1 : 0);
    if (!peer.key.empty()) dealer.set(zmq::sockopt::curve_serverkey, peer.key);

    // Only these two events: libzmq's thread would wait for us if its queue of events were full.
    const std::string events = "inproc://monitor-" + std::to_string(++monitors_);
    if (zmq_socket_monitor(dealer.handle(), events.c_str(),
                           ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED) != 0) {
      throw zmq::error_t();
    }
    zmq::socket_t monitor(context_, zmq::socket_type::pair);
    monitor.set(zmq::sockopt::linger, 0);
    monitor.connect(events);
    if (zmq_connect(dealer.handle(), peer.endpoint.c_str()) != 0) {
      return invalid_argument("cannot dial " + peer.address + ": " + zmq_strerror(zmq_errno()));
    }
    peer.dealer = WatchedSocket(std::move(dealer), epoll_fd_, source_of(Kind::kDealer, ref));
    peer.monitor = WatchedSocket(std::move(monitor), epoll_fd_, source_of(Kind::kMonitor, ref));
  } catch (const zmq::error_t& error) {
    peer.dealer = WatchedSocket();
    return zmq_fault("cannot dial " + peer.address, error.num());
  }
  heat(source_of(Kind::kDealer, ref));
  heat(source_of(Kind::kMonitor, ref));
  return {};
}

// --- sending -----------------------------------------------------------------------------------

Status ZmqChannel::send(PeerRef peer, std::string bytes) {
  if (bytes.size() > proto::Bounds::kMaxBytes) {
    return invalid_argument("a control message of " + std::to_string(bytes.size()) +
                            " bytes is longer than 8 MiB");
  }
  if (const auto it = dialled_.find(peer); it != dialled_.end()) {
    return send_dialled(peer, it->second, std::move(bytes));
  }
  if (const auto it = accepted_.find(peer); it != accepted_.end()) {
    return send_accepted(peer, it->second, std::move(bytes));
  }
  return unavailable("the control peer is gone");
}

Status ZmqChannel::send_dialled(PeerRef ref, Dialled& peer, std::string bytes) {
  if (!peer.dealer) return unavailable(peer.address + " is not connected");
  zmq::message_t message = to_message(std::move(bytes));
  const int rc = zmq_msg_send(message.handle(), peer.dealer.socket().handle(), ZMQ_DONTWAIT);
  const int error = rc < 0 ? zmq_errno() : 0;
  heat_after_send(peer.dealer, source_of(Kind::kDealer, ref));
  if (rc >= 0) return {};
  if (error != EAGAIN) return zmq_fault("cannot send to " + peer.address, error);
  note_monitor(peer);
  if (!peer.connected) return unavailable(peer.address + " is not connected");
  return {StatusCode::kResourceExhausted, peer.address + " does not read its control messages"};
}

Status ZmqChannel::send_accepted(PeerRef ref, const Accepted& peer, std::string bytes) {
  zmq::message_t id(peer.routing_id.data(), peer.routing_id.size());
  void* const router = router_.socket().handle();
  int rc = zmq_msg_send(id.handle(), router, ZMQ_SNDMORE | ZMQ_DONTWAIT);
  if (rc >= 0) {
    zmq::message_t message = to_message(std::move(bytes));
    rc = zmq_msg_send(message.handle(), router, ZMQ_DONTWAIT);
  }
  const int error = rc < 0 ? zmq_errno() : 0;
  heat_after_send(router_, source_of(Kind::kRouter));
  if (rc >= 0) return {};
  if (error == EAGAIN) {
    return {StatusCode::kResourceExhausted, "the peer does not read its control messages"};
  }
  // A new connection of the same peer has another routing id, and so another ref.
  if (error == EHOSTUNREACH) drop_accepted(ref);
  return unavailable("the control peer is gone");
}

// Sending runs libzmq's pending commands, and with them may go the only sign of a message that came
// in.
void ZmqChannel::heat_after_send(WatchedSocket& socket, std::uint64_t source) {
  if (!socket.readable()) return;
  heat(source);
  if (armed_) return;
  const std::uint64_t one = 1;
  armed_ = write(armed_fd_, &one, sizeof one) == sizeof one;
}

void ZmqChannel::heat(std::uint64_t source) {
  if (hot_set_.insert(source).second) hot_.push_back(source);
}

// --- receiving ---------------------------------------------------------------------------------

std::optional<Incoming> ZmqChannel::receive() {
  redial();
  do {
    if (std::optional<Incoming> incoming = receive_hot()) return incoming;
  } while (collect_ready());
  if (armed_) {
    std::uint64_t count = 0;
    armed_ = read(armed_fd_, &count, sizeof count) != sizeof count;
  }
  return std::nullopt;
}

// Serves the hot sources in turn; one that had a message goes to the end of the line.
std::optional<Incoming> ZmqChannel::receive_hot() {
  while (!hot_.empty()) {
    const std::uint64_t source = hot_.front();
    hot_.pop_front();
    hot_set_.erase(source);
    std::optional<Incoming> incoming;
    switch (kind_of(source)) {
      case Kind::kArmed:
        break;
      case Kind::kRouter:
        incoming = receive_router();
        break;
      case Kind::kZap:
        zap_->serve();
        break;
      case Kind::kDealer:
        incoming = receive_dealer(peer_of(source));
        break;
      case Kind::kMonitor:
        if (const auto it = dialled_.find(peer_of(source)); it != dialled_.end()) {
          note_monitor(it->second);
        }
        break;
    }
    if (!incoming) continue;
    heat(source);
    return incoming;
  }
  return std::nullopt;
}

bool ZmqChannel::collect_ready() {
  std::array<epoll_event, 64> events;
  const int count = epoll_wait(epoll_fd_, events.data(), static_cast<int>(events.size()), 0);
  bool any = false;
  for (int i = 0; i < count; ++i) {
    const std::uint64_t source = events[static_cast<std::size_t>(i)].data.u64;
    if (kind_of(source) == Kind::kArmed) continue;
    heat(source);
    any = true;
  }
  return any;
}

std::optional<Incoming> ZmqChannel::receive_router() {
  if (!router_) return std::nullopt;
  void* const router = router_.socket().handle();
  for (;;) {
    zmq::message_t id, body;
    if (zmq_msg_recv(id.handle(), router, ZMQ_DONTWAIT) < 0) return std::nullopt;
    std::size_t frames = 0;
    for (bool more = id.more(); more; more = body.more(), ++frames) {
      if (zmq_msg_recv(body.handle(), router, ZMQ_DONTWAIT) < 0) return std::nullopt;
    }
    Incoming incoming;
    if (options_.keys) {
      // Set by our own ZapServer. libzmq lets everybody in where nobody answers for the domain;
      // should that ever happen, the message still goes no further.
      const char* const key = frames > 0 ? zmq_msg_gets(body.handle(), "User-Id") : nullptr;
      if (key == nullptr || *key == '\0') continue;
      incoming.identity = key;
    }
    incoming.from = accept(id.to_string(), incoming.identity);
    // Our messages are one frame. Anything else is passed on as nothing, to be counted as
    // malformed.
    if (frames == 1) incoming.bytes = to_bytes(std::move(body));
    return incoming;
  }
}

std::optional<Incoming> ZmqChannel::receive_dealer(PeerRef ref) {
  const auto it = dialled_.find(ref);
  if (it == dialled_.end() || !it->second.dealer) return std::nullopt;
  void* const dealer = it->second.dealer.socket().handle();
  zmq::message_t body;
  if (zmq_msg_recv(body.handle(), dealer, ZMQ_DONTWAIT) < 0) return std::nullopt;
  std::size_t frames = 1;
  for (; body.more(); ++frames) {
    if (zmq_msg_recv(body.handle(), dealer, ZMQ_DONTWAIT) < 0) return std::nullopt;
  }
  return Incoming{ref, frames == 1 ? to_bytes(std::move(body)) : SharedBytes(), it->second.key};
}

PeerRef ZmqChannel::accept(const std::string& routing_id, const std::string& identity) {
  if (const auto it = by_routing_id_.find(routing_id); it != by_routing_id_.end()) {
    const PeerRef ref = it->second;
    Accepted& peer = accepted_.at(ref);
    if (peer.identity == identity) {
      idle_.splice(idle_.end(), idle_, peer.idle);
      return ref;
    }
    // A client chose the routing id of one that is gone. It does not inherit that one's ref.
    drop_accepted(ref);
  }
  if (accepted_.size() >= kMaxAccepted) drop_accepted(idle_.front());
  const PeerRef ref = next_ref_++;
  accepted_[ref] = {routing_id, identity, idle_.insert(idle_.end(), ref)};
  by_routing_id_[routing_id] = ref;
  return ref;
}

void ZmqChannel::drop_accepted(PeerRef ref) {
  const auto it = accepted_.find(ref);
  if (it == accepted_.end()) return;
  by_routing_id_.erase(it->second.routing_id);
  idle_.erase(it->second.idle);
  accepted_.erase(it);
}

void ZmqChannel::forget(PeerRef peer) {
  drop_accepted(peer);
  const auto it = dialled_.find(peer);
  if (it == dialled_.end()) return;
  by_address_.erase(it->second.address);
  dialled_.erase(it);
}

// --- connections -------------------------------------------------------------------------------

void ZmqChannel::note_monitor(Dialled& peer) {
  if (!peer.monitor) return;
  void* const monitor = peer.monitor.socket().handle();
  for (;;) {
    zmq::message_t event, endpoint;
    if (zmq_msg_recv(event.handle(), monitor, ZMQ_DONTWAIT) < 0) return;
    if (event.more() && zmq_msg_recv(endpoint.handle(), monitor, ZMQ_DONTWAIT) < 0) return;
    std::uint16_t number = 0;
    if (event.size() < sizeof number) continue;
    std::memcpy(&number, event.data(), sizeof number);
    peer.connected = number == ZMQ_EVENT_HANDSHAKE_SUCCEEDED;
    peer.since = clock_.now();
  }
}

void ZmqChannel::redial() {
  const TimePoint now = clock_.now();
  if (now < next_redial_) return;
  next_redial_ = now + options_.redial_after / 4;
  for (auto& [ref, peer] : dialled_) {
    note_monitor(peer);
    if (peer.connected || now - peer.since < options_.redial_after) continue;
    // Best effort: what fails now is tried again after as long.
    (void)connect(ref, peer);
  }
}

}  // namespace

Result<std::unique_ptr<Channel>> open_zmq_channel(const ZmqOptions& options) {
  auto channel = std::make_unique<ZmqChannel>(options);
  KVD_RETURN_IF_ERROR(channel->open());
  return std::unique_ptr<Channel>(std::move(channel));
}

}  // namespace kvd::control
