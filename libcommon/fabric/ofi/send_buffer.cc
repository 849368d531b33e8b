#include "fabric/ofi/send_buffer.h"

#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>

namespace kvd::fabric::ofi {
namespace {

// IP address and port of a socket address, as bytes that can be compared; empty for others.
std::string place_of(const void* address, std::size_t bytes) {
  sockaddr_storage any{};
  std::memcpy(&any, address, std::min(bytes, sizeof any));
  std::string out;
  const auto add = [&out](const auto& field) {
    out.append(reinterpret_cast<const char*>(&field), sizeof field);
  };
  if (any.ss_family == AF_INET) {
    const auto* in = reinterpret_cast<const sockaddr_in*>(&any);
    add(in->sin_addr);
    add(in->sin_port);
  } else if (any.ss_family == AF_INET6) {
    const auto* in = reinterpret_cast<const sockaddr_in6*>(&any);
    add(in->sin6_addr);
    add(in->sin6_port);
  }
  return out;
}

bool is_connected_to(int socket, const std::string& place) {
  sockaddr_storage any{};
  socklen_t bytes = sizeof any;
  return getpeername(socket, reinterpret_cast<sockaddr*>(&any), &bytes) == 0 &&
         place_of(&any, bytes) == place;
}

bool is_faster_than(int socket, std::chrono::microseconds round_trip) {
  tcp_info info{};
  socklen_t bytes = sizeof info;
  constexpr socklen_t kNeeded = offsetof(tcp_info, tcpi_min_rtt) + sizeof info.tcpi_min_rtt;
  return getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &bytes) == 0 && bytes >= kNeeded &&
         std::chrono::microseconds(info.tcpi_min_rtt) < round_trip;
}

constexpr int kAsked = kBbrSendBuffer / 2;  // Linux doubles it

bool set_buffer(int socket) {
  int got = 0;
  socklen_t bytes = sizeof got;
  return setsockopt(socket, SOL_SOCKET, SO_SNDBUF, &kAsked, sizeof kAsked) == 0 &&
         getsockopt(socket, SOL_SOCKET, SO_SNDBUF, &got, &bytes) == 0 && got == kBbrSendBuffer;
}

}  // namespace

// Tried on a socket of its own: the limit's file is not in every network namespace.
bool may_shorten_send_buffers() {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket < 0) return false;
  const bool may = set_buffer(socket);
  close(socket);
  return may;
}

bool is_loopback(const FabricAddress& address) {
  sockaddr_storage any{};
  std::memcpy(&any, address.data(), std::min(address.size(), sizeof any));
  if (any.ss_family == AF_INET) {
    return ntohl(reinterpret_cast<const sockaddr_in*>(&any)->sin_addr.s_addr) >> 24 ==
           IN_LOOPBACKNET;
  }
  return any.ss_family == AF_INET6 &&
         IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(&any)->sin6_addr);
}

std::size_t shorten_send_buffers(const FabricAddress& peer, std::chrono::microseconds round_trip) {
  const std::string place = place_of(peer.data(), peer.size());
  if (place.empty() || !may_shorten_send_buffers()) return 0;
  const bool loopback = is_loopback(peer);
  std::size_t count = 0;
  std::error_code error;
  std::filesystem::directory_iterator entry("/proc/self/fd", error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    int fd = -1;
    std::from_chars(name.data(), name.data() + name.size(), fd);
    if (!is_connected_to(fd, place)) continue;
    if ((loopback || is_faster_than(fd, round_trip)) && set_buffer(fd)) ++count;
  }
  return count;
}

}  // namespace kvd::fabric::ofi
