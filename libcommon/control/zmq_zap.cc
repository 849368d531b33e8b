#include "control/zmq_zap.h"

#include <array>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "base/clock.h"
#include "base/log.h"

namespace kvd::control {
namespace {

constexpr const char* kEndpoint = "inproc://zeromq.zap.01";
constexpr std::size_t kKeyBytes = 32;
// version, request id, domain, address, identity, mechanism, credentials
constexpr std::size_t kRequestFrames = 7;

std::string z85_of(const std::string& key) {
  std::array<char, 41> text{};
  zmq_z85_encode(text.data(), reinterpret_cast<const std::uint8_t*>(key.data()), key.size());
  return text.data();
}

}  // namespace

struct ZapServer::Impl {
  const KeyRing* keys;
  // Owns the handle only; the context is the channel's.
  void* socket = nullptr;
  SteadyClock clock;
  RateLimit log_limit{std::chrono::seconds(1)};

  explicit Impl(const KeyRing* the_keys) : keys(the_keys) {}
  ~Impl() {
    if (socket != nullptr) zmq_close(socket);
  }

  // False when nothing is waiting. Frames beyond the protocol's are read and dropped.
  bool read(std::vector<std::string>* frames) {
    frames->clear();
    for (bool more = true; more;) {
      zmq::message_t frame;
      if (zmq_msg_recv(frame.handle(), socket, ZMQ_DONTWAIT) < 0) return false;
      more = frame.more();
      if (frames->size() < kRequestFrames) frames->push_back(frame.to_string());
    }
    return true;
  }

  void answer(const std::vector<std::string>& request) {
    std::string user;
    if (request.size() == kRequestFrames && request[5] == "CURVE" &&
        request[6].size() == kKeyBytes) {
      const std::string key = z85_of(request[6]);
      if (keys->find(key) != nullptr) user = key;
      std::uint64_t suppressed = 0;
      if (user.empty() && log_limit.allow(clock.now(), &suppressed)) {
        log_warn("control connection refused: its key is not in the key file",
                 {{"address", request[3]}, {"public_key", key}, {"suppressed", suppressed}});
      }
    }
    const std::string id = request.size() > 1 ? request[1] : "";
    const std::array<std::string, 6> reply = {
        "1.0", id, user.empty() ? "400" : "200", user.empty() ? "not allowed" : "OK", user, ""};
    for (std::size_t i = 0; i < reply.size(); ++i) {
      const int flags = ZMQ_DONTWAIT | (i + 1 < reply.size() ? ZMQ_SNDMORE : 0);
      if (zmq_send(socket, reply[i].data(), reply[i].size(), flags) < 0) return;
    }
  }
};

ZapServer::ZapServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ZapServer::~ZapServer() = default;

Result<std::unique_ptr<ZapServer>> ZapServer::open(void* context, const KeyRing* keys) {
  auto impl = std::make_unique<Impl>(keys);
  impl->socket = zmq_socket(context, ZMQ_REP);
  const int zero = 0;
  if (impl->socket == nullptr ||
      zmq_setsockopt(impl->socket, ZMQ_LINGER, &zero, sizeof zero) != 0 ||
      zmq_bind(impl->socket, kEndpoint) != 0) {
    return Status(StatusCode::kFailed,
                  std::string("cannot check keys: ") + zmq_strerror(zmq_errno()));
  }
  return std::unique_ptr<ZapServer>(new ZapServer(std::move(impl)));
}

int ZapServer::fd() const {
  int fd = -1;
  std::size_t size = sizeof fd;
  zmq_getsockopt(impl_->socket, ZMQ_FD, &fd, &size);
  return fd;
}

void ZapServer::serve() {
  std::vector<std::string> request;
  while (impl_->read(&request)) impl_->answer(request);
}

}  // namespace kvd::control
