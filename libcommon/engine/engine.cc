#include "engine/engine.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_set>
#include <utility>

#include "base/log.h"
#include "engine/cpu/llama_model.h"
#include "engine/gguf.h"
#include "engine/mock/mock_model.h"
#include "engine/model.h"
#include "engine/scheduler.h"

namespace kvd::engine {
namespace {

constexpr std::uint32_t kMaxThreads = 1024;

// What create_engine() puts together, whichever model it is.
struct Parts {
  ModelInfo info;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;
  std::unique_ptr<Model> model;
  std::function<void()> on_thread_start;  // null: nothing
  std::function<void()> interrupt;        // null: nothing
};

class EngineImpl final : public Engine, private EngineSink {
 public:
  EngineImpl(Parts parts, const EngineOptions& options, std::optional<LogitTrace> trace,
             Metrics* metrics)
      : parts_(std::move(parts)), options_(options), trace_(std::move(trace)), metrics_(metrics) {}
  ~EngineImpl() override { stop(); }

  const ModelInfo& info() const override { return parts_.info; }
  const Tokenizer& tokenizer() const override { return *parts_.tokenizer; }
  const ChatTemplate& chat_template() const override { return *parts_.chat_template; }
  void start(std::byte* pool_base, std::uint32_t page_count, EngineSink* sink) override;
  bool submit(SequenceRequest request) override;
  void cancel(std::uint64_t id) override;
  std::uint32_t queued() const override;
  std::uint32_t running() const override { return running_.load(std::memory_order_relaxed); }
  void stop() override;

 private:
  struct Submitted {
    SequenceRequest request;
    TimePoint at;
  };
  // What the other threads asked for since the last step.
  struct Inbox {
    std::deque<Submitted> submitted;
    std::unordered_set<std::uint64_t> cancelled;
    bool stopping = false;
  };

  void on_event(EngineEvent event) override;
  void loop();
  Inbox take_inbox(bool wait);

  Parts parts_;
  const EngineOptions options_;
  std::optional<LogitTrace> trace_;
  Metrics* const metrics_;
  EngineSink* sink_ = nullptr;
  std::unique_ptr<Scheduler> scheduler_;
  const SteadyClock clock_;
  std::thread thread_;
  std::atomic<std::uint32_t> running_{0};

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  Inbox inbox_;
  std::unordered_set<std::uint64_t> live_;  // submitted and not finished
};

void EngineImpl::start(std::byte* pool_base, std::uint32_t page_count, EngineSink* sink) {
  KVD_CHECK(sink_ == nullptr && sink != nullptr);
  sink_ = sink;
  parts_.model->attach_pool(pool_base, page_count);
  scheduler_ = std::make_unique<Scheduler>(
      SchedulerOptions{parts_.info.context, page_count, options_.max_running, options_.chunk},
      parts_.model.get(), parts_.tokenizer.get(), static_cast<EngineSink*>(this),
      trace_ ? &*trace_ : nullptr, metrics_);
  thread_ = std::thread([this] { loop(); });
}

bool EngineImpl::submit(SequenceRequest request) {
  {
    std::lock_guard lock(mutex_);
    const std::size_t most = 4 * std::size_t{options_.max_running} + 64;
    if (inbox_.stopping || live_.size() >= most) return false;
    // Two requests of one id could not be told apart in their events.
    KVD_CHECK(live_.insert(request.id).second);
    inbox_.submitted.push_back({std::move(request), clock_.now()});
  }
  wake_.notify_one();
  return true;
}

void EngineImpl::cancel(std::uint64_t id) {
  {
    std::lock_guard lock(mutex_);
    if (!live_.contains(id)) return;
    inbox_.cancelled.insert(id);
  }
  wake_.notify_one();
}

std::uint32_t EngineImpl::queued() const {
  std::lock_guard lock(mutex_);
  return static_cast<std::uint32_t>(live_.size());
}

void EngineImpl::stop() {
  {
    std::lock_guard lock(mutex_);
    inbox_.stopping = true;
  }
  wake_.notify_one();
  if (parts_.interrupt) parts_.interrupt();
  if (thread_.joinable()) thread_.join();
}

void EngineImpl::on_event(EngineEvent event) {
  if (const Finished* finished = std::get_if<Finished>(&event)) {
    // Before the event is out: its receiver may use the id again at once.
    std::lock_guard lock(mutex_);
    live_.erase(finished->id);
    inbox_.cancelled.erase(finished->id);
  }
  sink_->on_event(std::move(event));
}

EngineImpl::Inbox EngineImpl::take_inbox(bool wait) {
  std::unique_lock lock(mutex_);
  if (wait) {
    wake_.wait(lock, [this] {
      return inbox_.stopping || !inbox_.submitted.empty() || !inbox_.cancelled.empty();
    });
  }
  Inbox taken;
  std::swap(taken.submitted, inbox_.submitted);
  std::swap(taken.cancelled, inbox_.cancelled);
  taken.stopping = inbox_.stopping;
  return taken;
}

void EngineImpl::loop() {
  if (parts_.on_thread_start) parts_.on_thread_start();
  while (true) {
    Inbox inbox = take_inbox(scheduler_->idle());
    for (Submitted& submitted : inbox.submitted) {
      scheduler_->add(std::move(submitted.request), submitted.at);
    }
    for (std::uint64_t id : inbox.cancelled) scheduler_->cancel(id);
    if (inbox.stopping) break;
    scheduler_->step();
    running_.store(scheduler_->running(), std::memory_order_relaxed);
  }
  scheduler_->cancel_all();
  running_.store(0, std::memory_order_relaxed);
}

// "SmolLM2-135M-Instruct" of ".../SmolLM2-135M-Instruct.Q4_1.gguf": what people call the model.
std::string name_of_file(const std::string& path) {
  std::string name = path.substr(path.find_last_of('/') + 1);
  for (const std::string_view end : {".gguf", ".GGUF"}) {
    if (name.ends_with(end)) name.resize(name.size() - end.size());
  }
  const std::size_t dot = name.find_last_of('.');
  if (dot != std::string::npos && dot > 0) {
    const std::string suffix = name.substr(dot + 1);
    for (const std::string_view type : {"Q", "q", "F16", "f16", "F32", "f32", "BF16", "bf16"}) {
      if (!suffix.starts_with(type)) continue;
      name.resize(dot);
      break;
    }
  }
  return name;
}

Result<std::uint32_t> choose_context(std::uint32_t asked, std::uint32_t of_model) {
  if (asked <= of_model) return asked == 0 ? of_model : asked;
  return invalid_argument("--context " + std::to_string(asked) + " is more than the model's " +
                          std::to_string(of_model));
}

Result<Parts> load_cpu(const EngineOptions& options) {
  Result<Gguf> file = Gguf::open(options.model_path);
  if (!file.ok()) return file.status();
  Parts parts;
  Result<std::unique_ptr<Tokenizer>> tokenizer = make_bpe_tokenizer(*file);
  if (!tokenizer.ok()) return tokenizer.status();
  parts.tokenizer = std::move(*tokenizer);
  Result<std::unique_ptr<ChatTemplate>> chat =
      make_chat_template(file->meta_string("tokenizer.chat_template").value_or(""),
                         options.chat_template, parts.tokenizer.get());
  if (!chat.ok()) return chat.status();
  parts.chat_template = std::move(*chat);
  Result<std::unique_ptr<cpu::CpuModel>> loaded = cpu::make_llama_model(
      *file,
      {options.page_size, options.threads, options.pin_cpus, options.cpu, options.deterministic});
  if (!loaded.ok()) return loaded.status();
  cpu::CpuModel* model = loaded->get();
  Result<std::uint32_t> context = choose_context(options.context, model->context());
  if (!context.ok()) return context.status();
  if (parts.tokenizer->vocab_size() > model->vocab()) {
    return invalid_argument(options.model_path + ": the tokenizer has " +
                            std::to_string(parts.tokenizer->vocab_size()) +
                            " tokens, the embedding " + std::to_string(model->vocab()));
  }
  parts.info.name = name_of_file(options.model_path);
  parts.info.fingerprint = file->fingerprint();
  parts.info.context = *context;
  parts.info.weight_bytes = model->weight_bytes();
  parts.info.kernels = model->kernels();
  parts.info.eos = static_cast<TokenId>(
      static_cast<std::int64_t>(file->meta_uint("tokenizer.ggml.eos_token_id").value_or(~0ULL)));
  parts.on_thread_start = [model] { model->adopt_thread(); };
  parts.model = std::move(*loaded);
  return parts;
}

Result<Parts> load_mock(const EngineOptions& options) {
  Result<MockShape> shape = find_mock_shape(options.shape, options.page_size);
  if (!shape.ok()) return shape.status();
  Result<std::uint32_t> context = choose_context(options.context, shape->context);
  if (!context.ok()) return context.status();
  Parts parts;
  parts.tokenizer = make_byte_tokenizer();
  parts.chat_template = make_mock_chat_template(parts.tokenizer.get());
  auto model = std::make_unique<MockModel>(*shape, options.mock_us_per_token);
  parts.interrupt = [m = model.get()] { m->interrupt(); };
  parts.info.name = shape->name;
  parts.info.fingerprint = "mock:" + shape->name;
  parts.info.context = *context;
  parts.info.kernels = "mock";
  for (TokenId token = 0; static_cast<std::uint32_t>(token) < parts.tokenizer->vocab_size();
       ++token) {
    if (parts.tokenizer->is_end(token)) parts.info.eos = token;
  }
  parts.model = std::move(model);
  return parts;
}

}  // namespace

Result<std::unique_ptr<Engine>> create_engine(const EngineOptions& options, Metrics* metrics) {
  if (options.max_running == 0 || options.chunk == 0) {
    return invalid_argument("--max-running and --chunk must be at least 1");
  }
  if (options.threads > kMaxThreads) {
    return invalid_argument("--threads must be at most " + std::to_string(kMaxThreads));
  }
  std::optional<LogitTrace> trace;
  if (!options.trace_logits.empty()) {
    Result<LogitTrace> opened = LogitTrace::open(options.trace_logits);
    if (!opened.ok()) return opened.status();
    trace = std::move(*opened);
  }
  Result<Parts> parts = options.kind == EngineKind::kMock ? load_mock(options) : load_cpu(options);
  if (!parts.ok()) return parts.status();
  ModelInfo& info = parts->info;
  info.layout = parts->model->layout();
  info.vocab = parts->model->vocab();
  info.bos = parts->tokenizer->bos();
  return std::unique_ptr<Engine>(
      std::make_unique<EngineImpl>(std::move(*parts), options, std::move(trace), metrics));
}

}  // namespace kvd::engine
