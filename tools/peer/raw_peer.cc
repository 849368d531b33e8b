#include "peer/raw_peer.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

namespace kvd::tools {
namespace {

constexpr int kConnectMs = 400, kGreetingMs = 250, kAnswerMs = 250;
constexpr std::size_t kSignature = 10;  // FF, eight bytes, 7F

struct Socket {
  int fd = -1;
  explicit Socket(int number) : fd(number) {}
  ~Socket() {
    if (fd >= 0) ::close(fd);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
};

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Addresses resolve(const HostPort& address, int type, std::string* why) {
  addrinfo hints{};
  hints.ai_socktype = type;
  // As the control channel does: host names are IPv4, IPv6 peers are named by their address.
  hints.ai_family = address.host.find(':') == std::string::npos ? AF_INET : AF_INET6;
  addrinfo* found = nullptr;
  const int rc =
      getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
  if (rc != 0) *why = gai_strerror(rc);
  return {rc == 0 ? found : nullptr, freeaddrinfo};
}

bool wait_for(int fd, short events, int ms) {
  pollfd entry{fd, events, 0};
  return ::poll(&entry, 1, ms) > 0;
}

std::string take(int fd, std::size_t least, int ms) {
  std::string out;
  std::array<char, 256> part{};
  while (out.size() < least && wait_for(fd, POLLIN, ms)) {
    const ssize_t got = ::recv(fd, part.data(), part.size(), 0);
    if (got <= 0) break;
    out.append(part.data(), static_cast<std::size_t>(got));
  }
  return out;
}

std::string first_printable(const std::string& bytes) {
  std::string out;
  for (const char c : bytes) {
    if (c == '\r' || c == '\n' || out.size() >= 60) break;
    out += c >= ' ' && c <= '~' ? c : '?';
  }
  return "\"" + out + "\"";
}

}  // namespace

RawLook look_at(const HostPort& address) {
  std::string why;
  const Addresses found = resolve(address, SOCK_STREAM, &why);
  if (found == nullptr) return {RawPeer::kNobody, why};
  const Socket socket(::socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (socket.fd < 0) return {RawPeer::kNobody, std::strerror(errno)};
  if (::connect(socket.fd, found->ai_addr, found->ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return {RawPeer::kNobody, std::strerror(errno)};
    if (!wait_for(socket.fd, POLLOUT, kConnectMs)) return {RawPeer::kNobody, "no answer"};
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(socket.fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return {RawPeer::kNobody, std::strerror(error)};
  }
  // ZeroMQ greets whoever connects; most others wait to be asked.
  std::string said = take(socket.fd, kSignature, kGreetingMs);
  if (said.empty()) {
    constexpr std::string_view kRequest = "HEAD / HTTP/1.0\r\n\r\n";
    (void)::send(socket.fd, kRequest.data(), kRequest.size(), MSG_NOSIGNAL);
    said = take(socket.fd, 1, kAnswerMs);
    if (said.empty()) return {RawPeer::kSilent, "it takes connections and says nothing"};
  }
  if (said.size() >= kSignature && said[0] == '\xff' && said[9] == '\x7f') {
    return {RawPeer::kZeroMq, "it speaks ZeroMQ"};
  }
  return {RawPeer::kForeign, "it says " + first_printable(said)};
}

Result<std::string> source_towards(const HostPort& address) {
  std::string why;
  const Addresses found = resolve(address, SOCK_DGRAM, &why);
  if (found == nullptr) {
    return unavailable(address.host + ": " + why + ": check the name, or give its address");
  }
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(found->ai_addr);
  if (found->ai_family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr) &&
      v6->sin6_scope_id == 0) {
    return invalid_argument(address.host + ": a link-local address needs its interface: [" +
                            address.host + "%INTERFACE]:" + std::to_string(address.port));
  }
  // Connecting a datagram socket sends nothing, and asks the routes.
  const Socket socket(::socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_storage local{};
  socklen_t length = sizeof local;
  std::array<char, NI_MAXHOST> host{};
  if (socket.fd < 0 || ::connect(socket.fd, found->ai_addr, found->ai_addrlen) != 0 ||
      getsockname(socket.fd, reinterpret_cast<sockaddr*>(&local), &length) != 0 ||
      getnameinfo(reinterpret_cast<sockaddr*>(&local), length, host.data(), host.size(), nullptr, 0,
                  NI_NUMERICHOST) != 0) {
    return unavailable(address.host + ": " + std::strerror(errno) + ": see ip route get " +
                       address.host);
  }
  return std::string(host.data());
}

}  // namespace kvd::tools
