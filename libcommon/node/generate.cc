#include "node/generate.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "base/metrics.h"
#include "base/rng.h"
#include "base/units.h"
#include "http/body_edit.h"
#include "http/client.h"
#include "http/openai.h"
#include "node/generate_job.h"
#include "node/route_control.h"
#include "node/route_proxy.h"

namespace kvd::node {
namespace {

constexpr Duration kInterruptPoll{50'000'000};
// With `ordered`, results that wait for an earlier one.
constexpr std::uint64_t kMaxAhead = 4;

// Everything that an in-process router needs; torn down in the order that its parts use each other.
struct LocalRouter {
  SteadyClock clock;
  Metrics metrics;
  std::unique_ptr<RouteMembers> members;
  std::unique_ptr<RouteControl> control;
  std::unique_ptr<RouteProxy> proxy;
  std::atomic<RouteProxy*> ready_proxy{nullptr};

  ~LocalRouter() {
    if (control) control->stop();
    ready_proxy = nullptr;
    proxy.reset();
  }

  Status start(const GenerateOptions& options);
  Status wait_for_pair(const GenerateOptions& options);
};

Status LocalRouter::start(const GenerateOptions& options) {
  const bool standalone = options.flow == Flow::kStandalone;
  if (options.join.empty() && options.decodes.empty()) {
    return invalid_argument(
        "name the workers: --decode ADDR (and --prefill ADDR), --join ADDR of a registry, or --url "
        "URL");
  }
  if (standalone && options.join.empty() && options.prefills.empty()) {
    return invalid_argument("--flow standalone needs --prefill ADDR besides --decode ADDR");
  }
  Result<std::unique_ptr<RouteMembers>> made =
      RouteMembers::create(options.policy, standalone, options.dead_after, secure_random_u64());
  if (!made.ok()) return made.status();
  members = std::move(*made);
  RouteControlOptions plan;
  plan.program = "kvd-route";
  plan.join = options.join;
  plan.prefills = options.prefills;
  plan.decodes = options.decodes;
  plan.dead_after = options.dead_after;
  if (!options.keys.empty()) {
    Result<control::KeyRing> keys = control::load_keys(options.keys);
    if (!keys.ok()) return keys.status();
    plan.keys = std::move(*keys);
  }
  RouteControlHooks hooks;
  hooks.on_lost = [this](const std::string& address) {
    if (RouteProxy* ready = ready_proxy) ready->worker_lost(address);
  };
  hooks.tick = [this](TimePoint now) {
    RouteProxy* ready = ready_proxy;
    return ready == nullptr ? kNever : ready->tick(now);
  };
  Result<std::unique_ptr<RouteControl>> started =
      RouteControl::start(std::move(plan), members.get(), &metrics, &clock, std::move(hooks));
  if (!started.ok()) return started.status();
  control = std::move(*started);
  RouteProxyOptions proxy_options{options.flow, std::max(1U, options.retries),
                                  options.request_timeout, options.api_key};
  proxy = std::make_unique<RouteProxy>(std::move(proxy_options), members.get(), &metrics, &clock,
                                       [this] { control->wake(); });
  ready_proxy = proxy.get();
  return {};
}

Status LocalRouter::wait_for_pair(const GenerateOptions& options) {
  const auto interrupted = [&] {
    return options.interrupt != nullptr && options.interrupt->load() != 0;
  };
  const TimePoint end = clock.now() + options.timeout;
  const auto over = [&] { return members->usable(clock.now()) || interrupted(); };
  while (!over() && clock.now() < end) {
    control->wait_for(over, std::min(kInterruptPoll, end - clock.now()));
  }
  if (members->usable(clock.now())) return {};
  if (interrupted()) return {StatusCode::kFailed, "interrupted before any worker was there"};
  const Result<Assignment> pair = members->pick("", {}, {}, clock.now());
  if (pair.ok()) {
    members->release(*pair, Outcome::kNeutral, Outcome::kNeutral, clock.now());
    return {};
  }
  return unavailable("after " + format_duration(options.timeout) + ": " + pair.status().message());
}

class Generator {
 public:
  Generator(const GenerateOptions& options, const GenerateSink& sink)
      : options_(options), sink_(sink) {}
  Status run(const std::function<bool(Prompt*)>& next_prompt);

 private:
  bool interrupted() const {
    return options_.interrupt != nullptr && options_.interrupt->load() != 0;
  }
  bool wait_for_slot();
  void submit(std::uint64_t index, Prompt prompt);
  void send(const std::shared_ptr<GenerateJob>& job, std::string target, std::string body);
  void wait_for_all();
  void cancel_all();
  void deliver();
  void hand_over(const std::shared_ptr<GenerateJob>& job, const std::string& text, bool ended);
  Status verdict() const;

  const GenerateOptions& options_;
  const GenerateSink& sink_;
  SteadyClock clock_;
  std::unique_ptr<LocalRouter> router_;
  std::unique_ptr<http::Client> client_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, std::shared_ptr<GenerateJob>> jobs_;  // not handed over yet
  bool closing_ = false;
  std::uint64_t running_ = 0;

  // The delivering thread's, and the caller's after it has been joined.
  std::uint64_t good_ = 0, bad_ = 0;
  Status first_failure_;
};

bool Generator::wait_for_slot() {
  const std::uint64_t width = std::max(1U, options_.concurrency);
  std::unique_lock lock(mutex_);
  while (!interrupted()) {
    if (running_ < width && jobs_.size() < width * kMaxAhead) return true;
    changed_.wait_for(lock, kInterruptPoll);
  }
  return false;
}

void Generator::submit(std::uint64_t index, Prompt prompt) {
  const bool chat = options_.chat || !prompt.messages.empty();
  if (prompt.id.empty()) prompt.id = std::to_string(index);
  Result<std::string> body = generate_body(options_, prompt, chat);
  const auto job =
      std::make_shared<GenerateJob>(index, prompt.id, options_.stream, &clock_, [this](bool ended) {
        const std::lock_guard lock(mutex_);
        if (ended) --running_;
        changed_.notify_all();
      });
  {
    const std::lock_guard lock(mutex_);
    jobs_[index] = job;
    ++running_;
  }
  if (body.ok()) {
    send(job, chat ? "/v1/chat/completions" : "/v1/completions", std::move(*body));
  } else {
    job->end(body.status());
  }
}

void Generator::send(const std::shared_ptr<GenerateJob>& job, std::string target,
                     std::string body) {
  if (router_) {
    http::Request request;
    request.method = "POST";
    request.target = std::move(target);
    request.body = std::move(body);
    router_->proxy->handle(std::move(request), std::make_shared<JobResponder>(job));
    return;
  }
  http::ClientRequest request;
  std::string base = options_.url;
  while (base.ends_with('/')) base.pop_back();
  request.url = base + target;
  request.method = "POST";
  request.headers["content-type"] = "application/json";
  if (!options_.api_key.empty()) request.headers["authorization"] = "Bearer " + options_.api_key;
  request.body = std::move(body);
  request.connect_timeout = std::min(options_.timeout, options_.request_timeout);
  request.timeout = options_.request_timeout;
  http::ClientCallbacks callbacks;
  callbacks.on_head = [job](const http::ResponseHead& head) { job->head(head.status); };
  callbacks.on_data = [job](std::string_view bytes) { job->bytes(bytes); };
  callbacks.on_end = [job](const Status& status) { job->end(status); };
  const std::shared_ptr<http::Call> call = client_->start(std::move(request), std::move(callbacks));
  job->on_cancel([call] { call->cancel(); });
}

void Generator::deliver() {
  std::unique_lock lock(mutex_);
  while (true) {
    std::shared_ptr<GenerateJob> job;
    std::string text;
    bool ended = false;
    for (const auto& [index, each] : jobs_) {
      ended = each->take(&text);
      if (ended || !text.empty()) job = each;
      if (job || options_.ordered) break;
    }
    if (job) {
      if (ended) jobs_.erase(job->index());
      lock.unlock();
      hand_over(job, text, ended);
      lock.lock();
      continue;
    }
    if (closing_ && jobs_.empty()) return;
    changed_.wait(lock);
  }
}

void Generator::hand_over(const std::shared_ptr<GenerateJob>& job, const std::string& text,
                          bool ended) {
  if (!text.empty() && sink_.on_text) sink_.on_text(job->index(), text);
  if (!ended) return;
  const GenerateResult result = job->result();
  if (result.status.ok()) {
    ++good_;
  } else {
    if (bad_++ == 0) first_failure_ = result.status;
  }
  if (sink_.on_result) sink_.on_result(result);
}

void Generator::cancel_all() {
  std::vector<std::shared_ptr<GenerateJob>> jobs;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [index, job] : jobs_) jobs.push_back(job);
  }
  for (const auto& job : jobs) job->cancel();
}

void Generator::wait_for_all() {
  std::unique_lock lock(mutex_);
  while (!jobs_.empty() && !interrupted()) changed_.wait_for(lock, kInterruptPoll);
}

Status Generator::verdict() const {
  if (interrupted()) {
    return {StatusCode::kFailed,
            "interrupted: " + std::to_string(good_) + " prompts have their answer"};
  }
  if (bad_ == 0) return {};
  if (good_ == 0) return first_failure_;
  return {StatusCode::kFailed, std::to_string(bad_) + " of " + std::to_string(good_ + bad_) +
                                   " prompts failed, the first: " + first_failure_.message()};
}

Status Generator::run(const std::function<bool(Prompt*)>& next_prompt) {
  if (options_.url.empty()) {
    router_ = std::make_unique<LocalRouter>();
    KVD_RETURN_IF_ERROR(router_->start(options_));
    KVD_RETURN_IF_ERROR(router_->wait_for_pair(options_));
  } else {
    client_ = http::Client::create();
  }
  std::thread deliverer([this] { deliver(); });
  Prompt prompt;
  for (std::uint64_t index = 0; wait_for_slot() && next_prompt(&prompt); ++index) {
    submit(index, std::move(prompt));
    prompt = Prompt{};
  }
  wait_for_all();
  if (interrupted()) cancel_all();
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  deliverer.join();
  const Status status = verdict();
  client_.reset();
  router_.reset();
  return status;
}

}  // namespace

Status generate(const GenerateOptions& options, const std::function<bool(Prompt*)>& next_prompt,
                const GenerateSink& sink) {
  Generator generator(options, sink);
  return generator.run(next_prompt);
}

}  // namespace kvd::node
