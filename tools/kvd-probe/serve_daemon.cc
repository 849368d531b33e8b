#include "kvd-probe/serve_daemon.h"

#include <unistd.h>

#include <atomic>
#include <iostream>
#include <optional>
#include <thread>

#include "base/bounded_queue.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/units.h"
#include "cli/output.h"
#include "common/measure.h"
#include "control/zmq_channel.h"
#include "kvd-probe/ping_run.h"
#include "node/event_loop.h"
#include "node/exposure.h"
#include "node/key_roles.h"
#include "node/provider_set.h"
#include "peer/pages_session.h"
#include "probe/probe_target.h"

namespace kvd::tools {
namespace {

constexpr std::uint64_t kSmall = 4096;
constexpr std::uint64_t kDialBuffer = 32u << 20;

struct DialDone {
  control::PeerRef peer = 0;
  Incarnation incarnation;
  proto::ProbeResult result;
};

class ServeDaemon final : public node::Daemon, node::LoopTask {
 public:
  explicit ServeDaemon(const ServeOptions& options)
      : options_(options), loop_(&clock_, {}), dialled_(4, &loop_.waker()) {}
  ~ServeDaemon() override {
    stop_ = true;
    if (dialler_.joinable()) dialler_.join();
  }

  Status start();
  std::string ready_line() const override;
  Status run(const std::atomic<int>& signals) override;

 private:
  bool step() override;
  void wait_fds(std::vector<int>* out) const override;
  bool may_wait() override { return !control() && target_->may_wait(); }
  TimePoint next_deadline() const override { return target_->next_deadline(); }
  bool finished() const override { return signals_->load() > 0; }

  bool control();
  void take(const control::Received& message);
  void dial(const control::Received& message);
  proto::Described describe(const control::Received& message) const;

  ServeOptions options_;
  SteadyClock clock_;
  node::EventLoop loop_;
  const Incarnation incarnation_{secure_random_u63()};
  std::optional<control::KeyRing> keys_;
  std::unique_ptr<control::Channel> channel_;
  std::unique_ptr<control::Messenger> messenger_;
  node::ProviderSet providers_;
  std::unique_ptr<PagesSessions> pages_;
  std::unique_ptr<probe::ProbeTarget> target_;
  TimePoint next_control_{0};
  const std::atomic<int>* signals_ = nullptr;
  BoundedQueue<DialDone> dialled_;
  std::atomic<bool> stop_{false};
  bool dialling_ = false;
  std::thread dialler_;
};

// While plain bytes move the control channel is looked at so rarely that it is not measured.
constexpr Duration kControlInterval{200'000};

Status ServeDaemon::start() {
  KVD_RETURN_IF_ERROR(node::check_exposure(options_.common));
  control::ZmqOptions zmq;
  zmq.listen = options_.common.listen;
  if (!options_.common.keys.empty()) {
    auto keys = control::load_keys(options_.common.keys);
    if (!keys.ok()) return keys.status();
    keys_ = *keys;
    zmq.keys = std::move(*keys);
  }
  const auto source = node::fabric_source(options_.fabric_addr, options_.common.listen);
  if (!source.ok()) return source.status();
  auto channel = control::open_zmq_channel(zmq);
  if (!channel.ok()) return channel.status();
  channel_ = std::move(*channel);
  messenger_ = std::make_unique<control::Messenger>(channel_.get(), incarnation_, &clock_, nullptr);
  KVD_RETURN_IF_ERROR(
      check_provider({options_.provider, options_.device, *source, options_.require_rdma}));
  auto providers =
      node::ProviderSet::open({options_.provider, options_.device, *source, options_.require_rdma});
  if (!providers.ok()) return providers.status();
  providers_ = std::move(*providers);
  pages_ = std::make_unique<PagesSessions>(providers_.domains(), messenger_.get(), &clock_);
  target_ = std::make_unique<probe::ProbeTarget>(probe::TargetLimits{}, providers_.domains(),
                                                 messenger_.get(), &clock_);
  target_->offer(pages_.get());
  return target_->reserve();
}

std::string ServeDaemon::ready_line() const {
  cli::JsonWriter json;
  json.begin_object().field("event", "ready").field("program", "kvd-probe");
  json.field("control", channel_->address()).key("providers").begin_array();
  for (const std::string& name : providers_.names()) json.value(name);
  json.end_array().field("incarnation", to_string(incarnation_));
  json.field("pid", static_cast<std::int64_t>(getpid())).end_object();
  return json.take();
}

Status ServeDaemon::run(const std::atomic<int>& signals) {
  signals_ = &signals;
  std::cerr << "from another host or shell: " << client_command(options_, channel_->address())
            << std::endl;
  loop_.run(*this);
  return {};
}

proto::Described ServeDaemon::describe(const control::Received& message) const {
  proto::Described out;
  out.role = "probe";
  out.program = options_.common.program;
  out.version = options_.common.version;
  out.providers = providers_.names();
  out.scope = providers_.scope();
  if (pages_->is_client(message)) pages_->describe(&out);
  return out;
}

void ServeDaemon::take(const control::Received& message) {
  // Whoever was allowed to open a session of pages may have a transfer in it.
  if (pages_->on_message(message) || message.refused) return;
  const std::string wrong = node::key_objection(keys_ ? &*keys_ : nullptr, message);
  if (!wrong.empty()) {
    messenger_->refuse(message, "unauthorized", wrong);
    return;
  }
  using proto::MessageType;
  const MessageType type = message.envelope.type;
  if (type == MessageType::kDescribe) {
    // A reply that cannot be sent is asked for again.
    (void)messenger_->send(message.from, message.envelope.from, describe(message)).ok();
  } else if (type == MessageType::kProbe) {
    if (!target_->on_message(message)) dial(message);
  } else if (type != MessageType::kError && type != MessageType::kStaleIncarnation) {
    messenger_->refuse(message, "unexpected",
                       std::string(proto::to_string(type)) +
                           " means nothing to kvd-probe serve outside a session of pages: it "
                           "holds no KV");
  }
}

// The answer to `dial`: what a short ping found.
proto::ProbeResult dial_result(const PingResult& ping) {
  proto::ProbeResult out;
  out.provider = ping.provider.name;
  if (!ping.status.ok()) {
    out.state = "refused";
    out.code = to_string(ping.status.code());
    out.text = ping.status.message();
    return out;
  }
  out.state = "done";
  const auto whole = [](double value) { return static_cast<std::uint64_t>(value); };
  out.bytes_per_s = whole(percentile(ping.sizes.back().rates, 0.5));
  out.latency_ns = whole(percentile(ping.sizes.front().latency_ns, 0.5));
  out.p99_ns = whole(percentile(ping.sizes.front().latency_ns, 0.99));
  return out;
}

void ServeDaemon::dial(const control::Received& message) {
  const auto probe = proto::decode_body<proto::Probe>(message.envelope);
  proto::ProbeResult refusal;
  refusal.request = probe->request;
  refusal.state = "refused";
  refusal.code = "busy";
  refusal.text = "another pair is being measured from here";
  if (dialling_) {
    (void)messenger_->send(message.from, message.envelope.from, refusal).ok();
    return;
  }
  if (dialler_.joinable()) dialler_.join();
  dialling_ = true;
  PingOptions ping;
  ping.session.peer = probe->peer;
  ping.session.keys = options_.common.keys;
  ping.session.timeout = options_.common.timeout;
  ping.session.buffer_bytes = kDialBuffer;
  ping.session.stop = [this] { return stop_.load(); };
  ping.provider = probe->provider;
  ping.device = options_.device;
  ping.fabric_addr = options_.fabric_addr;
  if (ping.fabric_addr.empty()) {
    ping.fabric_addr = *node::fabric_source("", options_.common.listen);
  }
  ping.bytes = {kSmall, probe->bytes};
  ping.time = std::chrono::milliseconds(probe->time_ms);
  ping.brief = true;
  DialDone done{message.from, message.envelope.from, {}};
  const std::uint64_t request = probe->request;
  dialler_ = std::thread([this, ping, done, request]() mutable {
    PingResult result;
    run_ping(ping, &result, {});
    done.result = dial_result(result);
    done.result.request = request;
    (void)dialled_.push_wait(std::move(done));
  });
}

bool ServeDaemon::control() {
  bool any = false;
  // Bounded, so that a flood of messages cannot starve the writes.
  for (int i = 0; i < 256; ++i) {
    const auto message = messenger_->receive();
    if (!message) break;
    take(*message);
    any = true;
  }
  for (DialDone& done : dialled_.drain()) {
    dialling_ = false;
    (void)messenger_->send(done.peer, done.incarnation, done.result).ok();
    any = true;
  }
  return any;
}

bool ServeDaemon::step() {
  const bool eager = pages_->eager();
  const bool heard = eager && control();
  const bool busy = target_->poll() || heard;
  if (eager) return busy;
  const TimePoint now = clock_.now();
  if (now < next_control_) return busy;
  next_control_ = now + kControlInterval;
  return control() || busy;
}

void ServeDaemon::wait_fds(std::vector<int>* out) const {
  out->push_back(channel_->wait_fd());
  target_->wait_fds(out);
}

}  // namespace

std::string client_command(const ServeOptions& options, const std::string& control) {
  auto address = parse_host_port(control);
  if (address.ok() && !options.fabric_addr.empty() &&
      (address->host == "0.0.0.0" || address->host == "::")) {
    address->host = options.fabric_addr;
  }
  std::string out = "kvd-probe ping " + (address.ok() ? to_string(*address) : control);
  if (!options.provider.empty()) out += " --provider '" + options.provider + "'";
  if (!options.common.keys.empty()) out += " --keys FILE";
  return out;
}

Result<std::unique_ptr<node::Daemon>> start_serve(const ServeOptions& options) {
  auto daemon = std::make_unique<ServeDaemon>(options);
  KVD_RETURN_IF_ERROR(daemon->start());
  return std::unique_ptr<node::Daemon>(std::move(daemon));
}

}  // namespace kvd::tools
