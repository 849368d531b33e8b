// Whole engines through their public door, on their own threads.
#include "engine/engine.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>

#include "support/tiny_llama.h"

namespace kvd::engine {
namespace {

// A file that is gone with the test.
struct TempFile {
  explicit TempFile(const std::string& name)
      : path((std::filesystem::temp_directory_path() /
              ("kvd-engine-test-" + std::to_string(getpid()) + "-" + name))
                 .string()) {}
  ~TempFile() { std::remove(path.c_str()); }
  std::string read() const {
    std::ostringstream out;
    out << std::ifstream(path).rdbuf();
    return out.str();
  }
  std::string path;
};

class Waiter final : public EngineSink {
 public:
  void on_event(EngineEvent event) override {
    std::lock_guard lock(mutex_);
    if (const auto* token = std::get_if<TokenOut>(&event))
      tokens_[token->id].push_back(token->token.id);
    if (const auto* done = std::get_if<PrefillDone>(&event)) first_[done->id] = done->first;
    if (const auto* end = std::get_if<Finished>(&event)) ends_.emplace(end->id, *end);
    wake_.notify_all();
  }
  Finished wait(std::uint64_t id) {
    std::unique_lock lock(mutex_);
    REQUIRE(wake_.wait_for(lock, std::chrono::seconds(60), [&] { return ends_.contains(id); }));
    return ends_.at(id);
  }
  std::vector<TokenId> tokens(std::uint64_t id) {
    std::lock_guard lock(mutex_);
    return tokens_[id];
  }
  SampledToken first(std::uint64_t id) {
    std::lock_guard lock(mutex_);
    return first_.at(id);
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::map<std::uint64_t, std::vector<TokenId>> tokens_;
  std::map<std::uint64_t, SampledToken> first_;
  std::map<std::uint64_t, Finished> ends_;
};

struct Worker {
  explicit Worker(const EngineOptions& options, std::uint32_t page_count = 40) {
    Result<std::unique_ptr<Engine>> made = create_engine(options, &metrics);
    INFO((made.ok() ? "" : made.status().message()));
    REQUIRE(made.ok());
    engine = std::move(*made);
    pool.resize(page_count * engine->info().layout.page_bytes());
    engine->start(pool.data(), page_count, &sink);
  }
  ~Worker() { engine->stop(); }
  Metrics metrics;
  Waiter sink;
  std::vector<std::byte> pool;
  std::unique_ptr<Engine> engine;
};

SequenceRequest make_request(std::uint64_t id, SequenceMode mode, PageIndex first_page,
                             PageIndex step) {
  SequenceRequest request;
  request.id = id;
  request.mode = mode;
  for (int i = 0; i < 77; ++i) request.prompt.push_back((i * 31 + 5) % 256);
  for (PageIndex p = 0; p < 5; ++p) request.pages.push_back(first_page + p * step);
  request.sampling.max_tokens = 40;
  request.sampling.temperature = 0.8F;
  request.sampling.seed = 11;
  request.sampling.ignore_eos = true;
  return request;
}

EngineOptions cpu_options(const std::string& model) {
  EngineOptions options;
  options.model_path = model;
  options.threads = 2;
  options.chunk = 48;
  options.chat_template = "chatml";
  return options;
}

EngineOptions mock_options(double us_per_token) {
  EngineOptions options;
  options.kind = EngineKind::kMock;
  options.shape = "tiny";
  options.mock_us_per_token = us_per_token;
  return options;
}

TEST_CASE("engine: prefill, copied pages and decode give the tokens and logits of one engine") {
  const TempFile model("model.gguf"), trace_one("one"), trace_decode("decode");
  test::TinyLlama tiny;
  tiny.make().builder.write(model.path);
  EngineOptions options = cpu_options(model.path);
  options.trace_logits = trace_one.path;
  Worker one(options);
  options.trace_logits.clear();
  options.chunk = 512;
  Worker prefill(options);
  options.trace_logits = trace_decode.path;
  options.threads = 1;
  Worker decode(options);
  CHECK(one.engine->info().fingerprint == decode.engine->info().fingerprint);

  REQUIRE(one.engine->submit(make_request(1, SequenceMode::kFull, 3, 2)));
  CHECK(one.sink.wait(1).reason == FinishReason::kLength);
  REQUIRE(prefill.engine->submit(make_request(2, SequenceMode::kPrefill, 0, 1)));
  CHECK(prefill.sink.wait(2).reason == FinishReason::kStop);
  // As RMA does it: the prompt's 3 pages, to other places.
  const std::uint64_t page = one.engine->info().layout.page_bytes();
  for (std::uint64_t p = 0; p < 3; ++p) {
    std::memcpy(decode.pool.data() + (20 + 3 * p) * page, prefill.pool.data() + p * page, page);
  }
  SequenceRequest request = make_request(3, SequenceMode::kDecode, 20, 3);
  request.first = prefill.sink.first(2);
  REQUIRE(decode.engine->submit(request));
  CHECK(decode.sink.wait(3).completion_tokens == 40);
  CHECK(decode.sink.tokens(3) == one.sink.tokens(1));
  const std::string trace = trace_one.read();
  CHECK(std::count(trace.begin(), trace.end(), '\n') == 39);
  CHECK(trace == trace_decode.read());
}

TEST_CASE("engine: info says what was loaded") {
  const TempFile model("Tiny-1B.Q4_1.gguf");
  test::TinyLlama tiny;
  tiny.make().builder.write(model.path);
  EngineOptions options = cpu_options(model.path);
  options.context = 500;
  options.cpu = "scalar";
  Metrics metrics;
  const auto engine = create_engine(options, &metrics);
  REQUIRE(engine.ok());
  const ModelInfo& info = (*engine)->info();
  CHECK_THAT(info.name, Catch::Matchers::EndsWith("Tiny-1B"));
  CHECK(info.layout == kv::KvLayout{2, 1, 32, 32, 2, "bf16"});
  CHECK(info.context == 500);
  CHECK(info.vocab == 270);
  CHECK(info.kernels == "scalar");
  CHECK(info.eos == 2);
  CHECK(info.weight_bytes > 0);
}

std::string refusal(const EngineOptions& options) {
  const auto engine = create_engine(options, nullptr);
  REQUIRE_FALSE(engine.ok());
  CHECK(engine.status().code() == StatusCode::kInvalidArgument);
  return engine.status().message();
}

TEST_CASE("engine: options that cannot be met are refused with what to do") {
  using Catch::Matchers::Contains;
  const TempFile model("model.gguf");
  test::TinyLlama tiny;
  tiny.make().builder.write(model.path);
  EngineOptions options = cpu_options(model.path);
  std::string what;
  SECTION("no such file") { options.model_path = "/nonexistent.gguf", what = "/nonexistent.gguf"; }
  SECTION("context") { options.context = 4096, what = "more than the model's 1024"; }
  SECTION("page size") { options.page_size = 48, what = "page size 48"; }
  SECTION("kernels") { options.cpu = "amx2", what = "available: scalar"; }
  SECTION("trace") { options.trace_logits = "/nonexistent/trace", what = "/nonexistent/trace"; }
  SECTION("chunk") { options.chunk = 0, what = "--chunk"; }
  CHECK_THAT(refusal(options), Contains(what));
}

TEST_CASE("engine: stop ends a step that would take minutes, and every request") {
  Worker worker(mock_options(1e6));
  REQUIRE(worker.engine->submit(make_request(1, SequenceMode::kFull, 0, 1)));
  REQUIRE(worker.engine->submit(make_request(2, SequenceMode::kFull, 5, 1)));
  worker.engine->stop();
  CHECK(worker.sink.wait(1).reason == FinishReason::kCancelled);
  CHECK(worker.sink.wait(2).reason == FinishReason::kCancelled);
  CHECK(worker.engine->queued() == 0);
  CHECK_FALSE(worker.engine->submit(make_request(3, SequenceMode::kFull, 0, 1)));
}

TEST_CASE("engine: the queue is bounded, and a cancelled request gives its place back") {
  EngineOptions options = mock_options(500);
  options.max_running = 1;
  Worker worker(options);
  std::uint64_t accepted = 0;
  while (worker.engine->submit(make_request(accepted, SequenceMode::kFull, 0, 1))) ++accepted;
  CHECK(accepted == 4 + 64);
  for (std::uint64_t id = 0; id < accepted; ++id) worker.engine->cancel(id);
  for (std::uint64_t id = 0; id < accepted; ++id) {
    CHECK(worker.sink.wait(id).reason == FinishReason::kCancelled);
  }
  CHECK(worker.engine->queued() == 0);
  CHECK(worker.engine->submit(make_request(0, SequenceMode::kFull, 0, 1)));
}

TEST_CASE("engine: the mock's compute time is tokens times the time of one") {
  Worker worker(mock_options(200));
  const auto begin = std::chrono::steady_clock::now();
  SequenceRequest request = make_request(1, SequenceMode::kPrefill, 0, 1);
  REQUIRE(worker.engine->submit(request));
  worker.sink.wait(1);
  // 77 tokens.
  CHECK(std::chrono::steady_clock::now() - begin >= std::chrono::microseconds(77 * 200));
}

TEST_CASE("engine: the mock renders chats as plain lines") {
  Worker worker(mock_options(0));
  const ChatTemplate& chat = worker.engine->chat_template();
  const std::vector<ChatMessage> messages = {{"user", "hi"}};
  CHECK(chat.render(messages, true).value() == "user: hi\nassistant: ");
  CHECK(chat.apply(messages, true).value() ==
        worker.engine->tokenizer().encode("user: hi\nassistant: "));
  CHECK_FALSE(chat.apply({}, true).ok());
}

}  // namespace
}  // namespace kvd::engine
