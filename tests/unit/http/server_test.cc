// The server against plain sockets: what a well-behaved client never sends.
#include "http/server.h"

#include <sys/resource.h>

#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "unit/http/http_fixture.h"

namespace kvd::http {
namespace {

using test::RawClient;
using test::serve;

std::string body_of(const std::string& answer) {
  const std::size_t end = answer.find("\r\n\r\n");
  return end == std::string::npos ? std::string() : answer.substr(end + 4);
}

// The status line's code and the error object's message.
void check_refusal(const std::string& answer, int status) {
  INFO(answer);
  REQUIRE(answer.starts_with("HTTP/1.1 " + std::to_string(status) + " "));
  const auto json = nlohmann::json::parse(body_of(answer));
  CHECK_FALSE(json.at("error").at("message").get<std::string>().empty());
  CHECK(json.at("error").at("type").is_string());
}

TEST_CASE("http server: answers and keeps the connection") {
  const auto server = serve(test::echo);
  RawClient client(server->address());
  REQUIRE(client.send("POST /a?q=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"));
  REQUIRE(client.read_until("POST /a hello"));
  CHECK(client.all().find("Connection: close") == std::string::npos);
  client.forget();
  REQUIRE(client.send("GET /b HTTP/1.1\r\nHost: x\r\n\r\n"));
  CHECK(client.read_until("GET /b "));
}

TEST_CASE("http server: pipelined requests are answered in order") {
  const auto server = serve(test::echo);
  RawClient client(server->address());
  std::string all;
  for (int i = 0; i < 50; ++i) all += "GET /" + std::to_string(i) + "! HTTP/1.1\r\nHost: x\r\n\r\n";
  REQUIRE(client.send(all));
  REQUIRE(client.read_until("GET /49! "));
  std::size_t at = 0;
  for (int i = 0; i < 50; ++i) {
    at = client.all().find("GET /" + std::to_string(i) + "! ", at);
    REQUIRE(at != std::string::npos);
  }
}

TEST_CASE("http server: bytes may come one at a time") {
  const auto server = serve(test::echo);
  RawClient client(server->address());
  const std::string request =
      "POST /slow HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
      "chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
  for (const char c : request) REQUIRE(client.send({&c, 1}));
  CHECK(client.read_until("POST /slow abcde"));
}

TEST_CASE("http server: HTTP/1.0 gets its answer and the end of the connection") {
  const auto server = serve(test::echo);
  RawClient client(server->address());
  REQUIRE(client.send("GET /old HTTP/1.0\r\n\r\n"));
  REQUIRE(client.read_to_end());
  CHECK(client.all().starts_with("HTTP/1.0 200"));
  CHECK(body_of(client.all()) == "GET /old ");
}

TEST_CASE("http server: a stream to HTTP/1.0 has no chunks") {
  const auto server = serve([](Request, std::shared_ptr<Responder> responder) {
    responder->begin(200, "text/event-stream");
    responder->write("one ");
    responder->finish_with("two");
  });
  RawClient client(server->address());
  REQUIRE(client.send("GET / HTTP/1.0\r\n\r\n"));
  REQUIRE(client.read_to_end());
  CHECK(body_of(client.all()) == "one two");
}

TEST_CASE("http server: HEAD gets the head alone") {
  const auto server = serve(test::echo);
  RawClient client(server->address());
  REQUIRE(client.send("HEAD /h HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
  REQUIRE(client.read_to_end());
  CHECK(client.all().find("Content-Length: 7\r\n") != std::string::npos);
  CHECK(body_of(client.all()).empty());
}

TEST_CASE("http server: a client that expects 100-continue is told to go on") {
  const auto server = serve(test::echo);
  RawClient client(server->address());
  REQUIRE(client.send(
      "POST /e HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"));
  REQUIRE(client.read_until("100 Continue\r\n\r\n"));
  REQUIRE(client.send("ok"));
  CHECK(client.read_until("POST /e ok"));
}

TEST_CASE("http server: an answer's head cannot be split by a value") {
  const auto server = serve([](Request, std::shared_ptr<Responder> responder) {
    responder->send(200, "text/plain", "x", {{"X-Id", "a\r\nEvil: yes"}});
  });
  RawClient client(server->address());
  REQUIRE(client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
  REQUIRE(client.read_to_end());
  CHECK(client.all().find("X-Id: aEvil: yes\r\n") != std::string::npos);
}

TEST_CASE("http server: malformed HTTP is 400 with an error object") {
  const auto server = serve(test::echo);
  for (const char* text :
       {"nonsense\r\n\r\n", "GET / HTTP/1.1\r\nno colon here\r\n\r\n", "GET / HTTP/9.9\r\n\r\n",
        "GET  HTTP/1.1\r\n\r\n", "POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "\x16\x03\x01\x02\x01\x01\r\n\r\n"}) {
    RawClient client(server->address());
    REQUIRE(client.send(text));
    REQUIRE(client.read_to_end());
    check_refusal(client.all(), 400);
  }
}

TEST_CASE("http server: contradicting lengths are refused") {
  const auto server = serve(test::echo);
  RawClient client(server->address());
  REQUIRE(client.send(
      "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"));
  REQUIRE(client.read_to_end());
  check_refusal(client.all(), 400);
}

TEST_CASE("http server: a body above the limit is 413, told or chunked") {
  ServerOptions options;
  options.max_body_bytes = 1000;
  const auto server = serve(test::echo, options);
  {
    RawClient client(server->address());
    REQUIRE(client.send("POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n"));
    client.send(std::string(1001, 'x'));
    REQUIRE(client.read_to_end());
    check_refusal(client.all(), 413);
  }
  {
    RawClient client(server->address());
    REQUIRE(client.send("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n500\r\n"));
    client.send(std::string(0x500, 'x'));
    REQUIRE(client.read_to_end());
    check_refusal(client.all(), 413);
  }
  RawClient client(server->address());
  REQUIRE(
      client.send("POST /fits HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + std::string(1000, 'x')));
  CHECK(client.read_until("200 OK"));
}

TEST_CASE("http server: a head above the limit is 431") {
  const auto server = serve(test::echo);
  RawClient client(server->address());
  client.send("GET / HTTP/1.1\r\nX-Long: " + std::string(100'000, 'x'));
  REQUIRE(client.read_to_end());
  check_refusal(client.all(), 431);
}

TEST_CASE("http server: a chunk's line without end is refused") {
  const auto server = serve(test::echo);
  RawClient client(server->address());
  client.send("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" +
              std::string(200'000, 'x'));
  REQUIRE(client.read_to_end());
  check_refusal(client.all(), 400);
}

TEST_CASE("http server: HTTP/2's preface is closed without a word") {
  const auto server = serve(test::echo);
  RawClient client(server->address());
  REQUIRE(client.send("PRI * HT"));
  REQUIRE(client.send("TP/2.0\r\n\r\nSM\r\n\r\n"));
  REQUIRE(client.read_to_end());
  CHECK(client.all().empty());
}

TEST_CASE("http server: a head or body that does not come is 408, an idle connection is closed") {
  ServerOptions options;
  options.idle_timeout = std::chrono::milliseconds(200);
  const auto server = serve(test::echo, options);
  RawClient head(server->address());
  RawClient body(server->address());
  RawClient idle(server->address());
  REQUIRE(head.send("GET / HTT"));
  REQUIRE(body.send("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc"));
  REQUIRE(head.read_to_end());
  REQUIRE(body.read_to_end());
  REQUIRE(idle.read_to_end());
  check_refusal(head.all(), 408);
  check_refusal(body.all(), 408);
  CHECK(idle.all().empty());
}

TEST_CASE("http server: the API key is asked for, but not by /health") {
  ServerOptions options;
  options.api_key = "secret";
  const auto server = serve(test::echo, options);
  const auto ask = [&](const std::string& path, const std::string& header) {
    RawClient client(server->address());
    REQUIRE(client.send("GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + header +
                        "\r\n"));
    REQUIRE(client.read_to_end());
    return client.all();
  };
  check_refusal(ask("/v1/models", ""), 401);
  check_refusal(ask("/v1/models", "Authorization: Bearer secre\r\n"), 401);
  check_refusal(ask("/v1/models", "Authorization: Bearer secrett\r\n"), 401);
  check_refusal(ask("/v1/models", "Authorization: Basic secret\r\n"), 401);
  check_refusal(ask("/health/x", ""), 401);
  CHECK(ask("/v1/models", "Authorization: Bearer secret\r\n").starts_with("HTTP/1.1 200"));
  CHECK(ask("/v1/models", "authorization: bearer secret\r\n").starts_with("HTTP/1.1 200"));
  CHECK(ask("/health", "").starts_with("HTTP/1.1 200"));
  CHECK(ask("/health?x=1", "").starts_with("HTTP/1.1 200"));
}

TEST_CASE("http server: an unauthorized upload is refused before it is read") {
  ServerOptions options;
  options.api_key = "secret";
  const auto server = serve(test::echo, options);
  RawClient client(server->address());
  REQUIRE(
      client.send("POST / HTTP/1.1\r\nContent-Length: 30000000\r\nExpect: 100-continue\r\n\r\n"));
  REQUIRE(client.read_until("\"error\""));
  check_refusal(client.all(), 401);
}

TEST_CASE("http server: a handler that answers nothing is 500") {
  const auto server = serve([](Request request, std::shared_ptr<Responder>) {
    if (request.target == "/throw") throw std::runtime_error("a bug");
  });
  for (const char* path : {"/drop", "/throw"}) {
    RawClient client(server->address());
    REQUIRE(client.send(std::string("GET ") + path +
                        " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    REQUIRE(client.read_to_end());
    check_refusal(client.all(), 500);
  }
}

TEST_CASE("http server: an aborted or dropped stream ends without its last chunk") {
  const auto server = serve([](Request request, std::shared_ptr<Responder> responder) {
    responder->begin(200, "text/event-stream");
    responder->write("part");
    if (request.target == "/abort") responder->abort();
  });
  for (const char* path : {"/abort", "/drop"}) {
    RawClient client(server->address());
    REQUIRE(client.send(std::string("GET ") + path + " HTTP/1.1\r\nHost: x\r\n\r\n"));
    REQUIRE(client.read_to_end());
    CHECK(body_of(client.all()) == "4\r\npart\r\n");
  }
}

TEST_CASE("http server: each write is one chunk, an empty one is none") {
  test::Awaited<bool> late;
  const auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    responder->begin(200, "text/event-stream");
    responder->write("a");
    responder->write("");
    responder->write("bc");
    responder->finish_with("def");
    late.set(responder->write("late"));
  });
  RawClient client(server->address());
  REQUIRE(client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
  REQUIRE(client.read_until("0\r\n\r\n"));
  CHECK(body_of(client.all()) == "1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n0\r\n\r\n");
  REQUIRE(late.wait());
  CHECK_FALSE(late.get());
}

TEST_CASE("http server: port 0, IPv6, an address in use and one that is nobody's") {
  const auto server = serve(test::echo);
  CHECK_FALSE(server->address().ends_with(":0"));
  ServerOptions options;
  options.listen = server->address();
  const auto again = Server::start(options, test::echo);
  REQUIRE_FALSE(again.ok());
  CHECK(again.status().code() == StatusCode::kInvalidArgument);
  CHECK(again.status().message() == "address already in use: " + server->address());
  options.listen = "203.0.113.1:0";
  CHECK(Server::start(options, test::echo).status().code() == StatusCode::kInvalidArgument);
  options.listen = "not an address";
  CHECK(Server::start(options, test::echo).status().code() == StatusCode::kInvalidArgument);
  options.listen = "[::1]:0";
  const auto six = Server::start(options, test::echo);
  if (six.ok()) CHECK((*six)->address().starts_with("[::1]:"));
}

TEST_CASE("http server: at its limit of connections idle ones make room") {
  ServerOptions options;
  options.max_connections = 4;
  const auto server = serve(test::echo, options);
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int i = 0; i < 8; ++i) idle.push_back(std::make_unique<RawClient>(server->address()));
  RawClient client(server->address());
  REQUIRE(client.send("GET /in HTTP/1.1\r\nHost: x\r\n\r\n"));
  CHECK(client.read_until("GET /in "));
}

TEST_CASE("http server: survives running out of descriptors") {
  const auto server = serve(test::echo);
  RawClient first(server->address());
  REQUIRE(first.send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\n"));
  REQUIRE(first.read_until("GET /1 "));
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
  RawClient second;
  const int probe = dup(0);
  REQUIRE(probe >= 0);
  close(probe);
  std::vector<int> held;
  const rlimit low{static_cast<rlim_t>(probe) + 8, before.rlim_max};
  REQUIRE(setrlimit(RLIMIT_NOFILE, &low) == 0);
  for (int fd = dup(0); fd >= 0; fd = dup(0)) held.push_back(fd);
  // The client connects in the kernel, where it waits: accept() finds no descriptor until the idle
  // one has given its own. No assertions in here: UBSan's own checks want a descriptor.
  const bool connected = second.connect(server->address());
  const bool sent = second.send("GET /2 HTTP/1.1\r\nHost: x\r\n\r\n");
  const bool evicted = first.read_to_end();
  const bool answered = second.read_until("GET /2 ");
  for (const int fd : held) close(fd);
  REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
  CHECK(connected);
  CHECK(sent);
  CHECK(evicted);
  CHECK(answered);
}

TEST_CASE("http server: drain finishes what is open and takes nothing new") {
  test::Awaited<std::shared_ptr<Responder>> pending;
  const auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    responder->begin(200, "text/event-stream");
    pending.set(std::move(responder));
  });
  RawClient idle(server->address());
  RawClient busy(server->address());
  REQUIRE(busy.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
  REQUIRE(pending.wait());
  server->drain();
  server->drain();
  CHECK(idle.read_to_end());
  CHECK(pending.get()->write("still"));
  pending.get()->finish();
  REQUIRE(busy.read_to_end());
  CHECK(body_of(busy.all()) == "5\r\nstill\r\n0\r\n\r\n");
  RawClient late;
  CHECK_FALSE(late.connect(server->address()));
}

TEST_CASE("http server: stop cuts what is open, and a late Responder is harmless") {
  test::Awaited<std::shared_ptr<Responder>> pending;
  test::Awaited<bool> gone;
  auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    responder->on_gone([&] { gone.set(true); });
    pending.set(std::move(responder));
  });
  RawClient client(server->address());
  REQUIRE(client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
  REQUIRE(pending.wait());
  server->stop();
  server->stop();
  CHECK(gone.times() == 1);
  CHECK(client.read_to_end());
  server.reset();
  const auto responder = pending.get();
  CHECK(responder->gone());
  responder->begin(200, "text/plain");
  CHECK_FALSE(responder->write("late"));
  responder->finish();
  test::Awaited<bool> at_once;
  responder->on_gone([&] { at_once.set(true); });
  CHECK(at_once.times() == 1);
}

TEST_CASE("http server: an answer finished before stop still gets out") {
  for (int i = 0; i < 5; ++i) {
    const auto server = serve([](Request, std::shared_ptr<Responder> responder) {
      responder->send(200, "text/plain", std::string(1'000'000, 'x') + "end");
    });
    RawClient client(server->address());
    REQUIRE(client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
    REQUIRE(client.read_until("200 OK"));
    std::jthread stopper([&] { server->stop(); });
    CHECK(client.read_until("end"));
    stopper.join();
  }
}

}  // namespace
}  // namespace kvd::http
