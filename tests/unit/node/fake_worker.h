// A worker as the router sees one: it answers Describe over ZeroMQ, and a real HTTP server behind
// it does what the test says. And a router with its client.
#pragma once

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/bounded_queue.h"
#include "base/rng.h"
#include "control/messenger.h"
#include "control/zmq_channel.h"
#include "http/client.h"
#include "http/server.h"
#include "node/event_loop.h"
#include "node/registry_client.h"
#include "node/worker.h"
#include "proto/link_messages.h"

namespace kvd::node::testing {

constexpr Duration kPatience{10'000'000'000};

// Waits for something that other threads bring about, by looking at it again and again.
template <typename Condition>
bool eventually(Condition condition, Duration patience = kPatience) {
  std::mutex mutex;
  std::condition_variable never;
  std::unique_lock lock(mutex);
  const auto end = std::chrono::steady_clock::now() + patience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= end) return false;
    never.wait_for(lock, std::chrono::milliseconds(5));
  }
  return true;
}

// Requests that came, and those whose client went away before the answer's end.
struct Seen {
  std::mutex mutex;
  std::vector<http::Request> requests;
  std::vector<std::shared_ptr<http::Responder>> held;
  int gone = 0;

  int count() {
    const std::lock_guard lock(mutex);
    return static_cast<int>(requests.size());
  }
  int gone_count() {
    const std::lock_guard lock(mutex);
    return gone;
  }
  std::string body(std::size_t index) {
    const std::lock_guard lock(mutex);
    return requests.at(index).body;
  }
};

class FakeWorker final : LoopTask {
 public:
  using Answer = std::function<void(const http::Request&, const std::shared_ptr<http::Responder>&)>;

  FakeWorker(std::string role, Answer answer, std::string join = "") : answer_(std::move(answer)) {
    http::ServerOptions options;
    options.listen = "127.0.0.1:0";
    auto server = http::Server::start(
        options, [this](const http::Request& request, const std::shared_ptr<http::Responder>& to) {
          {
            const std::lock_guard lock(seen.mutex);
            seen.requests.push_back(request);
            seen.held.push_back(to);
          }
          to->on_gone([this] {
            const std::lock_guard lock(seen.mutex);
            ++seen.gone;
          });
          answer_(request, to);
        });
    REQUIRE(server.ok());
    server_ = std::move(*server);
    control::ZmqOptions zmq;
    zmq.listen = "127.0.0.1:0";
    auto channel = control::open_zmq_channel(zmq);
    REQUIRE(channel.ok());
    channel_ = std::move(*channel);
    messenger_ = std::make_unique<control::Messenger>(
        channel_.get(), Incarnation{secure_random_u63()}, &clock_, nullptr);
    described_.role = role;
    described_.program = "kvd-" + role;
    described_.http = "http://" + server_->address();
    described_.model = "m";
    described_.fingerprint = "f";
    if (!join.empty()) {
      registry_ = std::make_unique<RegistryClient>(messenger_.get(), join, &clock_);
      proto::Join self;
      self.role = role;
      self.control = channel_->address();
      self.http = described_.http;
      self.model = "m";
      registry_->set_self(self);
      REQUIRE(registry_->open().ok());
    }
    thread_ = std::thread([this] { loop_.run(*this); });
  }
  ~FakeWorker() override { die(); }

  std::string address() const { return channel_ ? channel_->address() : ""; }
  // Drain ends it before it could answer.
  void end_on_drain() { end_on_drain_ = true; }
  // Every message is answered with an error of this code. Before the worker is asked.
  void refuse_all(std::string code) { refusal_ = std::move(code); }
  // No Describe is answered any more, while HTTP connections stay as they are.
  void fall_silent() { silent_ = true; }
  // As after SIGKILL.
  void die() {
    over_ = true;
    loop_.waker().wake();
    if (thread_.joinable()) thread_.join();
    if (server_) server_->stop();
    {
      const std::lock_guard lock(seen.mutex);
      seen.held.clear();
    }
    server_.reset();
    registry_.reset();
    messenger_.reset();
    channel_.reset();
  }

  Seen seen;

 private:
  bool step() override {
    bool any = false;
    while (auto received = messenger_->receive()) {
      any = true;
      if (silent_ || (registry_ && registry_->on_message(*received))) continue;
      if (!refusal_.empty()) {
        messenger_->refuse(*received, refusal_, "because");
        continue;
      }
      if (received->envelope.type == proto::MessageType::kDrain && end_on_drain_) {
        over_ = true;
        return true;
      }
      if (received->envelope.type == proto::MessageType::kDrain) described_.load.draining = true;
      if (received->envelope.type == proto::MessageType::kDescribe ||
          received->envelope.type == proto::MessageType::kDrain) {
        (void)messenger_->send(received->from, received->envelope.from, described_);
      }
    }
    if (registry_ && !silent_) registry_->poll(clock_.now());
    return any;
  }
  void wait_fds(std::vector<int>* out) const override { out->push_back(channel_->wait_fd()); }
  bool may_wait() override { return true; }
  TimePoint next_deadline() const override {
    return registry_ ? registry_->next_deadline() : kNever;
  }
  bool finished() const override { return over_; }

  Answer answer_;
  SteadyClock clock_;
  std::unique_ptr<http::Server> server_;
  std::unique_ptr<control::Channel> channel_;
  std::unique_ptr<control::Messenger> messenger_;
  std::unique_ptr<RegistryClient> registry_;
  proto::Described described_;
  std::string refusal_;
  EventLoop loop_{&clock_, LoopOptions{Duration(0), false, Duration(50'000'000)}};
  std::atomic<bool> over_{false}, silent_{false}, end_on_drain_{false};
  std::thread thread_;
};

// A running router with the options a test gives, and a client for it.
struct Router {
  std::unique_ptr<Daemon> daemon;
  std::string url, control;
  std::unique_ptr<http::Client> client = http::Client::create();
  std::atomic<int> signals{0};

  static RouteOptions options() {
    RouteOptions out;
    out.common.program = "kvd-route";
    out.common.http = "127.0.0.1:0";
    out.common.listen = "127.0.0.1:0";
    return out;
  }

  explicit Router(const RouteOptions& options) {
    auto started = start_route(options);
    REQUIRE(started.ok());
    daemon = std::move(*started);
    url = field("http");
    control = field("control");
  }

  std::string field(const std::string& name) const {
    const std::string line = daemon->ready_line();
    const std::string key = "\"" + name + "\":\"";
    const std::size_t begin = line.find(key);
    if (begin == std::string::npos) return "";
    return line.substr(begin + key.size(), line.find('"', begin + key.size()) - begin - key.size());
  }

  http::Client::Response get(const std::string& target) {
    http::ClientRequest request;
    request.url = url + target;
    auto response = client->fetch(request);
    REQUIRE(response.ok());
    return *response;
  }
  http::ClientRequest completion(const std::string& body) const {
    http::ClientRequest request;
    request.url = url + "/v1/completions";
    request.method = "POST";
    request.headers["content-type"] = "application/json";
    request.body = body;
    request.timeout = Duration(20'000'000'000);
    return request;
  }
  http::Client::Response post(const std::string& body) {
    auto response = client->fetch(completion(body));
    REQUIRE(response.ok());
    return *response;
  }
  bool wait_healthy() {
    return eventually([&] { return get("/health").head.status == 200; });
  }
};

// A streamed answer as it came.
struct Stream {
  std::mutex mutex;
  std::string text;
  std::vector<std::string> chunks;
  int status = 0;
  bool ended = false;
  Status end;
  std::shared_ptr<http::Call> call;

  http::ClientCallbacks callbacks() {
    http::ClientCallbacks out;
    out.on_head = [this](const http::ResponseHead& head) {
      const std::lock_guard lock(mutex);
      status = head.status;
    };
    out.on_data = [this](std::string_view bytes) {
      const std::lock_guard lock(mutex);
      text.append(bytes);
      chunks.emplace_back(bytes);
    };
    out.on_end = [this](Status why) {
      const std::lock_guard lock(mutex);
      end = why;
      ended = true;
    };
    return out;
  }
  bool has(const std::string& part) {
    const std::lock_guard lock(mutex);
    return text.find(part) != std::string::npos;
  }
  bool is_over() {
    const std::lock_guard lock(mutex);
    return ended;
  }
};

inline void answer_json(const std::shared_ptr<http::Responder>& to, int status,
                        const std::string& body) {
  to->send(status, "application/json", body);
}

}  // namespace kvd::node::testing
