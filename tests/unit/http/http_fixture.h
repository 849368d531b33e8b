// What the HTTP tests share: a plain socket that speaks bytes, and waiting with a deadline.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "base/units.h"
#include "http/server.h"

namespace kvd::http::test {

constexpr std::chrono::seconds kPatience{20};

// A value that one thread sets and another waits for.
template <typename T>
class Awaited {
 public:
  void set(T value) {
    const std::lock_guard lock(mutex_);
    value_ = std::move(value);
    ++times_;
    changed_.notify_all();
  }
  bool wait() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kPatience, [this] { return times_ > 0; });
  }
  T get() const {
    const std::lock_guard lock(mutex_);
    return value_;
  }
  int times() const {
    const std::lock_guard lock(mutex_);
    return times_;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  T value_{};
  int times_ = 0;
};

// False when nobody listens there.
inline bool connect_to(int fd, const std::string& address) {
  const Result<HostPort> where = parse_host_port(address);
  if (!where.ok()) return false;
  sockaddr_in peer{};
  peer.sin_family = AF_INET;
  peer.sin_port = htons(where->port);
  inet_pton(AF_INET, where->host.c_str(), &peer.sin_addr);
  return ::connect(fd, reinterpret_cast<sockaddr*>(&peer), sizeof(peer)) == 0;
}

// A client that sends what it is told, right or wrong.
class RawClient {
 public:
  // Not yet connected.
  RawClient() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) { REQUIRE(fd_ >= 0); }
  explicit RawClient(const std::string& address, int receive_buffer = 0) : RawClient() {
    if (receive_buffer > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    REQUIRE(connect(address));
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connect(const std::string& address) { return connect_to(fd_, address); }
  // False when the server has closed.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
  }
  // Reads until `text` has come (kept in all()), the server closes, or patience ends.
  bool read_until(std::string_view text) {
    while (all_.find(text) == std::string::npos) {
      if (!read_some()) return false;
    }
    return true;
  }
  // True when the server closed; false when patience ended.
  bool read_to_end() {
    while (read_some()) {
    }
    return closed_;
  }
  const std::string& all() const { return all_; }
  void forget() { all_.clear(); }
  void half_close() { shutdown(fd_, SHUT_WR); }
  void reset() {
    const linger now{1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close();
  }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  bool read_some() {
    pollfd entry{fd_, POLLIN, 0};
    const auto patience = std::chrono::duration_cast<std::chrono::milliseconds>(kPatience);
    if (poll(&entry, 1, static_cast<int>(patience.count())) <= 0) return false;
    char buffer[16384];
    const ssize_t n = recv(fd_, buffer, sizeof(buffer), 0);
    if (n <= 0) {
      closed_ = true;
      return false;
    }
    all_.append(buffer, static_cast<std::size_t>(n));
    return true;
  }

  int fd_ = -1;
  bool closed_ = false;
  std::string all_;
};

inline std::unique_ptr<Server> serve(Handler handler, ServerOptions options = {}) {
  if (options.listen.empty()) options.listen = "127.0.0.1:0";
  Result<std::unique_ptr<Server>> server = Server::start(options, std::move(handler));
  REQUIRE(server.ok());
  return std::move(server).value();
}

// Answers with the method, target and body it got.
inline void echo(Request request, std::shared_ptr<Responder> responder) {
  responder->send(200, "text/plain", request.method + " " + request.target + " " + request.body);
}

inline std::string url_of(const Server& server, const std::string& path) {
  return "http://" + server.address() + path;
}

}  // namespace kvd::http::test
