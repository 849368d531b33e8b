#include "node/worker_core.h"

#include <unistd.h>

#include <algorithm>
#include <ctime>

#include "base/log.h"
#include "base/units.h"
#include "http/body_edit.h"
#include "http/openai.h"
#include "node/exposure.h"
#include "node/key_roles.h"
#include "proto/commit_record.h"
#include "proto/ops_messages.h"
#include "transfer/wire.h"

namespace kvd::node {
namespace {

std::string ranges(const std::vector<kv::PageRun>& runs) {
  std::string out;
  for (const kv::PageRun& run : runs) {
    if (!out.empty()) out += ',';
    out += std::to_string(run.first);
    if (run.count > 1) out += "-" + std::to_string(run.first + run.count - 1);
    if (out.size() > 4096) return out + ",...";
  }
  return out;
}

std::string why_no_huge_pages(bool shared) {
  const std::string hint = shared ? device::shared_huge_pages_hint() : "";
  if (hint.empty()) return "the kernel grants none (transparent_hugepage/enabled)";
  return "provider local shares it with decode: " + hint + ", or choose --provider tcp";
}

}  // namespace

Result<std::unique_ptr<WorkerCore>> WorkerCore::start(const WorkerOptions& options,
                                                      std::string role, bool local_only) {
  KVD_RETURN_IF_ERROR(check_exposure(options.common));
  std::unique_ptr<WorkerCore> core(new WorkerCore);
  core->options_ = options;
  core->role_ = std::move(role);
  // Addresses first: a port that is taken is known at once, a model takes a second to load.
  KVD_RETURN_IF_ERROR(core->open_control());
  if (!local_only) {
    const auto source = fabric_source(options.fabric_addr, options.common.listen);
    if (!source.ok()) return source.status();
    auto providers = ProviderSet::open(
        {options.provider, options.device, *source, options.transfer.require_rdma});
    if (!providers.ok()) return providers.status();
    core->providers_ = std::move(*providers);
  }
  KVD_RETURN_IF_ERROR(core->load_model());
  if (!local_only) {
    core->probe_ = std::make_unique<probe::ProbeTarget>(probe::worker_limits(), core->domains(),
                                                        core->messenger_.get(), &core->clock_);
  }
  Metrics& m = core->metrics_;
  const char* help = "KV pages by state.";
  core->free_ = m.gauge("kvd_pages", help, {{"state", "free"}});
  core->leased_ = m.gauge("kvd_pages", help, {{"state", "leased"}});
  core->sealed_ = m.gauge("kvd_pages", help, {{"state", "sealed"}});
  core->quarantined_ = m.gauge("kvd_pages", help, {{"state", "quarantined"}});
  core->oldest_ = m.gauge("kvd_lease_oldest_seconds", "Age of the oldest lease.");
  core->update_gauges();
  if (!options.common.join.empty()) {
    core->registry_ = std::make_unique<RegistryClient>(core->messenger_.get(), options.common.join,
                                                       &core->clock_, options.common.dead_after);
    KVD_RETURN_IF_ERROR(core->registry_->open().with_context("--join"));
  }
  return core;
}

Status WorkerCore::load_model() {
  auto engine = engine::create_engine(options_.engine, &metrics_);
  if (!engine.ok()) return engine.status();
  engine_ = std::move(*engine);
  const engine::ModelInfo& info = engine_->info();
  if (options_.served_model_name.empty()) options_.served_model_name = info.name;
  const std::uint64_t pages = options_.kv_memory / info.layout.page_bytes();
  if (pages == 0) {
    return invalid_argument("--kv-memory " + format_bytes(options_.kv_memory) +
                            " holds no page of " + format_bytes(info.layout.page_bytes()) +
                            "; give more");
  }
  const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(pages, 1u << 24));
  transfer::TransferOptions& transfer = options_.transfer;
  const std::uint64_t bytes =
      info.layout.page_bytes() * count + std::uint64_t{proto::kSlotBytes} * transfer.slots;
  KVD_RETURN_IF_ERROR(allocate_pool(bytes));
  pool_ = std::make_unique<kv::PagePool>(info.layout, buffer_.data(), count);
  transfer.model = options_.served_model_name;
  transfer.fingerprint = info.fingerprint;
  transfer.providers = providers_.names();
  transfer.dead_after = options_.common.dead_after;
  log_info("model loaded", {{"model", options_.served_model_name},
                            {"kernels", info.kernels},
                            {"weights", format_bytes(info.weight_bytes)},
                            {"context", info.context},
                            {"pages", count},
                            {"page", format_bytes(info.layout.page_bytes())},
                            {"pool", format_bytes(buffer_.size())},
                            {"huge_pages", device::to_string(buffer_.huge_pages())}});
  if (buffer_.huge_pages() == device::HugePages::kNone) {
    log_warn("no huge pages for the KV pool; reads are up to a quarter slower",
             {{"why", why_no_huge_pages(buffer_.shared())}});
  }
  return {};
}

// `local` sends from shared memory only; what decode receives into is its own.
Status WorkerCore::allocate_pool(std::size_t bytes) {
  if (role_ == "prefill" && providers_.offers("local")) {
    auto shared = device::HostBuffer::allocate(bytes, device::Backing::kShared);
    if (shared.ok()) {
      buffer_ = std::move(*shared);
      return {};
    }
    if (providers_.names().size() == 1) return shared.status().with_context("provider local");
    log_warn("provider not usable", {{"provider", "local"}, {"why", shared.status().message()}});
    providers_.drop("local");
  }
  auto buffer = device::HostBuffer::allocate(bytes);
  if (!buffer.ok()) return buffer.status().with_context("--kv-memory");
  buffer_ = std::move(*buffer);
  return {};
}

Status WorkerCore::open_control() {
  control::ZmqOptions zmq;
  zmq.listen = options_.common.listen;
  if (!options_.common.keys.empty()) {
    auto keys = control::load_keys(options_.common.keys);
    if (!keys.ok()) return keys.status();
    keys_ = *keys;
    zmq.keys = std::move(*keys);
  }
  auto channel = control::open_zmq_channel(zmq);
  if (!channel.ok()) return channel.status();
  channel_ = std::move(*channel);
  messenger_ =
      std::make_unique<control::Messenger>(channel_.get(), incarnation_, &clock_, &metrics_);
  return {};
}

Status WorkerCore::start_http(http::Handler handler) {
  http::ServerOptions server;
  server.listen = options_.common.http;
  server.api_key = options_.common.api_key;
  server.threads = 2;  // a long prompt is tokenized on one of them
  auto started = http::Server::start(server, std::move(handler));
  if (!started.ok()) return started.status();
  server_ = std::move(*started);
  http_ = server_->address();
  return {};
}

void WorkerCore::stop_http() {
  if (server_ == nullptr) return;
  server_->drain();
  server_->stop();
}

Duration WorkerCore::time_for(const http::ApiRequest& request) const {
  const Duration most = options_.common.request_timeout;
  if (!request.timeout_ms) return most;
  const std::uint64_t asked = std::min<std::uint64_t>(*request.timeout_ms, 1u << 31);
  return std::min<Duration>(most, std::chrono::milliseconds(asked));
}

std::vector<std::string> WorkerCore::key_addresses(const std::string& role) const {
  std::vector<std::string> out;
  if (!keys_) return out;
  for (const control::KeyEntry& entry : keys_->peers) {
    if (entry.role == role && !entry.address.empty()) out.push_back(entry.address);
  }
  return out;
}

std::string WorkerCore::reachable(const std::string& bound) const {
  const auto wildcard = [](const std::string& host) {
    return host == "*" || host == "0.0.0.0" || host == "::";
  };
  auto address = parse_host_port(bound);
  if (!address.ok() || !wildcard(address->host)) return bound;
  const auto listen = parse_host_port(options_.common.listen);
  if (!options_.fabric_addr.empty()) {
    address->host = options_.fabric_addr;
  } else if (listen.ok() && !wildcard(listen->host)) {
    address->host = listen->host;
  }
  return to_string(*address);
}

void WorkerCore::unexpected(const control::Received& message) {
  using proto::MessageType;
  const MessageType type = message.envelope.type;
  // An answer to an error would be answered in turn.
  if (type == MessageType::kError || type == MessageType::kStaleIncarnation) return;
  messenger_->refuse(
      message, "unexpected",
      std::string(proto::to_string(type)) + " means nothing to a " + role_ + " worker");
}

proto::Described WorkerCore::describe(const proto::Load& load) const {
  proto::Described out;
  out.role = role_;
  out.program = options_.common.program;
  out.version = options_.common.version;
  out.http = http_.empty() ? "" : "http://" + reachable(http_);
  out.model = options_.served_model_name;
  out.fingerprint = model().fingerprint;
  out.layout = transfer::to_info(model().layout);
  out.providers = providers_.names();
  out.context = model().context;
  out.load = load;
  out.scope = providers_.scope();
  return out;
}

bool WorkerCore::on_message(const control::Received& message, const proto::Load& load) {
  using proto::MessageType;
  const proto::Envelope& envelope = message.envelope;
  if (const std::string wrong = key_objection(keys_ ? &*keys_ : nullptr, message); !wrong.empty()) {
    messenger_->refuse(message, "unauthorized", wrong);
    return true;
  }
  if (registry_ != nullptr && registry_->on_message(message)) return true;
  switch (envelope.type) {
    case MessageType::kDrain:
      if (!drain_asked_) log_info("drain asked for", {{"by", envelope.from}});
      drain_asked_ = true;
      [[fallthrough]];
    case MessageType::kDescribe: {
      proto::Load now = load;
      now.draining = now.draining || drain_asked_;
      // A reply that cannot be sent is asked for again.
      (void)messenger_->send(message.from, envelope.from, describe(now)).ok();
      return true;
    }
    case MessageType::kProbe:
      if (probe_ == nullptr || !probe_->on_message(message)) {
        messenger_->refuse(message, "unexpected",
                           probe_ == nullptr ? "this worker computes prompts itself: it sends no KV"
                                             : "a worker dials nobody for a probe");
      }
      return true;
    case MessageType::kLeases: {
      const auto body = proto::decode_body<proto::Leases>(envelope);
      if (!body.ok() || body->reply) return body.ok();
      proto::Leases reply;
      reply.reply = true;
      const kv::PageCounts counts = pool_->counts();
      reply.free = counts.free;
      reply.leased = counts.leased;
      reply.sealed = counts.sealed;
      reply.quarantined = counts.quarantined;
      const TimePoint now = clock_.now();
      for (const kv::LeaseInfo& lease : pool_->leases()) {
        std::uint32_t pages = 0;
        for (const kv::PageRun& run : lease.runs) pages += run.count;
        reply.leases.push_back({lease.room.value, lease.peer.value, lease.quarantined,
                                static_cast<std::uint64_t>(to_ms(now - lease.since)), pages,
                                ranges(lease.runs), lease.missing});
      }
      (void)messenger_->send(message.from, envelope.from, reply).ok();
      return true;
    }
    default:
      return false;
  }
}

void WorkerCore::tick(const proto::Load& load) {
  if (registry_ != nullptr) {
    proto::Join self;
    self.role = role_;
    self.control = reachable(channel_->address());
    self.http = http_.empty() ? "" : "http://" + reachable(http_);
    self.model = options_.served_model_name;
    self.load = load;
    registry_->set_self(std::move(self));
    registry_->poll(clock_.now());
  }
  update_gauges();
}

void WorkerCore::update_gauges() {
  const kv::PageCounts counts = pool_->counts();
  const bool same = counts.free == shown_.free && counts.leased == shown_.leased &&
                    counts.sealed == shown_.sealed && counts.quarantined == shown_.quarantined;
  const TimePoint now = clock_.now();
  if (same && now < next_gauges_) return;
  next_gauges_ = now + std::chrono::milliseconds(500);
  shown_ = counts;
  free_.set(counts.free);
  leased_.set(counts.leased);
  sealed_.set(counts.sealed);
  quarantined_.set(counts.quarantined);
  oldest_.set(to_ms(pool_->oldest_lease(now)) / 1e3);
}

void WorkerCore::wait_fds(std::vector<int>* out) const {
  out->push_back(channel_->wait_fd());
  if (probe_ != nullptr) probe_->wait_fds(out);
}

TimePoint WorkerCore::next_deadline() const {
  TimePoint next = next_gauges_;
  if (registry_ != nullptr) next = std::min(next, registry_->next_deadline());
  if (probe_ != nullptr) next = std::min(next, probe_->next_deadline());
  return next;
}

std::string WorkerCore::ready_line() const {
  std::string line =
      "{\"event\":\"ready\",\"program\":" + http::json_string(options_.common.program);
  if (!http_.empty()) line += ",\"http\":" + http::json_string("http://" + http_);
  line += ",\"control\":" + http::json_string(channel_->address());
  const std::vector<std::string>& providers = providers_.names();
  if (!providers.empty()) {
    line += ",\"providers\":[";
    for (std::size_t i = 0; i < providers.size(); ++i) {
      line += (i == 0 ? "" : ",") + http::json_string(providers[i]);
    }
    line += "]";
  }
  line += ",\"model\":" + http::json_string(options_.served_model_name);
  line +=
      ",\"incarnation\":\"" + to_string(incarnation_) + "\",\"pid\":" + std::to_string(getpid());
  return line + "}";
}

bool serve_common(WorkerCore& core, const http::Request& request, http::Responder& responder,
                  bool draining) {
  const bool get = request.method == "GET" || request.method == "HEAD";
  const bool known =
      request.target == "/health" || request.target == "/metrics" || request.target == "/v1/models";
  if (!known) return false;
  if (!get) {
    responder.send(405, "application/json",
                   http::error_body(invalid_argument(request.target + " takes GET")),
                   {{"allow", "GET"}});
  } else if (request.target == "/health") {
    responder.send(draining ? 503 : 200, "application/json",
                   draining ? "{\"status\":\"draining\"}\n" : "{\"status\":\"ok\"}\n");
  } else if (request.target == "/metrics") {
    responder.send(200, "text/plain; version=0.0.4", core.render_metrics());
  } else {
    static const std::int64_t started = std::time(nullptr);
    responder.send(200, "application/json", http::models_body(core.served_name(), started));
  }
  return true;
}

void refuse_target(const http::Request& request, http::Responder& responder, bool known) {
  if (known) {
    responder.send(405, "application/json",
                   http::error_body(invalid_argument(request.target + " takes POST")),
                   {{"allow", "POST"}});
    return;
  }
  responder.send(
      404, "application/json",
      http::error_body({StatusCode::kNotFound, "nothing is served at " + request.target}));
}

}  // namespace kvd::node
