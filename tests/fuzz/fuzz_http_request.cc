// The server, at its socket: whatever a connection says, what reaches the handler is within its
// bounds, each answer is one, and the server lives on. The first byte says into how many pieces the
// stream is cut.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/units.h"
#include "http/server.h"

namespace {

using kvd::http::Request;
using kvd::http::Responder;

constexpr std::size_t kMaxBody = 8192;

void handle(const Request& request, const std::shared_ptr<Responder>& responder) {
  KVD_CHECK(!request.method.empty());
  KVD_CHECK(request.target.find('?') == std::string::npos);
  KVD_CHECK(request.body.size() <= kMaxBody);
  for (const auto& [name, value] : request.headers) {
    KVD_CHECK(std::none_of(name.begin(), name.end(), [](char c) { return c >= 'A' && c <= 'Z'; }));
    KVD_CHECK(value.find_first_of("\r\n") == std::string::npos);
  }
  if (request.body.size() % 2 == 0) return responder->send(200, "text/plain", request.query);
  responder->begin(200, "text/event-stream");
  responder->write("data: x\n\n");
  responder->finish();
}

const kvd::http::Server& server() {
  static const std::unique_ptr<kvd::http::Server> running = [] {
    kvd::http::ServerOptions options;
    options.listen = "127.0.0.1:0";
    options.max_body_bytes = kMaxBody;
    auto started = kvd::http::Server::start(options, handle);
    return std::move(started).value();
  }();
  return *running;
}

// Each connection has a source address of its own: one address has too few ports for thousands a
// second.
int dial(std::uint16_t port) {
  static std::uint32_t count = 0;
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  KVD_CHECK(fd >= 0);
  sockaddr_in from{};
  from.sin_family = AF_INET;
  from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + count++ % 16000000);
  KVD_CHECK(::bind(fd, reinterpret_cast<const sockaddr*>(&from), sizeof from) == 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  to.sin_port = htons(port);
  // libFuzzer's alarm interrupts the wait, not the connection: it is waited for again.
  while (::connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) {
    KVD_CHECK(errno == EINTR);
  }
  const int yes = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  return fd;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  static const std::uint16_t port = kvd::parse_host_port(server().address()).value().port;
  const int fd = dial(port);
  std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::size_t piece = text.size() / (1 + data[0] % 4) + 1;
  while (!text.empty()) {
    const ssize_t sent = ::send(fd, text.data(), std::min(piece, text.size()), MSG_NOSIGNAL);
    if (sent <= 0) break;  // refused before it was all said
    text.remove_prefix(static_cast<std::size_t>(sent));
  }
  ::shutdown(fd, SHUT_WR);
  std::string answer;
  char bytes[4096];
  for (ssize_t n = 0; (n = ::recv(fd, bytes, sizeof bytes, 0)) > 0;) {
    answer.append(bytes, static_cast<std::size_t>(n));
  }
  ::close(fd);
  KVD_CHECK(answer.empty() || answer.starts_with("HTTP/1."));
  return 0;
}
