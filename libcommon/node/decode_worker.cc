// kvd-decode: HTTP threads hand requests to the loop, the loop owns rooms, pages and endpoints, the
// engine's thread hands tokens back.
#include <algorithm>
#include <atomic>
#include <set>

#include "base/log.h"
#include "node/api.h"
#include "node/decode_jobs.h"
#include "node/event_loop.h"
#include "node/worker.h"
#include "node/worker_core.h"

namespace kvd::node {
namespace {

constexpr std::size_t kJobQueue = 1024;
constexpr std::size_t kEventQueue = 65536;

class DecodeWorker final : public Daemon, LoopTask, engine::EngineSink {
 public:
  static Result<std::unique_ptr<Daemon>> create(const WorkerOptions& options);
  // HTTP threads reach everything here: they go first.
  ~DecodeWorker() override {
    if (core_ != nullptr) core_->stop_http();
  }

  std::string ready_line() const override { return core_->ready_line(); }
  Status run(const std::atomic<int>& signals) override;

 private:
  DecodeWorker()
      : loop_(&clock_, {}),
        new_jobs_(kJobQueue, &loop_.waker()),
        events_(kEventQueue, &loop_.waker()) {}

  void handle(http::Request request, std::shared_ptr<http::Responder> responder);
  void update_prefills();
  bool step_messages();

  // LoopTask
  bool step() override;
  void wait_fds(std::vector<int>* out) const override;
  bool may_wait() override {
    return (receiver_ == nullptr || receiver_->may_wait()) && core_->may_wait();
  }
  TimePoint next_deadline() const override;
  bool finished() const override;
  // EngineSink, on the engine's thread; the loop never waits for the engine.
  void on_event(engine::EngineEvent event) override { events_.push_wait(std::move(event)); }

  SteadyClock clock_;
  EventLoop loop_;
  BoundedQueue<NewJob> new_jobs_;
  BoundedQueue<engine::EngineEvent> events_;
  std::unique_ptr<WorkerCore> core_;
  std::unique_ptr<DecodeJobs> jobs_;
  std::unique_ptr<transfer::KvReceiver> receiver_;
  ApiLimits limits_;
  Counter refused_;
  std::set<std::string> fixed_prefills_, found_prefills_;
  std::uint64_t members_version_ = 0;
  TimePoint next_seen_{0};
  std::atomic<bool> someone_left_{false}, draining_{false};
  const std::atomic<int>* signals_ = nullptr;
};

Result<std::unique_ptr<Daemon>> DecodeWorker::create(const WorkerOptions& options) {
  const bool local = options.prefills == std::vector<std::string>{"local"};
  if (!local && std::find(options.prefills.begin(), options.prefills.end(), "local") !=
                    options.prefills.end()) {
    return invalid_argument("--prefill local stands alone: it runs both phases in this process");
  }
  std::unique_ptr<DecodeWorker> worker(new DecodeWorker);
  auto core = WorkerCore::start(options, "decode", local);
  if (!core.ok()) return core.status();
  worker->core_ = std::move(*core);
  WorkerCore& c = *worker->core_;
  for (const std::string& address : options.prefills) {
    if (!local) worker->fixed_prefills_.insert(address);
  }
  for (const std::string& address : c.key_addresses("prefill"))
    worker->fixed_prefills_.insert(address);
  if (!local && worker->fixed_prefills_.empty() && options.common.join.empty()) {
    return invalid_argument(
        "no prefill worker named; give --prefill ADDR, --join ADDR or --keys FILE, or --prefill "
        "local");
  }
  worker->jobs_ = std::make_unique<DecodeJobs>(&c);
  if (!local) {
    worker->receiver_ = std::make_unique<transfer::KvReceiver>(
        c.transfer_options(), &c.pool(), c.slot_memory(), &c.messenger(), c.domains(), &c.clock(),
        &c.rng(), &c.metrics(), worker->jobs_.get());
    worker->jobs_->set_receiver(worker->receiver_.get());
    for (const std::string& address : worker->fixed_prefills_)
      worker->receiver_->add_prefill(address);
  }
  worker->refused_ = c.metrics().counter("kvd_requests_total", "API requests by how they ended.",
                                         {{"outcome", "refused"}});
  worker->limits_ = {c.served_name(), c.pool().page_count(), options.engine.max_running};
  c.engine().start(c.pool().memory(), c.pool().page_count(), worker.get());
  KVD_RETURN_IF_ERROR(c.start_http(
      [self = worker.get()](http::Request request, std::shared_ptr<http::Responder> responder) {
        self->handle(std::move(request), std::move(responder));
      }));
  return std::unique_ptr<Daemon>(std::move(worker));
}

void DecodeWorker::handle(http::Request request, std::shared_ptr<http::Responder> responder) {
  if (serve_common(*core_, request, *responder, draining_)) return;
  const bool api = request.target == "/v1/completions" || request.target == "/v1/chat/completions";
  if (!api || request.method != "POST") {
    refuse_target(request, *responder, api);
    return;
  }
  const TimePoint arrival = clock_.now();
  auto prepared = prepare(core_->engine(), limits_, request.target, request.body);
  if (!prepared.ok()) {
    refused_.add();
    const int status = http::http_status(prepared.status().code());
    responder->send(status, "application/json", http::error_body(prepared.status()));
    return;
  }
  if (!receiver_ && !prepared->api.bootstrap.empty()) {
    responder->send(400, "application/json",
                    http::error_body(invalid_argument(
                        "bootstrap_room: this worker was started with --prefill local")));
    return;
  }
  responder->on_gone([this] {
    someone_left_ = true;
    loop_.waker().wake();
  });
  const TimePoint deadline = arrival + core_->time_for(prepared->api);
  NewJob job{std::move(*prepared), responder, arrival, deadline};
  if (!new_jobs_.try_push(std::move(job))) {
    responder->send(
        503, "application/json",
        http::error_body({StatusCode::kResourceExhausted, "too many requests at once; try later"}));
  }
}

void DecodeWorker::update_prefills() {
  RegistryClient* registry = core_->registry();
  if (registry == nullptr || receiver_ == nullptr) return;
  // Loss of discovery is not death: a prefill whose link is up, or that still has rooms of ours,
  // stays.
  if (const TimePoint now = clock_.now(); now >= next_seen_) {
    next_seen_ = now + RegistryClient::kJoinInterval;
    for (const transfer::PrefillView& view : receiver_->prefills()) {
      if (view.state == transfer::LinkState::kReady || view.rooms > 0) {
        registry->seen(view.address, now);
      }
    }
  }
  if (registry->version() == members_version_) return;
  members_version_ = registry->version();
  std::set<std::string> now;
  for (const proto::Member& member : registry->members()) {
    if (member.role == "prefill") now.insert(member.control);
  }
  for (const std::string& address : now) {
    if (!found_prefills_.contains(address)) receiver_->add_prefill(address);
  }
  for (const std::string& address : found_prefills_) {
    if (!now.contains(address) && !fixed_prefills_.contains(address)) {
      receiver_->remove_prefill(address);
    }
  }
  found_prefills_ = std::move(now);
}

bool DecodeWorker::step_messages() {
  // Bounded, so that a flood of messages cannot starve the data plane.
  for (int i = 0; i < 256; ++i) {
    const auto message = core_->messenger().receive();
    if (!message) return i > 0;
    if (!message->refused && core_->on_message(*message, jobs_->load())) continue;
    if (receiver_ != nullptr && receiver_->on_message(*message)) continue;
    if (!message->refused) core_->unexpected(*message);
  }
  return true;
}

bool DecodeWorker::step() {
  bool any = step_messages();
  for (engine::EngineEvent& event : events_.drain()) {
    jobs_->on_engine_event(event);
    any = true;
  }
  for (NewJob& job : new_jobs_.drain()) {
    jobs_->submit(std::move(job));
    any = true;
  }
  if (receiver_ != nullptr && receiver_->poll()) any = true;
  if (core_->poll_probe()) any = true;
  jobs_->poll(someone_left_.exchange(false));
  core_->tick(jobs_->load());
  update_prefills();
  const bool drain = core_->drain_asked() || signals_->load() > 0;
  if (drain && !draining_.exchange(true)) {
    log_info("draining", {{"running", jobs_->load().running}, {"queued", jobs_->load().queue}});
    jobs_->set_draining();
    if (core_->registry() != nullptr) core_->registry()->leave();
  }
  return any;
}

void DecodeWorker::wait_fds(std::vector<int>* out) const {
  core_->wait_fds(out);
  if (receiver_ != nullptr) receiver_->wait_fds(out);
}

TimePoint DecodeWorker::next_deadline() const {
  TimePoint next = std::min(core_->next_deadline(), jobs_->next_deadline());
  if (receiver_ != nullptr) next = std::min(next, receiver_->next_deadline());
  return next;
}

bool DecodeWorker::finished() const {
  if (signals_->load() >= 2) return true;
  return draining_ && jobs_->empty() && new_jobs_.size() == 0;
}

Status DecodeWorker::run(const std::atomic<int>& signals) {
  signals_ = &signals;
  loop_.run(*this);
  const bool cut = !jobs_->empty();
  jobs_->fail_all(unavailable("this worker was told to end at once"));
  core_->stop_http();
  events_.close();
  core_->engine().stop();
  log_info("ended");
  if (cut) return {StatusCode::kFailed, "ended at once: requests were cut"};
  return {};
}

}  // namespace

Result<std::unique_ptr<Daemon>> start_decode(const WorkerOptions& options) {
  return DecodeWorker::create(options);
}

}  // namespace kvd::node
