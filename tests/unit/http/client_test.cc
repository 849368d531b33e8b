// The client against the server, and against sockets that misbehave.
#include "http/client.h"

#include <atomic>
#include <thread>
#include <vector>

#include "unit/http/http_fixture.h"

namespace kvd::http {
namespace {

using test::Awaited;
using test::serve;
using test::url_of;

// A listening socket whose connections the test answers by hand.
class RawServer {
 public:
  RawServer() {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in here{};
    here.sin_family = AF_INET;
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(here);
    REQUIRE(bind(fd_, reinterpret_cast<sockaddr*>(&here), size) == 0);
    REQUIRE(listen(fd_, 16) == 0);
    REQUIRE(getsockname(fd_, reinterpret_cast<sockaddr*>(&here), &size) == 0);
    url_ = "http://127.0.0.1:" + std::to_string(ntohs(here.sin_port)) + "/";
  }
  ~RawServer() { ::close(fd_); }
  RawServer(const RawServer&) = delete;
  RawServer& operator=(const RawServer&) = delete;
  const std::string& url() const { return url_; }

  // Takes a connection, reads a request's head; the caller closes.
  int accept_request() const {
    const int fd = accept(fd_, nullptr, nullptr);
    read_request(fd);
    return fd;
  }
  static std::string read_request(int fd) {
    std::string all;
    char c = 0;
    while (all.find("\r\n\r\n") == std::string::npos && recv(fd, &c, 1, 0) == 1) all += c;
    return all;
  }
  static void say(int fd, std::string_view text) {
    static_cast<void>(!::send(fd, text.data(), text.size(), MSG_NOSIGNAL));
  }

 private:
  int fd_ = -1;
  std::string url_;
};

ClientRequest post(const std::string& url, std::string body) {
  ClientRequest request;
  request.url = url;
  request.method = "POST";
  request.body = std::move(body);
  return request;
}

ClientRequest get(const std::string& url) {
  ClientRequest request;
  request.url = url;
  return request;
}

TEST_CASE("http client: fetches, with headers and bodies both ways") {
  const auto server = serve([](Request request, std::shared_ptr<Responder> responder) {
    responder->send(202, "text/plain",
                    request.method + request.target + "?" + request.query + request.body,
                    {{"X-Seen", request.headers["x-asked"]}});
  });
  const auto client = Client::create();
  ClientRequest request = post(url_of(*server, "/p?a=b"), "body");
  request.headers["X-Asked"] = "yes";
  const auto answer = client->fetch(std::move(request));
  REQUIRE(answer.ok());
  CHECK(answer->head.status == 202);
  CHECK(answer->head.headers.at("x-seen") == "yes");
  CHECK(answer->head.headers.at("content-type") == "text/plain");
  CHECK(answer->body == "POST/p?a=bbody");
}

TEST_CASE("http client: a body of 20 MiB comes back whole") {
  const auto server = serve([](Request request, std::shared_ptr<Responder> responder) {
    responder->send(200, "text/plain", std::move(request.body));
  });
  std::string body(20U << 20U, '\0');
  for (std::size_t i = 0; i < body.size(); ++i) body[i] = static_cast<char>(i * 2654435761U >> 13U);
  const auto client = Client::create();
  const auto answer = client->fetch(post(url_of(*server, "/"), body));
  REQUIRE(answer.ok());
  CHECK((answer->body == body));
}

TEST_CASE("http client: keeps the borders of chunks") {
  const auto server = serve([](Request, std::shared_ptr<Responder> responder) {
    responder->begin(200, "text/event-stream");
    responder->write("data: 1\n\n");
    responder->write("data: 2\n\ndata: 3\n\n");
    responder->write(std::string(300'000, 'x'));
    responder->finish_with("data: [DONE]\n\n");
  });
  const auto client = Client::create();
  std::vector<std::string> chunks;
  Awaited<StatusCode> ended;
  ClientCallbacks callbacks;
  callbacks.on_data = [&](std::string_view data) { chunks.emplace_back(data); };
  callbacks.on_end = [&](Status status) { ended.set(status.code()); };
  client->start(get(url_of(*server, "/")), callbacks);
  REQUIRE(ended.wait());
  CHECK(ended.get() == StatusCode::kOk);
  REQUIRE(chunks.size() == 4);
  CHECK(chunks[0] == "data: 1\n\n");
  CHECK(chunks[1] == "data: 2\n\ndata: 3\n\n");
  CHECK(chunks[2].size() == 300'000);
  CHECK(chunks[3] == "data: [DONE]\n\n");
}

TEST_CASE("http client: connections are reused") {
  RawServer server;
  std::jthread thread([&] {
    const int fd = server.accept_request();
    for (int i = 0; i < 5; ++i) {
      RawServer::say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + std::to_string(i));
      if (i < 4) RawServer::read_request(fd);
    }
    close(fd);
  });
  const auto client = Client::create();
  for (int i = 0; i < 5; ++i) {
    const auto answer = client->fetch(get(server.url()));
    REQUIRE(answer.ok());
    CHECK(answer->body == std::to_string(i));
  }
  thread.join();
}

TEST_CASE("http client: a pooled connection that is dead is replaced once") {
  RawServer server;
  std::jthread thread([&] {
    int fd = server.accept_request();
    RawServer::say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na");
    RawServer::read_request(
        fd);  // the second request comes on the same connection, and dies with it
    close(fd);
    fd = server.accept_request();
    RawServer::say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb");
    RawServer::read_request(fd);
    RawServer::say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nc");
    close(fd);
  });
  const auto client = Client::create();
  auto answer = client->fetch(get(server.url()));
  REQUIRE(answer.ok());
  CHECK(answer->body == "a");
  answer = client->fetch(get(server.url()));
  REQUIRE(answer.ok());
  CHECK(answer->body == "b");
  // Part of an answer has come: no second try.
  answer = client->fetch(get(server.url()));
  CHECK(answer.status().code() == StatusCode::kUnavailable);
  thread.join();
}

TEST_CASE("http client: a fresh connection that dies is not tried again") {
  RawServer server;
  std::jthread thread([&] { close(server.accept_request()); });
  const auto client = Client::create();
  const auto answer = client->fetch(get(server.url()));
  CHECK(answer.status().code() == StatusCode::kUnavailable);
  thread.join();
}

TEST_CASE("http client: answers of every framing, and none") {
  struct Case {
    const char* answer;
    StatusCode code;
    const char* body;
  };
  const Case cases[] = {
      {"HTTP/1.1 200 OK\r\n\r\nto the end", StatusCode::kOk, "to the end"},
      {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", StatusCode::kOk, "ok"},
      {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
       StatusCode::kOk, "ok"},
      {"HTTP/1.1 204 No Content\r\n\r\n", StatusCode::kOk, ""},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nTrailer: "
       "1\r\n\r\n",
       StatusCode::kOk, "ok"},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", StatusCode::kUnavailable,
       ""},
      {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", StatusCode::kUnavailable, ""},
      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", StatusCode::kFailed, ""},
      {"SSH-2.0-OpenSSH_9.2\r\n", StatusCode::kFailed, ""},
      {"", StatusCode::kUnavailable, ""},
  };
  const auto client = Client::create();
  for (const Case& each : cases) {
    RawServer server;
    std::jthread thread([&] {
      const int fd = server.accept_request();
      RawServer::say(fd, each.answer);
      shutdown(fd, SHUT_WR);
      RawServer::read_request(fd);
      close(fd);
    });
    const auto answer = client->fetch(get(server.url()));
    INFO(each.answer);
    INFO(answer.status().message());
    CHECK(answer.status().code() == each.code);
    if (answer.ok()) CHECK(answer->body == each.body);
    thread.join();
  }
}

// Found by fuzzing: Beast aborted the process.
TEST_CASE("http client: a server that says Continue and closes is unavailable") {
  RawServer server;
  std::jthread thread([&] {
    const int fd = server.accept_request();
    RawServer::say(fd, "HTTP/1.1 100 Continue\r\n\r\n");
    close(fd);
  });
  const auto client = Client::create();
  const auto answer = client->fetch(get(server.url()));
  CHECK(answer.status().code() == StatusCode::kUnavailable);
  thread.join();
}

TEST_CASE("http client: nobody there, bad URLs and bad headers are told at once") {
  std::string address;
  { address = RawServer().url(); }
  const auto client = Client::create();
  const auto refused = client->fetch(get(address));
  CHECK(refused.status().code() == StatusCode::kUnavailable);
  CHECK(refused.status().message().find("cannot connect to 127.0.0.1:") != std::string::npos);
  CHECK(client->fetch(get("http://no-such-host.invalid:1/")).status().code() ==
        StatusCode::kUnavailable);
  for (const char* url :
       {"https://x/", "x:1/", "http://", "http://:80/", "http://a:b/", "http://u@h:1/",
        "http://h:1/a b", "http://h:99999/", "http://h:1/\r\nX: y", "http://[::1/"}) {
    INFO(url);
    CHECK(client->fetch(get(url)).status().code() == StatusCode::kInvalidArgument);
  }
  ClientRequest bad = get(address);
  bad.headers["X-Id"] = "a\r\nb: c";
  CHECK(client->fetch(std::move(bad)).status().code() == StatusCode::kInvalidArgument);
}

TEST_CASE("http client: the timeout covers the whole exchange") {
  std::vector<std::shared_ptr<Responder>> kept;
  const auto server = serve([&](Request request, std::shared_ptr<Responder> responder) {
    if (request.target == "/part") {
      responder->begin(200, "text/plain");
      responder->write("part");
    }
    kept.push_back(std::move(responder));
  });
  const auto client = Client::create();
  for (const char* path : {"/silent", "/part"}) {
    ClientRequest request = get(url_of(*server, path));
    request.timeout = std::chrono::milliseconds(100);
    const auto answer = client->fetch(std::move(request));
    CHECK(answer.status().code() == StatusCode::kDeadline);
  }
  server->stop();
}

TEST_CASE("http client: cancel closes the connection, and ends once") {
  Awaited<bool> gone;
  Awaited<bool> arrived;
  std::shared_ptr<Responder> kept;
  const auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    responder->on_gone([&] { gone.set(true); });
    responder->begin(200, "text/event-stream");
    responder->write("data: 1\n\n");
    kept = std::move(responder);
  });
  const auto client = Client::create();
  Awaited<StatusCode> ended;
  ClientCallbacks callbacks;
  callbacks.on_data = [&](std::string_view) { arrived.set(true); };
  callbacks.on_end = [&](Status status) { ended.set(status.code()); };
  const auto call = client->start(get(url_of(*server, "/")), callbacks);
  REQUIRE(arrived.wait());
  call->cancel();
  call->cancel();
  REQUIRE(ended.wait());
  CHECK(ended.get() == StatusCode::kCancelled);
  CHECK(gone.wait());
  call->cancel();
  server->stop();
  CHECK(ended.times() == 1);
}

TEST_CASE("http client: a callback may cancel, and hears no more data") {
  std::shared_ptr<Responder> kept;
  const auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    responder->begin(200, "text/event-stream");
    for (int i = 0; i < 10; ++i) responder->write("x");
    kept = std::move(responder);
  });
  const auto client = Client::create();
  Awaited<StatusCode> ended;
  Awaited<std::shared_ptr<Call>> started;
  std::atomic<int> pieces{0};
  ClientCallbacks callbacks;
  callbacks.on_data = [&](std::string_view) {
    ++pieces;
    if (started.wait()) started.get()->cancel();
  };
  callbacks.on_end = [&](Status status) { ended.set(status.code()); };
  started.set(client->start(get(url_of(*server, "/")), callbacks));
  REQUIRE(ended.wait());
  CHECK(ended.get() == StatusCode::kCancelled);
  CHECK(pieces == 1);
  server->stop();
}

TEST_CASE("http client: destroying it ends what runs") {
  std::shared_ptr<Responder> kept;
  Awaited<bool> asked;
  const auto server = serve([&](Request, std::shared_ptr<Responder> responder) {
    kept = std::move(responder);
    asked.set(true);
  });
  Awaited<StatusCode> ended;
  auto client = Client::create();
  ClientCallbacks callbacks;
  callbacks.on_end = [&](Status status) { ended.set(status.code()); };
  const auto call = client->start(get(url_of(*server, "/")), callbacks);
  REQUIRE(asked.wait());
  client.reset();
  CHECK(ended.times() == 1);
  CHECK(ended.get() == StatusCode::kCancelled);
  call->cancel();
  server->stop();
}

TEST_CASE("http client: 200 calls at once") {
  constexpr int kCalls = 200;
  const auto server = serve([](Request request, std::shared_ptr<Responder> responder) {
    responder->begin(200, "text/event-stream");
    for (int i = 0; i < 20; ++i) responder->write(request.body);
    responder->finish();
  });
  const auto client = Client::create();
  std::vector<std::string> bodies(kCalls);
  std::atomic<int> left{kCalls};
  std::atomic<int> good{0};
  Awaited<bool> all;
  for (int i = 0; i < kCalls; ++i) {
    ClientCallbacks callbacks;
    callbacks.on_data = [&, i](std::string_view data) {
      bodies[static_cast<std::size_t>(i)] += data;
    };
    callbacks.on_end = [&](Status status) {
      if (status.ok()) ++good;
      if (--left == 0) all.set(true);
    };
    client->start(post(url_of(*server, "/"), std::to_string(i) + ";"), callbacks);
  }
  REQUIRE(all.wait());
  CHECK(good == kCalls);
  int right = 0;
  for (int i = 0; i < kCalls; ++i) {
    std::string expected;
    for (int k = 0; k < 20; ++k) expected += std::to_string(i) + ";";
    if (bodies[static_cast<std::size_t>(i)] == expected) ++right;
  }
  CHECK(right == kCalls);
}

TEST_CASE("http client: HEAD has a head and no body") {
  const auto server = serve(test::echo);
  const auto client = Client::create();
  ClientRequest request = get(url_of(*server, "/x"));
  request.method = "HEAD";
  const auto answer = client->fetch(std::move(request));
  REQUIRE(answer.ok());
  CHECK(answer->head.headers.at("content-length") == "7");
  CHECK(answer->body.empty());
}

}  // namespace
}  // namespace kvd::http
