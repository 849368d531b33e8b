// What kvd-prefill and kvd-decode have in common: model, pool, providers, control channel, metrics,
// and the answers to Describe, Drain, Leases and Probe.
//
// Calling thread: start() anywhere, everything else on the loop's thread, except where 'any' is
// said.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "base/rng.h"
#include "control/messenger.h"
#include "control/zmq_channel.h"
#include "device/host_buffer.h"
#include "engine/engine.h"
#include "fabric/fabric.h"
#include "http/openai.h"
#include "http/server.h"
#include "kv/page_pool.h"
#include "node/options.h"
#include "node/provider_set.h"
#include "node/registry_client.h"
#include "probe/probe_target.h"
#include "proto/link_messages.h"

namespace kvd::node {

class WorkerCore {
 public:
  // Loads the model, makes the pool (with room for `slots` metadata slots behind it), opens
  // providers (none for `local_only`) and the control channel. Errors as start_prefill.
  static Result<std::unique_ptr<WorkerCore>> start(const WorkerOptions& options, std::string role,
                                                   bool local_only);

  const WorkerOptions& options() const { return options_; }
  const Clock& clock() const { return clock_; }
  Metrics& metrics() { return metrics_; }  // any thread
  Rng& rng() { return rng_; }
  engine::Engine& engine() { return *engine_; }  // any thread
  kv::PagePool& pool() { return *pool_; }
  std::byte* slot_memory() const { return buffer_.data() + pool_->memory_bytes(); }
  control::Messenger& messenger() { return *messenger_; }
  std::vector<fabric::Domain*> domains() const { return providers_.domains(); }
  // Options for KvSender/KvReceiver, filled with model, fingerprint and providers.
  const transfer::TransferOptions& transfer_options() const { return options_.transfer; }
  Incarnation incarnation() const { return incarnation_; }
  const std::string& served_name() const { return options_.served_model_name; }  // any thread
  const engine::ModelInfo& model() const { return engine_->info(); }             // any thread
  RegistryClient* registry() { return registry_.get(); }  // null without --join

  // Starts the HTTP server; `handler` is called on its threads. Before the first step of the loop.
  Status start_http(http::Handler handler);
  // Ends it once the answers are out.
  void stop_http();
  // What a request has: kvd_timeout_ms, at most --request-timeout.
  Duration time_for(const http::ApiRequest& request) const;
  // Answers what any worker answers. True if the message was one of these.
  bool on_message(const control::Received& message, const proto::Load& load);
  // Answers a message that nobody here knows with Error.
  void unexpected(const control::Received& message);
  // Control addresses that the key file lists for a role.
  std::vector<std::string> key_addresses(const std::string& role) const;
  // True if Drain came.
  bool drain_asked() const { return drain_asked_; }
  // Sends Join, updates gauges. `load` as for heartbeats.
  void tick(const proto::Load& load);
  // Serves who probes this worker, within probe::worker_limits(). True if anything happened.
  bool poll_probe() { return probe_ != nullptr && probe_->poll(); }
  // Of the control channel and of probes.
  void wait_fds(std::vector<int>* out) const;
  bool may_wait() { return probe_ == nullptr || probe_->may_wait(); }
  TimePoint next_deadline() const;
  std::string ready_line() const;
  // One line for /metrics: any thread.
  std::string render_metrics() { return metrics_.render(); }

 private:
  WorkerCore() = default;
  Status load_model();
  Status allocate_pool(std::size_t bytes);
  Status open_control();
  void update_gauges();
  // A wildcard address is of no use to others: with the host of --fabric-addr, else of --listen.
  std::string reachable(const std::string& bound) const;
  proto::Described describe(const proto::Load& load) const;

  WorkerOptions options_;
  std::string role_, http_;
  SteadyClock clock_;
  Metrics metrics_;
  Rng rng_{secure_random_u64()};
  Incarnation incarnation_{secure_random_u63()};
  std::unique_ptr<engine::Engine> engine_;
  device::HostBuffer buffer_;
  std::unique_ptr<kv::PagePool> pool_;
  ProviderSet providers_;
  std::optional<control::KeyRing> keys_;  // of --keys
  std::unique_ptr<control::Channel> channel_;
  std::unique_ptr<control::Messenger> messenger_;
  std::unique_ptr<RegistryClient> registry_;
  std::unique_ptr<probe::ProbeTarget> probe_;  // null without providers
  std::unique_ptr<http::Server> server_;
  bool drain_asked_ = false;
  kv::PageCounts shown_{UINT32_MAX, 0, 0, 0};
  Gauge free_, leased_, sealed_, quarantined_, oldest_;
  TimePoint next_gauges_{0};
};

// /health, /metrics and /v1/models of a worker: answers and returns true when the target is one of
// them.
bool serve_common(WorkerCore& core, const http::Request& request, http::Responder& responder,
                  bool draining);
// 404, or 405 where the target is `known` and takes POST.
void refuse_target(const http::Request& request, http::Responder& responder, bool known);

}  // namespace kvd::node
