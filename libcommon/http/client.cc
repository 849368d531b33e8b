// The client on Boost.Asio, with Beast's parser: one thread, a pool of idle connections.
#include "http/client.h"

#include <array>
#include <atomic>
#include <boost/asio/connect.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <future>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/log.h"
#include "base/units.h"
#include "http/response_parser.h"
#include "http/url.h"

namespace kvd::http {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using SteadyTime = std::chrono::steady_clock::time_point;

constexpr std::size_t kReadBytes = 32U << 10U;
constexpr std::size_t kMaxIdlePerHost = 256;
constexpr std::size_t kMaxIdle = 1024;
constexpr std::chrono::seconds kMaxIdleAge{30};
constexpr std::size_t kMaxFetchBytes = 256U << 20U;
constexpr Duration kLongest = std::chrono::hours(24 * 30);

// A connection to one host, idle in the pool or owned by a call.
struct Link {
  explicit Link(asio::io_context& io) : socket(io) {}
  tcp::socket socket;
  SteadyTime idle_since;
  bool idle = false;
};

class CallImpl;

// Everything but post() on the client's thread.
class ClientCore : public std::enable_shared_from_this<ClientCore> {
 public:
  // False, and f is dropped, once the client is closing.
  template <typename F>
  bool post(F f) {
    const std::lock_guard lock(mutex_);
    if (closed_) return false;
    asio::post(io, std::move(f));
    return true;
  }
  void shut();

  void add(const std::shared_ptr<CallImpl>& call) { calls_.insert(call); }
  void remove(const std::shared_ptr<CallImpl>& call) { calls_.erase(call); }

  std::shared_ptr<Link> take(const std::string& host);
  void give(const std::string& host, std::shared_ptr<Link> link);

  asio::io_context io{1};

 private:
  void watch(const std::string& host, const std::shared_ptr<Link>& link);
  void drop(const std::string& host, const std::shared_ptr<Link>& link);

  std::mutex mutex_;
  bool closed_ = false;    // no more posts
  bool shutting_ = false;  // on the thread: no more pooling
  std::size_t idle_count_ = 0;
  std::unordered_map<std::string, std::vector<std::shared_ptr<Link>>> idle_;
  std::unordered_set<std::shared_ptr<CallImpl>> calls_;
};

class CallImpl final : public Call,
                       public ResponseSink,
                       public std::enable_shared_from_this<CallImpl> {
 public:
  CallImpl(std::shared_ptr<ClientCore> core, ClientRequest request, ClientCallbacks callbacks)
      : core_(std::move(core)),
        request_(std::move(request)),
        callbacks_(std::move(callbacks)),
        resolver_(core_->io),
        timer_(core_->io),
        connect_timer_(core_->io) {}

  void begin();
  void cancel() override {
    cancelled_.store(true);
    core_->post([self = shared_from_this()] { self->end(self->cancelled()); });
  }
  void end(const Status& status);
  Status cancelled() const { return {StatusCode::kCancelled, "the request was cancelled"}; }

  // ResponseSink
  void on_head(ResponseHead head) override;
  void on_data(std::string_view data) override;

 private:
  Status prepare();
  void start_timers();
  void obtain_link();
  void connect(const std::vector<tcp::endpoint>& endpoints);
  void resolve();
  void connected();
  void send();
  void read();
  void on_read(const error_code& ec, std::size_t bytes);
  void broken(const error_code& ec);
  void complete();
  std::string where() const { return to_string(url_.host); }

  const std::shared_ptr<ClientCore> core_;
  ClientRequest request_;
  ClientCallbacks callbacks_;
  Url url_;
  std::string head_;
  tcp::resolver resolver_;
  asio::steady_timer timer_;
  asio::steady_timer connect_timer_;
  std::shared_ptr<Link> link_;
  std::unique_ptr<ResponseParser> parser_;
  std::array<char, kReadBytes> buffer_;
  std::string in_;
  bool pooled_ = false;    // link_ had been used before
  bool received_ = false;  // a byte of this answer has come
  bool sent_ = false;      // the request is out
  bool done_ = false;
  std::atomic<bool> cancelled_{false};
};

// ---- ClientCore ----

std::shared_ptr<Link> ClientCore::take(const std::string& host) {
  const auto it = idle_.find(host);
  while (it != idle_.end() && !it->second.empty()) {
    std::shared_ptr<Link> link = std::move(it->second.back());  // the freshest
    it->second.pop_back();
    --idle_count_;
    link->idle = false;
    error_code ec;
    if (std::chrono::steady_clock::now() - link->idle_since > kMaxIdleAge) {
      link->socket.close(ec);
      continue;
    }
    link->socket.cancel(ec);  // ends watch()
    return link;
  }
  return nullptr;
}

void ClientCore::give(const std::string& host, std::shared_ptr<Link> link) {
  error_code ec;
  std::vector<std::shared_ptr<Link>>& list = idle_[host];
  if (shutting_ || idle_count_ >= kMaxIdle || list.size() >= kMaxIdlePerHost) {
    link->socket.close(ec);
    return;
  }
  link->idle = true;
  link->idle_since = std::chrono::steady_clock::now();
  list.push_back(link);
  ++idle_count_;
  watch(host, link);
}

// A server that closes an idle connection, or talks out of turn, takes it out of the pool.
void ClientCore::watch(const std::string& host, const std::shared_ptr<Link>& link) {
  link->socket.async_wait(tcp::socket::wait_read,
                          [self = shared_from_this(), host, link](const error_code& ec) {
                            if (ec != asio::error::operation_aborted && link->idle)
                              self->drop(host, link);
                          });
}

void ClientCore::drop(const std::string& host, const std::shared_ptr<Link>& link) {
  link->idle = false;
  error_code ec;
  link->socket.close(ec);
  const auto it = idle_.find(host);
  if (it == idle_.end()) return;
  idle_count_ -= std::erase(it->second, link);
  if (it->second.empty()) idle_.erase(it);
}

void ClientCore::shut() {
  const auto all = [self = shared_from_this()] {
    self->shutting_ = true;
    const auto calls = self->calls_;
    for (const auto& call : calls) call->end(call->cancelled());
    error_code ec;
    for (auto& [host, links] : self->idle_) {
      for (const auto& link : links) {
        link->idle = false;
        link->socket.close(ec);
      }
    }
    self->idle_.clear();
    self->idle_count_ = 0;
  };
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  closed_ = true;
  asio::post(io, all);
}

// ---- CallImpl ----

Status CallImpl::prepare() {
  Result<Url> url = parse_url(request_.url);
  if (!url.ok()) return url.status();
  url_ = std::move(*url);
  head_ = request_.method + " " + url_.target + " HTTP/1.1\r\nHost: " + where() + "\r\n";
  bool accept = false;
  for (const auto& [name, value] : request_.headers) {
    if (name.empty() ||
        (name + value).find_first_of(std::string_view("\r\n\0", 3)) != std::string::npos) {
      return invalid_argument("a header may not hold line breaks: '" + name.substr(0, 100) + "'");
    }
    head_ += name + ": " + value + "\r\n";
    accept = accept || name == "accept" || name == "Accept";
  }
  if (!accept) head_ += "Accept: */*\r\n";
  const bool bodiless =
      request_.body.empty() &&
      (request_.method == "GET" || request_.method == "HEAD" || request_.method == "DELETE");
  if (!bodiless) head_ += "Content-Length: " + std::to_string(request_.body.size()) + "\r\n";
  head_ += "\r\n";
  return {};
}

void CallImpl::begin() {
  core_->add(shared_from_this());
  if (cancelled_.load()) return end(cancelled());
  if (const Status status = prepare(); !status.ok()) return end(status);
  start_timers();
  obtain_link();
}

void CallImpl::start_timers() {
  timer_.expires_after(std::min(request_.timeout, kLongest));
  timer_.async_wait([self = shared_from_this()](const error_code& ec) {
    if (ec) return;
    self->end({StatusCode::kDeadline, "no whole answer from " + self->where() + " within " +
                                          format_duration(self->request_.timeout)});
  });
}

void CallImpl::obtain_link() {
  parser_ = std::make_unique<ResponseParser>(*this, request_.method == "HEAD");
  in_.clear();
  sent_ = false;
  link_ = received_ || pooled_ ? nullptr : core_->take(where());
  pooled_ = link_ != nullptr;
  if (pooled_) return send();
  link_ = std::make_shared<Link>(core_->io);
  connect_timer_.expires_after(std::min(request_.connect_timeout, kLongest));
  connect_timer_.async_wait([self = shared_from_this()](const error_code& ec) {
    if (ec) return;
    self->end(unavailable("cannot connect to " + self->where() + " within " +
                          format_duration(self->request_.connect_timeout)));
  });
  error_code ec;
  const auto address = asio::ip::make_address(url_.host.host, ec);
  if (ec) return resolve();
  connect({tcp::endpoint(address, url_.host.port)});
}

void CallImpl::resolve() {
  resolver_.async_resolve(
      url_.host.host, std::to_string(url_.host.port), tcp::resolver::numeric_service,
      [self = shared_from_this()](const error_code& ec, const tcp::resolver::results_type& found) {
        if (self->done_) return;
        if (ec) {
          return self->end(
              unavailable("cannot resolve '" + self->url_.host.host + "': " + ec.message()));
        }
        self->connect(std::vector<tcp::endpoint>(found.begin(), found.end()));
      });
}

void CallImpl::connect(const std::vector<tcp::endpoint>& endpoints) {
  asio::async_connect(
      link_->socket, endpoints,
      [self = shared_from_this()](const error_code& ec, const tcp::endpoint&) {
        if (self->done_) return;
        if (ec) {
          return self->end(unavailable("cannot connect to " + self->where() + ": " + ec.message()));
        }
        self->connected();
      });
}

void CallImpl::connected() {
  connect_timer_.cancel();
  error_code ec;
  link_->socket.set_option(tcp::no_delay(true), ec);
  send();
}

void CallImpl::send() {
  const std::array<asio::const_buffer, 2> buffers = {asio::buffer(head_),
                                                     asio::buffer(request_.body)};
  asio::async_write(link_->socket, buffers,
                    [self = shared_from_this(), link = link_](const error_code& ec, std::size_t) {
                      if (self->done_ || self->link_ != link) return;
                      // A server may answer and close before it has read all: what it said is read
                      // first.
                      if (!ec) self->sent_ = true;
                    });
  read();
}

void CallImpl::read() {
  link_->socket.async_read_some(
      asio::buffer(buffer_),
      [self = shared_from_this(), link = link_](const error_code& ec, std::size_t bytes) {
        if (!self->done_ && self->link_ == link) self->on_read(ec, bytes);
      });
}

void CallImpl::on_read(const error_code& ec, std::size_t bytes) {
  if (ec) return broken(ec);
  received_ = true;
  in_.append(buffer_.data(), bytes);
  const Result<std::size_t> used = parser_->feed(in_);
  if (done_ || cancelled_.load()) return end(cancelled());
  if (!used.ok()) return end(used.status().with_context(where()));
  in_.erase(0, *used);
  if (parser_->complete()) return complete();
  read();
}

void CallImpl::broken(const error_code& ec) {
  if (ec == asio::error::eof && received_ && parser_->complete_at_eof()) return complete();
  error_code ignored;
  link_->socket.close(ignored);
  // An idle connection may be closed by the server while the request is on its way to it. Once it
  // is out, only the caller knows whether it may be sent again.
  const bool harmless = !sent_ || request_.method == "GET" || request_.method == "HEAD";
  if (pooled_ && !received_ && harmless) return obtain_link();
  const std::string what = ec == asio::error::eof ? "the connection was closed" : ec.message();
  end(unavailable(where() + ": " + what +
                  (received_ ? " in the middle of the answer" : " before an answer")));
}

void CallImpl::complete() {
  if (sent_ && in_.empty() && parser_->keep_alive()) {
    core_->give(where(), std::move(link_));
    link_.reset();
  }
  end({});
}

void CallImpl::on_head(ResponseHead head) {
  if (!cancelled_.load() && callbacks_.on_head) callbacks_.on_head(head);
}

void CallImpl::on_data(std::string_view data) {
  if (!cancelled_.load() && callbacks_.on_data) callbacks_.on_data(data);
}

void CallImpl::end(const Status& status) {
  if (done_) return;
  done_ = true;
  error_code ec;
  timer_.cancel();
  connect_timer_.cancel();
  resolver_.cancel();
  if (link_) link_->socket.close(ec);
  core_->remove(shared_from_this());
  const ClientCallbacks callbacks = std::move(callbacks_);
  callbacks_ = {};
  if (callbacks.on_end) callbacks.on_end(status);
}

class ClientImpl final : public Client {
 public:
  ClientImpl() : work_(core_->io.get_executor()), thread_([core = core_] { run(core->io); }) {}
  ~ClientImpl() override {
    core_->shut();
    work_.reset();
    thread_.join();
  }
  ClientImpl(const ClientImpl&) = delete;
  ClientImpl& operator=(const ClientImpl&) = delete;

  std::shared_ptr<Call> start(ClientRequest request, ClientCallbacks callbacks) override {
    auto call = std::make_shared<CallImpl>(core_, std::move(request), std::move(callbacks));
    core_->post([call] { call->begin(); });
    return call;
  }

 private:
  static void run(asio::io_context& io) {
    for (;;) {
      try {
        io.run();
        return;
      } catch (const std::exception& error) {
        log_error("the http client caught an exception", {{"error", error.what()}});
      }
    }
  }

  const std::shared_ptr<ClientCore> core_ = std::make_shared<ClientCore>();
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Client> Client::create() { return std::make_unique<ClientImpl>(); }

Result<Client::Response> Client::fetch(ClientRequest request) {
  struct Pending {
    Response response;
    std::promise<Status> done;
    std::mutex mutex;
    std::shared_ptr<Call> call;
    bool too_large = false;
  };
  const auto pending = std::make_shared<Pending>();
  std::future<Status> done = pending->done.get_future();
  ClientCallbacks callbacks;
  callbacks.on_head = [pending](const ResponseHead& head) { pending->response.head = head; };
  callbacks.on_data = [pending](std::string_view data) {
    if (pending->response.body.size() + data.size() > kMaxFetchBytes) {
      pending->too_large = true;
      const std::lock_guard lock(pending->mutex);
      if (pending->call) pending->call->cancel();
      return;
    }
    pending->response.body += data;
  };
  callbacks.on_end = [pending](const Status& status) { pending->done.set_value(status); };
  const auto call = start(std::move(request), std::move(callbacks));
  {
    const std::lock_guard lock(pending->mutex);
    pending->call = call;
  }
  const Status status = done.get();
  {
    const std::lock_guard lock(pending->mutex);
    pending->call.reset();
  }
  if (pending->too_large) {
    return Status(StatusCode::kResourceExhausted,
                  "the answer is larger than " + format_bytes(kMaxFetchBytes));
  }
  if (!status.ok()) return status;
  return std::move(pending->response);
}

}  // namespace kvd::http
