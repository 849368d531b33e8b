// kvd-prefill: the loop owns rooms, source pages and endpoints (KvSender); the engine's thread
// computes and says which layers are ready. HTTP serves health and metrics, and in the standalone
// flow the router's half of a room.
#include <algorithm>
#include <atomic>
#include <deque>
#include <unordered_map>
#include <unordered_set>

#include "base/log.h"
#include "node/answer.h"
#include "node/api.h"
#include "node/event_loop.h"
#include "node/worker.h"
#include "node/worker_core.h"
#include "transfer/kv_sender.h"

namespace kvd::node {
namespace {

constexpr std::size_t kJobQueue = 1024;
constexpr std::size_t kEventQueue = 65536;

// The router's half of a standalone request: one answer when all its rooms are over.
struct Half {
  PreparedRequest request;
  std::shared_ptr<http::Responder> responder;
  TimePoint deadline;
  std::vector<RoomId> rooms;
  std::size_t open = 0;
  Status status;
};

class PrefillWorker final : public Daemon,
                            public transfer::SenderHost,
                            LoopTask,
                            engine::EngineSink {
 public:
  static Result<std::unique_ptr<Daemon>> create(const WorkerOptions& options);
  // HTTP threads reach everything here: they go first.
  ~PrefillWorker() override {
    if (core_ != nullptr) core_->stop_http();
  }

  std::string ready_line() const override { return core_->ready_line(); }
  Status run(const std::atomic<int>& signals) override;

 private:
  PrefillWorker()
      : loop_(&clock_, {}),
        halves_in_(kJobQueue, &loop_.waker()),
        events_(kEventQueue, &loop_.waker()) {}

  void handle(http::Request request, std::shared_ptr<http::Responder> responder);
  void add_half(std::shared_ptr<Half> half);
  void end_half_room(RoomId room, const Status& status);
  void drop_gone_halves();
  void submit_pending();
  void on_engine_event(const engine::EngineEvent& event);

  // LoopTask
  bool step() override;
  void wait_fds(std::vector<int>* out) const override;
  bool may_wait() override { return sender_->may_wait() && core_->may_wait(); }
  TimePoint next_deadline() const override {
    return std::min(core_->next_deadline(), sender_->next_deadline());
  }
  bool finished() const override;
  // EngineSink, on the engine's thread
  void on_event(engine::EngineEvent event) override { events_.push_wait(std::move(event)); }
  // SenderHost
  void start_compute(transfer::PrefillJob job) override;
  void cancel_compute(RoomId room) override;
  void room_over(RoomId room, const transfer::SenderOutcome& outcome) override;
  proto::Load load() override;

  SteadyClock clock_;
  EventLoop loop_;
  BoundedQueue<std::shared_ptr<Half>> halves_in_;
  BoundedQueue<engine::EngineEvent> events_;
  std::unique_ptr<WorkerCore> core_;
  std::unique_ptr<transfer::KvSender> sender_;
  ApiLimits limits_;
  std::deque<engine::SequenceRequest> pending_;   // the engine's queue was full
  std::unordered_set<std::uint64_t> cancelling_;  // rooms whose compute was told to stop
  std::unordered_map<RoomId, std::shared_ptr<Half>> halves_;
  std::atomic<bool> someone_left_{false}, draining_{false};
  const std::atomic<int>* signals_ = nullptr;
  std::unordered_map<std::string, Counter> outcomes_;
};

Result<std::unique_ptr<Daemon>> PrefillWorker::create(const WorkerOptions& options) {
  std::unique_ptr<PrefillWorker> worker(new PrefillWorker);
  auto core = WorkerCore::start(options, "prefill", false);
  if (!core.ok()) return core.status();
  worker->core_ = std::move(*core);
  WorkerCore& c = *worker->core_;
  for (const char* outcome : {"ok", "cancelled", "failed", "refused"}) {
    worker->outcomes_[outcome] = c.metrics().counter(
        "kvd_requests_total", "Requests by how they ended.", {{"outcome", outcome}});
  }
  worker->sender_ = std::make_unique<transfer::KvSender>(c.transfer_options(), &c.pool(),
                                                         &c.messenger(), c.domains(), &c.clock(),
                                                         &c.rng(), &c.metrics(), worker.get());
  worker->limits_ = {c.served_name(), c.pool().page_count(), c.transfer_options().max_rooms};
  c.engine().start(c.pool().memory(), c.pool().page_count(), worker.get());
  KVD_RETURN_IF_ERROR(c.start_http(
      [self = worker.get()](http::Request request, std::shared_ptr<http::Responder> responder) {
        self->handle(std::move(request), std::move(responder));
      }));
  return std::unique_ptr<Daemon>(std::move(worker));
}

void PrefillWorker::handle(http::Request request, std::shared_ptr<http::Responder> responder) {
  if (serve_common(*core_, request, *responder, draining_)) return;
  const bool api = request.target == "/v1/completions" || request.target == "/v1/chat/completions";
  if (!api || request.method != "POST") {
    refuse_target(request, *responder, api);
    return;
  }
  const auto refuse = [&](const Status& why) {
    outcomes_.at("refused").add();
    responder->send(http::http_status(why.code()), "application/json", http::error_body(why));
  };
  auto prepared = prepare(core_->engine(), limits_, request.target, request.body);
  if (!prepared.ok()) return refuse(prepared.status());
  if (prepared->api.bootstrap.empty()) {
    return refuse(
        invalid_argument("bootstrap_room: a prefill worker computes for a decode worker; ask a "
                         "decode worker or a router"));
  }
  if (draining_) return refuse(Status(StatusCode::kResourceExhausted, "this worker is draining"));
  auto half = std::make_shared<Half>();
  half->request = std::move(*prepared);
  half->responder = responder;
  half->deadline = clock_.now() + core_->time_for(half->request.api);
  responder->on_gone([this] {
    someone_left_ = true;
    loop_.waker().wake();
  });
  if (!halves_in_.try_push(std::move(half))) {
    refuse(Status(StatusCode::kResourceExhausted, "too many requests at once; try later"));
  }
}

void PrefillWorker::add_half(std::shared_ptr<Half> half) {
  // It may have left before it was in the table, where drop_gone_halves() looks.
  if (half->responder->gone()) return;
  const PreparedRequest& request = half->request;
  half->open = request.items();
  for (std::size_t i = 0; i < request.items(); ++i) {
    const RoomId room = request.api.bootstrap[i].room;
    Status expected = invalid_argument("bootstrap_room: this room is open already");
    if (halves_.try_emplace(room, half).second) {
      // In the table first: the room may be over before expect() returns.
      expected = sender_->expect(room, request.prompts[i / request.api.n], request.api.sampling,
                                 half->deadline);
      if (!expected.ok()) halves_.erase(room);
    }
    if (!expected.ok()) {
      for (const RoomId other : half->rooms) {
        halves_.erase(other);
        sender_->abandon(other);
      }
      half->responder->send(http::http_status(expected.code()), "application/json",
                            http::error_body(expected));
      return;
    }
    half->rooms.push_back(room);
  }
}

void PrefillWorker::end_half_room(RoomId room, const Status& status) {
  const auto it = halves_.find(room);
  if (it == halves_.end()) return;
  const std::shared_ptr<Half> half = it->second;
  halves_.erase(it);
  if (half->status.ok() && !status.ok()) half->status = status;
  if (--half->open > 0) return;
  // What the router reads to its end and throws away: an answer without tokens, or the error.
  Answer answer(half->request, core_->served_name(), &core_->engine().tokenizer(), half->responder);
  if (!half->status.ok()) {
    answer.fail(half->status, http::http_status(half->status.code()));
    return;
  }
  for (std::size_t i = 0; i < half->request.items(); ++i) {
    answer.finish(i, engine::FinishReason::kLength, "");
  }
  answer.complete();
}

void PrefillWorker::drop_gone_halves() {
  std::vector<RoomId> gone;
  for (const auto& [room, half] : halves_) {
    if (half->responder->gone()) gone.push_back(room);
  }
  for (const RoomId room : gone) {
    halves_.erase(room);
    sender_->abandon(room);
  }
}

void PrefillWorker::start_compute(transfer::PrefillJob job) {
  engine::SequenceRequest sequence;
  sequence.id = job.room.value;
  sequence.mode = engine::SequenceMode::kPrefill;
  sequence.prompt = std::move(job.prompt);
  sequence.sampling = std::move(job.sampling);
  sequence.choice = job.choice;
  sequence.pages = std::move(job.pages);
  sequence.groups = std::move(job.groups);
  pending_.push_back(std::move(sequence));
  submit_pending();
}

void PrefillWorker::submit_pending() {
  const std::uint32_t room_for = 4 * core_->options().engine.max_running;
  while (!pending_.empty() && core_->engine().queued() + core_->engine().running() < room_for) {
    if (!core_->engine().submit(pending_.front())) return;
    pending_.pop_front();
  }
}

void PrefillWorker::cancel_compute(RoomId room) {
  const auto waiting = std::find_if(pending_.begin(), pending_.end(),
                                    [&](const auto& s) { return s.id == room.value; });
  if (waiting != pending_.end()) {
    pending_.erase(waiting);
    sender_->compute_stopped(room);
    return;
  }
  cancelling_.insert(room.value);
  core_->engine().cancel(room.value);
}

void PrefillWorker::on_engine_event(const engine::EngineEvent& event) {
  if (const auto* ready = std::get_if<engine::LayersReady>(&event)) {
    if (cancelling_.contains(ready->id)) return;
    sender_->layers_ready(RoomId{ready->id}, ready->group, ready->token_begin, ready->token_end);
  } else if (const auto* done = std::get_if<engine::PrefillDone>(&event)) {
    if (cancelling_.contains(done->id)) return;
    sender_->computed(RoomId{done->id}, done->first, done->queued, done->compute);
  } else if (const auto* finished = std::get_if<engine::Finished>(&event)) {
    const RoomId room{finished->id};
    if (cancelling_.erase(finished->id) > 0) {
      sender_->compute_stopped(room);
    } else if (finished->reason == engine::FinishReason::kError) {
      sender_->compute_failed(room, finished->status);
    } else if (finished->reason == engine::FinishReason::kCancelled) {
      sender_->compute_failed(room, unavailable("this worker is stopping"));
    }
    submit_pending();
  }
}

void PrefillWorker::room_over(RoomId room, const transfer::SenderOutcome& outcome) {
  const bool cancelled = outcome.status.code() == StatusCode::kCancelled;
  outcomes_[outcome.status.ok() ? "ok" : cancelled ? "cancelled" : "failed"].add();
  end_half_room(room, outcome.status);
}

proto::Load PrefillWorker::load() {
  proto::Load out;
  out.queue = static_cast<std::uint32_t>(sender_ == nullptr ? 0 : sender_->waiting());
  const auto rooms = static_cast<std::uint32_t>(sender_ == nullptr ? 0 : sender_->rooms());
  out.running = rooms > out.queue ? rooms - out.queue : 0;
  out.free_pages = core_->pool().counts().free;
  out.total_pages = core_->pool().page_count();
  out.draining = draining_;
  return out;
}

bool PrefillWorker::step() {
  bool any = false;
  for (int i = 0; i < 256; ++i) {
    const auto message = core_->messenger().receive();
    if (!message) break;
    any = true;
    if (!message->refused && core_->on_message(*message, load())) continue;
    if (sender_->on_message(*message) || message->refused) continue;
    core_->unexpected(*message);
  }
  for (const engine::EngineEvent& event : events_.drain()) {
    on_engine_event(event);
    any = true;
  }
  for (std::shared_ptr<Half>& half : halves_in_.drain()) {
    add_half(std::move(half));
    any = true;
  }
  if (someone_left_.exchange(false)) drop_gone_halves();
  if (sender_->poll()) any = true;
  if (core_->poll_probe()) any = true;
  core_->tick(load());
  if ((core_->drain_asked() || signals_->load() > 0) && !draining_.exchange(true)) {
    log_info("draining", {{"rooms", sender_->rooms()}});
    sender_->drain();
    if (core_->registry() != nullptr) core_->registry()->leave();
  }
  return any;
}

void PrefillWorker::wait_fds(std::vector<int>* out) const {
  core_->wait_fds(out);
  sender_->wait_fds(out);
}

bool PrefillWorker::finished() const {
  if (signals_->load() >= 2) return true;
  return draining_ && sender_->idle() && halves_.empty() && halves_in_.size() == 0;
}

Status PrefillWorker::run(const std::atomic<int>& signals) {
  signals_ = &signals;
  loop_.run(*this);
  const bool cut = !sender_->idle() || !halves_.empty();
  core_->stop_http();
  events_.close();
  core_->engine().stop();
  log_info("ended");
  if (cut) return {StatusCode::kFailed, "ended at once: rooms were cut"};
  return {};
}

}  // namespace

Result<std::unique_ptr<Daemon>> start_prefill(const WorkerOptions& options) {
  return PrefillWorker::create(options);
}

}  // namespace kvd::node
