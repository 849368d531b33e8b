// Which sockets get a short send buffer, and that a link's connection is among them under bbr.
#include "fabric/ofi/send_buffer.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <optional>

#include "contract/world.h"

namespace kvd::fabric::contract {
namespace {

// A listener at an address of this host, a connection to it and what it accepted.
struct Connection {
  explicit Connection(in_addr at = {htonl(INADDR_LOOPBACK)}) {
    address.sin_family = AF_INET;
    address.sin_addr = at;
    socklen_t bytes = sizeof address;
    REQUIRE(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(listen(listener, 1) == 0);
    REQUIRE(getsockname(listener, reinterpret_cast<sockaddr*>(&address), &bytes) == 0);
    REQUIRE(connect(out, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    in = accept(listener, nullptr, nullptr);
    REQUIRE(in >= 0);
    // A round trip to be measured.
    char byte = 0;
    REQUIRE(send(out, &byte, 1, 0) == 1);
    REQUIRE(recv(in, &byte, 1, 0) == 1);
    REQUIRE(send(in, &byte, 1, 0) == 1);
    REQUIRE(recv(out, &byte, 1, 0) == 1);
  }
  ~Connection() {
    for (const int fd : {in, out, listener}) close(fd);
  }
  FabricAddress peer() const { return {reinterpret_cast<const char*>(&address), sizeof address}; }

  sockaddr_in address{};
  int listener = socket(AF_INET, SOCK_STREAM, 0), out = socket(AF_INET, SOCK_STREAM, 0), in = -1;
};

// An IPv4 address of this host that is not of the loopback, though packets to it go no other way.
std::optional<in_addr> other_address() {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return std::nullopt;
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(list, &freeifaddrs);
  for (; list != nullptr; list = list->ifa_next) {
    if (list->ifa_addr == nullptr || list->ifa_addr->sa_family != AF_INET) continue;
    const in_addr at = reinterpret_cast<const sockaddr_in*>(list->ifa_addr)->sin_addr;
    if (ntohl(at.s_addr) >> 24 != IN_LOOPBACKNET) return at;
  }
  return std::nullopt;
}

int send_buffer(int fd) {
  int value = 0;
  socklen_t bytes = sizeof value;
  return getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &value, &bytes) == 0 ? value : -1;
}

// Sockets of this process that have just this buffer.
int count_short() {
  int count = 0;
  for (int fd = 0; fd < 1024; ++fd) count += send_buffer(fd) == ofi::kBbrSendBuffer ? 1 : 0;
  return count;
}

FabricAddress address_of(const char* text) {
  sockaddr_in v4{};
  sockaddr_in6 v6{};
  if (inet_pton(AF_INET, text, &v4.sin_addr) == 1) {
    v4.sin_family = AF_INET;
    return {reinterpret_cast<const char*>(&v4), sizeof v4};
  }
  REQUIRE(inet_pton(AF_INET6, text, &v6.sin6_addr) == 1);
  v6.sin6_family = AF_INET6;
  return {reinterpret_cast<const char*>(&v6), sizeof v6};
}

}  // namespace

TEST_CASE("send buffer: what the loopback is, and what wmem_max allows") {
  for (const char* text : {"127.0.0.1", "127.255.0.1", "::1"}) {
    INFO(text);
    CHECK(ofi::is_loopback(address_of(text)));
  }
  for (const char* text : {"126.255.255.255", "128.0.0.1", "10.0.0.127", "0.0.0.0", "::", "fe80::1",
                           "::ffff:127.0.0.1"}) {
    INFO(text);
    CHECK_FALSE(ofi::is_loopback(address_of(text)));
  }
  CHECK_FALSE(ofi::is_loopback(""));
  CHECK_FALSE(ofi::is_loopback(FabricAddress(64, '\x7f')));
  int most = 0;
  if (std::ifstream("/proc/sys/net/core/wmem_max") >> most) {
    CHECK(ofi::may_shorten_send_buffers() == (most >= 512 << 10));
  }
}

TEST_CASE("send buffer: of the connection to the peer alone, and of none by a strange address") {
  Connection one, other;
  const int before = send_buffer(other.out), accepted = send_buffer(one.in);
  REQUIRE(before != ofi::kBbrSendBuffer);
  CHECK(ofi::shorten_send_buffers("") == 0);
  CHECK(ofi::shorten_send_buffers(FabricAddress(64, '\x2a')) == 0);
  CHECK(ofi::shorten_send_buffers(one.peer().substr(0, 3)) == 0);
  CHECK(count_short() == 0);
  const std::size_t shortened = ofi::shorten_send_buffers(one.peer());
  if (!ofi::may_shorten_send_buffers()) {
    CHECK(shortened == 0);
    CHECK(count_short() == 0);
    return;
  }
  CHECK(shortened == 1);
  CHECK(send_buffer(one.out) == ofi::kBbrSendBuffer);
  CHECK(send_buffer(one.in) == accepted);
  CHECK(send_buffer(other.out) == before);
}

TEST_CASE("send buffer: elsewhere than on the loopback only of connections that are fast enough") {
  using std::chrono::microseconds;
  if (!ofi::may_shorten_send_buffers()) return;
  Connection loopback;
  CHECK(ofi::shorten_send_buffers(loopback.peer(), microseconds(0)) == 1);
  const std::optional<in_addr> at = other_address();
  if (!at) {
    WARN("this host has no IPv4 address but the loopback's");
    return;
  }
  Connection elsewhere(*at);
  CHECK(ofi::shorten_send_buffers(elsewhere.peer(), microseconds(0)) == 0);
  CHECK(send_buffer(elsewhere.out) != ofi::kBbrSendBuffer);
  CHECK(ofi::shorten_send_buffers(elsewhere.peer(), std::chrono::seconds(1)) == 1);
  CHECK(send_buffer(elsewhere.out) == ofi::kBbrSendBuffer);
}

TEST_CASE("send buffer: a link's connection has it after its first writes, under bbr only") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  std::string congestion;
  std::ifstream("/proc/sys/net/ipv4/tcp_congestion_control") >> congestion;
  const bool wanted = provider.starts_with("tcp") && congestion.starts_with("bbr") &&
                      ofi::may_shorten_send_buffers();
  auto world = make_world(provider);
  Link link(world.get(), 1 << 20);
  for (std::uint64_t write = 1; write <= 16; ++write) {
    REQUIRE(link.post(pattern(64 << 10, write), 0, write, true).ok());
    REQUIRE(link.until([&] { return link.done.size() == write; }));
  }
  CHECK(count_short() == (wanted ? 1 : 0));
}

}  // namespace kvd::fabric::contract
