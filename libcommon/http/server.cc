// The server on Boost.Asio, with Beast's parser: the listening socket and the table of connections.
// connection.h has what happens on one; outbox.cc frames the answers.
#include "http/server.h"

#include <poll.h>

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "http/connection.h"

namespace kvd::http {
namespace {

using internal::Connection;
using internal::ConnectionHost;
using internal::error_code;
using internal::Socket;
using internal::Strand;
using internal::tcp;
using internal::Timer;
namespace asio = boost::asio;
using Acceptor = asio::basic_socket_acceptor<tcp, Strand>;

constexpr std::chrono::milliseconds kAcceptRetry{100};

// What connections, the acceptor and the ServerImpl share. The last of them frees it.
class Core final : public ConnectionHost, public std::enable_shared_from_this<Core> {
 public:
  Core(ServerOptions opts, Handler handle)
      : ConnectionHost(std::move(opts), std::move(handle)),
        acceptor_(asio::make_strand(io)),
        retry_(acceptor_.get_executor()) {}

  Status listen();
  void start_accepting();
  void stop_accepting();
  void add(const std::shared_ptr<Connection>& connection);
  void remove(Connection* connection) override;
  std::vector<std::shared_ptr<Connection>> connections();
  const std::string& address() const { return address_; }

  asio::io_context io;

 private:
  Status bind_to(const HostPort& wanted, const tcp::endpoint& endpoint);
  void accept();
  void accepted(const error_code& ec, Socket socket);
  bool someone_waits();
  void retry_later(const error_code& ec);
  void evict_idle();

  // On the acceptor's strand.
  Acceptor acceptor_;
  Timer retry_;
  bool accepting_ = false;
  SteadyClock clock_;
  RateLimit fault_log_{std::chrono::seconds(1)};

  std::string address_;
  std::mutex mutex_;
  std::unordered_map<Connection*, std::weak_ptr<Connection>> connections_;
};

// ---- Core ----

Status Core::bind_to(const HostPort& wanted, const tcp::endpoint& endpoint) {
  error_code ec;
  acceptor_.open(endpoint.protocol(), ec);
  if (!ec) acceptor_.set_option(asio::socket_base::reuse_address(true), ec);
  if (!ec) acceptor_.bind(endpoint, ec);
  if (!ec) acceptor_.listen(asio::socket_base::max_listen_connections, ec);
  if (ec == asio::error::address_in_use) {
    return invalid_argument("address already in use: " + to_string(wanted));
  }
  if (ec == asio::error::access_denied) {
    return {StatusCode::kNoProvider, "no permission to listen on " + to_string(wanted) +
                                         ": choose a port from 1024, or run it with "
                                         "CAP_NET_BIND_SERVICE"};
  }
  if (ec) return invalid_argument("cannot listen on " + to_string(wanted) + ": " + ec.message());
  return {};
}

Status Core::listen() {
  const Result<HostPort> wanted = parse_host_port(options.listen);
  if (!wanted.ok()) return wanted.status();
  error_code ec;
  tcp::resolver resolver(io);
  const auto found = resolver.resolve(wanted->host, std::to_string(wanted->port),
                                      tcp::resolver::passive | tcp::resolver::numeric_service, ec);
  if (ec || found.empty()) {
    return invalid_argument("cannot listen on " + to_string(*wanted) + ": " + ec.message());
  }
  KVD_RETURN_IF_ERROR(bind_to(*wanted, found.begin()->endpoint()));
  const tcp::endpoint bound = acceptor_.local_endpoint(ec);
  if (ec) return internal_error("cannot read the bound address: " + ec.message());
  address_ = to_string(HostPort{bound.address().to_string(), bound.port()});
  return {};
}

void Core::start_accepting() {
  asio::post(acceptor_.get_executor(), [self = shared_from_this()] { self->accept(); });
}

void Core::stop_accepting() {
  asio::post(acceptor_.get_executor(), [self = shared_from_this()] {
    error_code ec;
    self->acceptor_.close(ec);
    self->retry_.cancel();
  });
}

void Core::accept() {
  if (!acceptor_.is_open() || accepting_) return;
  bool full = false;
  {
    const std::lock_guard lock(mutex_);
    full = connections_.size() >= options.max_connections;
  }
  if (full) return evict_idle();  // remove() calls again
  accepting_ = true;
  acceptor_.async_accept(asio::make_strand(io),
                         [self = shared_from_this()](const error_code& ec, Socket socket) {
                           self->accepting_ = false;
                           self->accepted(ec, std::move(socket));
                         });
}

void Core::accepted(const error_code& ec, Socket socket) {
  if (!acceptor_.is_open()) return;
  if (!ec) {
    const auto connection = std::make_shared<Connection>(shared_from_this(), std::move(socket));
    add(connection);
    connection->start();
  } else if (ec == asio::error::no_descriptors || ec == asio::error::no_memory ||
             ec == asio::error::no_buffer_space || ec.value() == ENFILE) {
    return retry_later(ec);
  }
  accept();
}

bool Core::someone_waits() {
  pollfd entry{acceptor_.native_handle(), POLLIN, 0};
  return ::poll(&entry, 1, 0) > 0;
}

// Out of descriptors: clients wait in the kernel's queue until some are free again. Linux takes the
// descriptor before it looks for a client, so nobody may be there to make room for.
void Core::retry_later(const error_code& ec) {
  if (!someone_waits()) {
    accepting_ = true;
    acceptor_.async_wait(Acceptor::wait_read,
                         [self = shared_from_this()](const error_code& wait_ec) {
                           self->accepting_ = false;
                           if (!wait_ec) self->accept();
                         });
    return;
  }
  std::uint64_t suppressed = 0;
  if (fault_log_.allow(clock_.now(), &suppressed)) {
    log_warn("cannot accept http connections for now",
             {{"error", ec.message()}, {"suppressed", suppressed}});
  }
  evict_idle();
  retry_.expires_after(kAcceptRetry);
  retry_.async_wait([self = shared_from_this()](const error_code& wait_ec) {
    if (!wait_ec) self->accept();
  });
}

// Those who only wait, or dribble a head, make room for those who ask.
void Core::evict_idle() {
  std::shared_ptr<Connection> oldest;
  for (std::shared_ptr<Connection>& connection : connections()) {
    if (connection->idle_since() == 0) continue;
    if (!oldest || connection->idle_since() < oldest->idle_since()) oldest = std::move(connection);
  }
  if (oldest) oldest->evict();
}

void Core::add(const std::shared_ptr<Connection>& connection) {
  const std::lock_guard lock(mutex_);
  connections_.emplace(connection.get(), connection);
}

void Core::remove(Connection* connection) {
  {
    const std::lock_guard lock(mutex_);
    connections_.erase(connection);
  }
  start_accepting();
}

std::vector<std::shared_ptr<Connection>> Core::connections() {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Connection>> out;
  out.reserve(connections_.size());
  for (const auto& [key, weak] : connections_) {
    if (auto connection = weak.lock()) out.push_back(std::move(connection));
  }
  return out;
}

class ServerImpl final : public Server {
 public:
  explicit ServerImpl(std::shared_ptr<Core> core)
      : core_(std::move(core)), work_(core_->io.get_executor()) {}
  ~ServerImpl() override { stop(); }
  ServerImpl(const ServerImpl&) = delete;
  ServerImpl& operator=(const ServerImpl&) = delete;

  void run() {
    core_->start_accepting();
    for (int i = 0; i < std::max(1, core_->options.threads); ++i) {
      threads_.emplace_back([core = core_] { run_io(core->io); });
    }
  }

  std::string address() const override { return core_->address(); }

  void drain() override {
    const std::lock_guard lock(mutex_);
    drain_locked();
  }

  void stop() override {
    const std::lock_guard lock(mutex_);
    if (threads_.empty()) return;
    core_->stopping = true;
    drain_locked();
    for (const auto& connection : core_->connections()) connection->stop();
    work_.reset();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  static void run_io(asio::io_context& io) {
    for (;;) {
      try {
        io.run();
        return;
      } catch (const std::exception& error) {
        log_error("an http thread caught an exception", {{"error", error.what()}});
      }
    }
  }

  void drain_locked() {
    if (threads_.empty()) return;
    core_->draining->store(true);
    core_->stop_accepting();
    for (const auto& connection : core_->connections()) connection->drain();
  }

  const std::shared_ptr<Core> core_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::mutex mutex_;
  std::vector<std::thread> threads_;
};

}  // namespace

Result<std::unique_ptr<Server>> Server::start(const ServerOptions& options, Handler handler) {
  KVD_CHECK(handler != nullptr);
  auto core = std::make_shared<Core>(options, std::move(handler));
  KVD_RETURN_IF_ERROR(core->listen());
  auto server = std::make_unique<ServerImpl>(std::move(core));
  server->run();
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace kvd::http
