// Clients that leave, read slowly, or come in crowds.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "http/server.h"
#include "unit/http/http_fixture.h"

namespace kvd::http {
namespace {

using test::Awaited;
using test::RawClient;
using test::serve;
using SteadyClockType = std::chrono::steady_clock;

enum class Leaving { kClose, kReset, kHalfClose };

TEST_CASE("http disconnect: a client that leaves is noticed while nothing is written") {
  for (const Leaving how : {Leaving::kClose, Leaving::kReset, Leaving::kHalfClose}) {
    for (const bool streaming : {false, true}) {
      Awaited<std::shared_ptr<Responder>> pending;
      Awaited<SteadyClockType::time_point> gone;
      const auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
        if (streaming) responder->begin(200, "text/event-stream");
        responder->on_gone([&] { gone.set(SteadyClockType::now()); });
        pending.set(std::move(responder));
      });
      RawClient client(server->address());
      REQUIRE(client.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"));
      REQUIRE(pending.wait());
      if (streaming) REQUIRE(client.read_until("chunked"));
      const auto left = SteadyClockType::now();
      if (how == Leaving::kClose) client.close();
      if (how == Leaving::kReset) client.reset();
      if (how == Leaving::kHalfClose) client.half_close();
      REQUIRE(gone.wait());
      CHECK(gone.get() - left < std::chrono::milliseconds(500));
      CHECK(pending.get()->gone());
      CHECK_FALSE(pending.get()->write("x"));
      pending.get()->send(200, "text/plain", "x");
      CHECK(gone.times() == 1);
    }
  }
}

TEST_CASE("http disconnect: a finished answer calls nobody") {
  Awaited<bool> gone;
  Awaited<bool> called;
  const auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    responder->on_gone([&] { gone.set(true); });
    responder->send(200, "text/plain", "done");
    responder->on_gone([&] { gone.set(true); });
    called.set(true);
  });
  {
    RawClient client(server->address());
    REQUIRE(client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
    REQUIRE(client.read_until("done"));
  }
  server->stop();
  CHECK(called.times() == 1);
  CHECK(gone.times() == 0);
}

TEST_CASE("http disconnect: a client that half-closes still gets a quick answer") {
  const auto server = serve(test::echo);
  RawClient client(server->address());
  REQUIRE(client.send("GET /q HTTP/1.1\r\nHost: x\r\n\r\n"));
  client.half_close();
  REQUIRE(client.read_to_end());
  CHECK(client.all().find("GET /q ") != std::string::npos);
}

TEST_CASE("http disconnect: a client that reads nothing is cut off beyond 4 MiB") {
  Awaited<std::shared_ptr<Responder>> pending;
  Awaited<bool> gone;
  const auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    responder->begin(200, "text/event-stream");
    responder->on_gone([&] { gone.set(true); });
    pending.set(std::move(responder));
  });
  RawClient client(server->address(), 4096);
  REQUIRE(client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
  REQUIRE(pending.wait());
  std::size_t taken = 0;
  while (taken < (64U << 20U) && pending.get()->write(std::string(65536, 'x'))) taken += 65536;
  CHECK(taken >= (4U << 20U));
  CHECK(taken < (32U << 20U));  // 4 MiB and what the kernel's buffers hold
  REQUIRE(gone.wait());
  CHECK(pending.get()->gone());
}

TEST_CASE("http disconnect: an answer that is not read does not hold the connection for ever") {
  ServerOptions options;
  options.idle_timeout = std::chrono::milliseconds(200);
  options.max_connections = 1;
  const auto server = serve(
      [](Request request, std::shared_ptr<Responder> responder) {
        const bool big = request.target == "/big";
        responder->send(200, "text/plain", big ? std::string(32U << 20U, 'x') : "small");
      },
      options);
  RawClient client(server->address(), 4096);
  REQUIRE(client.send("GET /big HTTP/1.1\r\nHost: x\r\n\r\n"));
  REQUIRE(client.read_until("200 OK"));
  RawClient next(server->address());  // has to wait for the one connection there may be
  REQUIRE(next.send("GET /small HTTP/1.1\r\nHost: x\r\n\r\n"));
  CHECK(next.read_until("small"));
}

TEST_CASE("http disconnect: 200 streams at once, written by other threads") {
  constexpr int kStreams = 200;
  constexpr int kEvents = 20;
  std::mutex mutex;
  std::vector<std::shared_ptr<Responder>> open;
  Awaited<bool> all_there;
  ServerOptions options;
  options.threads = 2;
  const auto server = serve(
      [&](Request, std::shared_ptr<Responder> responder) {
        responder->begin(200, "text/event-stream");
        const std::lock_guard lock(mutex);
        open.push_back(std::move(responder));
        if (open.size() == kStreams) all_there.set(true);
      },
      options);
  std::vector<std::unique_ptr<RawClient>> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.push_back(std::make_unique<RawClient>(server->address()));
    REQUIRE(clients.back()->send("GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
  }
  REQUIRE(all_there.wait());
  std::vector<std::jthread> writers;
  for (int w = 0; w < 4; ++w) {
    writers.emplace_back([&, w] {
      for (int e = 0; e < kEvents; ++e) {
        for (std::size_t i = static_cast<std::size_t>(w); i < open.size(); i += 4) {
          open[i]->write("data: " + std::to_string(e) + "\n\n");
        }
      }
      for (std::size_t i = static_cast<std::size_t>(w); i < open.size(); i += 4) open[i]->finish();
    });
  }
  for (std::jthread& writer : writers) writer.join();
  std::string expected;
  for (int e = 0; e < kEvents; ++e) {
    expected += std::string(e < 10 ? "9" : "a") + "\r\ndata: " + std::to_string(e) + "\n\n\r\n";
  }
  expected += "0\r\n\r\n";
  int right = 0;
  for (const auto& client : clients) {
    if (client->read_until("0\r\n\r\n") && client->all().ends_with("\r\n\r\n" + expected)) ++right;
  }
  CHECK(right == kStreams);
}

}  // namespace
}  // namespace kvd::http
