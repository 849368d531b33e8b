#include "fabric/local/local_endpoint.h"

#include <sys/epoll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace kvd::fabric::local {
namespace {

constexpr std::uint64_t kLookEvery = 256;
constexpr std::size_t kMaxStrangers = 4;
constexpr std::size_t kMaxPeers = 1024;

}  // namespace

Result<std::unique_ptr<Endpoint>> LocalEndpoint::open(std::shared_ptr<SourceTable> sources) {
  auto out = std::make_unique<LocalEndpoint>();
  out->address_ = Address::random();
  out->sources_ = std::move(sources);
  out->epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!out->epoll_) {
    return Status(StatusCode::kResourceExhausted, std::string("local: epoll_create1: ") +
                                                      std::strerror(errno) +
                                                      " (raise the open files limit, ulimit -n)");
  }
  auto listener = listen_at(out->address_.name);
  if (!listener.ok()) return listener.status();
  out->listener_ = std::move(*listener);
  if (!out->watch(out->listener_.get())) {
    return Status(StatusCode::kResourceExhausted,
                  std::string("local: epoll_ctl: ") + std::strerror(errno));
  }
  return std::unique_ptr<Endpoint>(std::move(out));
}

bool LocalEndpoint::watch(int fd) {
  epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
  return epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

Status LocalEndpoint::connect(Peer* peer) {
  auto made = Initiator::connect(peer->address, *sources_);
  if (!made.ok()) return made.status();
  if (!watch((*made)->fd())) return {StatusCode::kResourceExhausted, "local: epoll_ctl failed"};
  peer->initiator = std::move(*made);
  // Nobody writes to an endpoint without regions.
  if (regions_->empty()) listener_.reset();
  return {};
}

Result<PeerHandle> LocalEndpoint::insert(const FabricAddress& peer) {
  auto address = Address::decode(peer);
  if (!address.ok()) return address.status();
  if (peers_.size() >= kMaxPeers) {
    return Status(StatusCode::kResourceExhausted, "local: too many peers");
  }
  Peer entry{std::move(*address), nullptr};
  if (regions_->empty()) KVD_RETURN_IF_ERROR(connect(&entry));
  peers_.push_back(std::move(entry));
  return PeerHandle{peers_.size() - 1};
}

Status LocalEndpoint::write(PeerHandle peer, const WriteRequest& request) {
  if (peer >= peers_.size()) return invalid_argument("local: not a peer of this endpoint");
  Peer& entry = peers_[peer];
  if (entry.initiator == nullptr) KVD_RETURN_IF_ERROR(connect(&entry));
  return entry.initiator->write(request);
}

Status LocalEndpoint::read(PeerHandle, std::byte*, const RemotePiece&, std::uint64_t) {
  return {StatusCode::kNoProvider,
          "local: has no reads, the peer pulls what is written; read over tcp"};
}

bool LocalEndpoint::set_up() const {
  if (listener_ || !strangers_.empty()) return false;
  for (const Peer& peer : peers_) {
    if (peer.initiator != nullptr && !peer.initiator->settled()) return false;
  }
  return true;
}

// Takes a connection in when its Hello is there; true when it need not be looked at again.
bool LocalEndpoint::greet(Fd* socket) {
  Hello hello;
  Packet packet;
  const Status got =
      receive_packet(socket->get(), std::as_writable_bytes(std::span(&hello, 1)), &packet);
  if (got.code() == StatusCode::kAgain) return false;
  if (target_ != nullptr || !got.ok() || packet.bytes.size() != sizeof hello ||
      hello.magic != kHelloMagic || hello.token != address_.token) {
    return true;  // a stranger: what it wanted is not our business
  }
  auto taken = Target::accept(std::move(*socket), hello, packet);
  if (taken.ok()) {
    target_ = std::move(*taken);
  } else {
    faults_.push_back(taken.status());
  }
  // One peer for one endpoint, once: a link is never resumed.
  listener_.reset();
  return true;
}

void LocalEndpoint::accept() {
  Status failed;
  for (std::size_t i = 0; listener_ && i < kMaxStrangers; ++i) {
    auto fd = accept_from(listener_.get());
    if (!fd.ok()) {
      if (fd.status().code() != StatusCode::kAgain) failed = fd.status();
      break;
    }
    // Who says nothing gives way to who comes later: it must not keep the peer out.
    if (strangers_.size() >= kMaxStrangers) strangers_.erase(strangers_.begin());
    if (watch(fd->get())) strangers_.push_back(std::move(*fd));
  }
  std::erase_if(strangers_, [&](Fd& stranger) { return greet(&stranger); });
  if (listener_ && !failed.ok()) {
    // Who waits keeps the descriptor readable for ever, and may be the peer.
    faults_.push_back(failed);
    listener_.reset();
  }
  if (!listener_) strangers_.clear();
}

// What the sockets have to say.
void LocalEndpoint::look() {
  epoll_event any;
  if (epoll_wait(epoll_.get(), &any, 1, 0) <= 0) return;
  accept();
  if (target_ != nullptr) target_->service();
  for (Peer& peer : peers_) {
    if (peer.initiator != nullptr) peer.initiator->service();
  }
}

std::size_t LocalEndpoint::poll(std::span<Completion> out) {
  if (std::exchange(slept_, false)) {
    if (target_ != nullptr) target_->wake_up();
    for (Peer& peer : peers_) {
      if (peer.initiator != nullptr) peer.initiator->wake_up();
    }
    look();
  } else if (++polls_ % kLookEvery == 0 || !set_up()) {
    look();
  }
  std::size_t count = 0;
  for (Peer& peer : peers_) {
    if (peer.initiator != nullptr) count += peer.initiator->reap(out.subspan(count));
  }
  if (target_ != nullptr) count += target_->copy(*regions_, out.subspan(count));
  while (count < out.size() && !faults_.empty()) {
    out[count++] = {.kind = CompletionKind::kFault, .status = std::move(faults_.front())};
    faults_.pop_front();
  }
  return count;
}

bool LocalEndpoint::has_work() const {
  return !faults_.empty() || (target_ != nullptr && target_->has_work()) ||
         std::any_of(peers_.begin(), peers_.end(), [](const Peer& peer) {
           return peer.initiator != nullptr && peer.initiator->has_work();
         });
}

bool LocalEndpoint::may_wait() {
  // Whoever is busy anyway does not ask its peer to ring: that costs both a system call.
  if (has_work()) return false;
  slept_ = true;
  if (target_ != nullptr) target_->fall_asleep();
  for (Peer& peer : peers_) {
    if (peer.initiator != nullptr) peer.initiator->fall_asleep();
  }
  return !has_work();
}

}  // namespace kvd::fabric::local
