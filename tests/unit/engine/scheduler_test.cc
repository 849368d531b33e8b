// The scheduler, one step at a time on the mock model.
#include "engine/scheduler.h"

#include <catch2/catch.hpp>
#include <map>
#include <string>
#include <vector>

#include "engine/mock/mock_model.h"

namespace kvd::engine {
namespace {

struct Recorder final : EngineSink {
  void on_event(EngineEvent event) override { events.push_back(std::move(event)); }

  template <typename T>
  std::vector<T> of(std::uint64_t id) const {
    std::vector<T> out;
    for (const EngineEvent& event : events) {
      const T* found = std::get_if<T>(&event);
      if (found != nullptr && found->id == id) out.push_back(*found);
    }
    return out;
  }
  // Everything that was given out as text, the end included.
  std::string text(std::uint64_t id) const {
    std::string text;
    for (const TokenOut& token : of<TokenOut>(id)) text += token.text;
    for (const Finished& finished : of<Finished>(id)) text += finished.text;
    return text;
  }
  std::vector<TokenId> tokens(std::uint64_t id) const {
    std::vector<TokenId> ids;
    for (const TokenOut& token : of<TokenOut>(id)) ids.push_back(token.token.id);
    return ids;
  }
  // The one and last event of the request.
  Finished end(std::uint64_t id) const {
    const std::vector<Finished> all = of<Finished>(id);
    REQUIRE(all.size() == 1);
    const auto id_of = [](const EngineEvent& e) {
      return std::visit([](const auto& v) { return v.id; }, e);
    };
    for (auto event = events.rbegin(); event != events.rend(); ++event) {
      if (id_of(*event) != id) continue;
      CHECK(std::holds_alternative<Finished>(*event));
      break;
    }
    return all[0];
  }
  std::vector<EngineEvent> events;
};

struct Rig {
  explicit Rig(SchedulerOptions options = {})
      : shape(find_mock_shape("tiny", 32).value()),
        model(shape, 0),
        tokenizer(make_byte_tokenizer()),
        pool(kPages * shape.layout.page_bytes()) {
    options.context = 4096;
    options.page_count = kPages;
    model.attach_pool(pool.data(), kPages);
    scheduler =
        std::make_unique<Scheduler>(options, &model, tokenizer.get(), &sink, nullptr, nullptr);
  }
  // Pages 10 * id ..: requests do not share any.
  SequenceRequest request(std::uint64_t id, std::size_t prompt, std::uint32_t max_tokens,
                          SequenceMode mode = SequenceMode::kFull) const {
    SequenceRequest out;
    out.id = id;
    out.mode = mode;
    for (std::size_t i = 0; i < prompt; ++i)
      out.prompt.push_back(static_cast<TokenId>('a' + (i + id) % 26));
    out.sampling.max_tokens = max_tokens;
    out.sampling.temperature = 0;
    for (PageIndex p = 0; p < 10; ++p) out.pages.push_back(static_cast<PageIndex>(id * 10 + 9 - p));
    if (mode == SequenceMode::kPrefill) out.groups = {{0, 1}, {1, 2}};
    return out;
  }
  void add(SequenceRequest r) { scheduler->add(std::move(r), TimePoint{0}); }
  void run(int most = 10000) {
    for (int i = 0; i < most && !scheduler->idle(); ++i) scheduler->step();
    REQUIRE(scheduler->idle());
  }

  static constexpr PageIndex kPages = 120;
  MockShape shape;
  MockModel model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::vector<std::byte> pool;
  Recorder sink;
  std::unique_ptr<Scheduler> scheduler;
};

TEST_CASE("scheduler: a request gets its tokens, then the end, and equal prompts give equal text") {
  Rig rig;
  rig.add(rig.request(1, 40, 12));
  SequenceRequest again = rig.request(2, 40, 12);
  again.prompt = rig.request(1, 40, 12).prompt;
  rig.add(again);
  rig.run();
  const Finished end = rig.sink.end(1);
  CHECK(end.reason == FinishReason::kLength);
  CHECK(end.completion_tokens == 12);
  CHECK(rig.sink.tokens(1).size() == 12);
  CHECK(rig.sink.text(1).size() == 12);
  CHECK(rig.sink.text(1) == rig.sink.text(2));
  CHECK(rig.sink.of<PrefillDone>(1).size() == 1);
  CHECK(rig.sink.of<PrefillDone>(1)[0].first.id == rig.sink.tokens(1)[0]);
}

TEST_CASE("scheduler: each chunk and layer group of a prompt is reported once, in order") {
  Rig rig(SchedulerOptions{.chunk = 64});
  rig.add(rig.request(1, 150, 1, SequenceMode::kPrefill));
  rig.run();
  std::vector<std::array<std::uint32_t, 4>> seen;
  for (const LayersReady& ready : rig.sink.of<LayersReady>(1)) {
    seen.push_back({ready.group.begin, ready.group.end, ready.token_begin, ready.token_end});
  }
  CHECK(seen == std::vector<std::array<std::uint32_t, 4>>{{0, 1, 0, 64},
                                                          {1, 2, 0, 64},
                                                          {0, 1, 64, 128},
                                                          {1, 2, 64, 128},
                                                          {0, 1, 128, 150},
                                                          {1, 2, 128, 150}});
  CHECK(rig.sink.of<PrefillDone>(1).size() == 1);
  CHECK(rig.sink.of<TokenOut>(1).empty());
  CHECK(rig.sink.end(1).reason == FinishReason::kStop);
  CHECK(rig.sink.end(1).completion_tokens == 1);
}

TEST_CASE("scheduler: running streams get a token each step while a long prompt is computed") {
  Rig rig(SchedulerOptions{.chunk = 32});
  rig.add(rig.request(1, 5, 20));
  rig.scheduler->step();
  rig.add(rig.request(2, 200, 1));
  for (std::size_t step = 1; step <= 6; ++step) {
    rig.scheduler->step();
    CHECK(rig.sink.tokens(1).size() == 1 + step);
    CHECK(rig.sink.tokens(2).empty());
  }
  rig.scheduler->step();  // 200 tokens are 7 chunks of 32
  CHECK(rig.sink.tokens(2).size() == 1);
}

TEST_CASE("scheduler: the chunk is one budget for all prompts, first come first served") {
  Rig rig(SchedulerOptions{.chunk = 64});
  for (std::uint64_t id : {1U, 2U, 3U}) rig.add(rig.request(id, 30, 1, SequenceMode::kPrefill));
  rig.scheduler->step();
  CHECK(rig.sink.of<PrefillDone>(1).size() == 1);
  CHECK(rig.sink.of<PrefillDone>(2).size() == 1);
  REQUIRE(rig.sink.of<LayersReady>(3).size() == 2);
  CHECK(rig.sink.of<LayersReady>(3)[0].token_end == 4);
  rig.run();
  CHECK(rig.sink.of<PrefillDone>(3).size() == 1);
}

TEST_CASE("scheduler: no more than max_running sequences are in a step, all get their turn") {
  Rig rig(SchedulerOptions{.max_running = 2});
  for (std::uint64_t id = 0; id < 5; ++id) rig.add(rig.request(id, 8, 3));
  rig.scheduler->step();
  CHECK(rig.scheduler->running() == 2);
  rig.run();
  for (std::uint64_t id = 0; id < 5; ++id) CHECK(rig.sink.tokens(id).size() == 3);
}

TEST_CASE("scheduler: decode on another worker's pages goes on as one process would") {
  Rig one;
  one.add(one.request(1, 70, 30));
  one.run();
  Rig prefill, decode;
  prefill.add(prefill.request(1, 70, 30, SequenceMode::kPrefill));
  prefill.run();
  decode.pool = prefill.pool;
  decode.model.attach_pool(decode.pool.data(), Rig::kPages);
  SequenceRequest request = decode.request(1, 70, 30, SequenceMode::kDecode);
  request.first = prefill.sink.of<PrefillDone>(1).at(0).first;
  decode.add(request);
  decode.run();
  CHECK(decode.sink.tokens(1) == one.sink.tokens(1));
  CHECK(decode.sink.text(1) == one.sink.text(1));
  CHECK(decode.sink.end(1).completion_tokens == 30);
  CHECK(decode.sink.of<PrefillDone>(1).empty());
}

TEST_CASE("scheduler: prefill's first token can be the last, and is not computed again") {
  Rig rig;
  SequenceRequest request = rig.request(1, 10, 5, SequenceMode::kDecode);
  request.first.id = 'x';
  FinishReason reason = FinishReason::kStop;
  std::string text;
  SECTION("max_tokens is 1") {
    request.sampling.max_tokens = 1, reason = FinishReason::kLength, text = "x";
  }
  SECTION("it is the end token") { request.first.id = 256; }
  SECTION("it is a stop token") { request.sampling.stop_token_ids = {'x'}; }
  SECTION("it completes a stop string") { request.sampling.stop = {"x"}; }
  // The pages hold nothing: a step would end in kCorrupted.
  rig.add(request);
  rig.scheduler->step();
  CHECK(rig.sink.end(1).reason == reason);
  CHECK(rig.sink.end(1).completion_tokens == 1);
  CHECK(rig.sink.tokens(1) == std::vector<TokenId>{request.first.id});
  CHECK(rig.sink.text(1) == text);
  CHECK(rig.scheduler->idle());
}

TEST_CASE("scheduler: ignore_eos takes the end token for any other") {
  Rig rig;
  // Prefill so that the pages are as decode expects them.
  rig.add(rig.request(1, 10, 5, SequenceMode::kPrefill));
  rig.run();
  rig.sink.events.clear();
  SequenceRequest request = rig.request(1, 10, 5, SequenceMode::kDecode);
  request.first.id = 256;
  request.sampling.ignore_eos = true;
  rig.add(request);
  rig.run();
  CHECK(rig.sink.end(1).reason == FinishReason::kLength);
  CHECK(rig.sink.tokens(1).size() == 5);
  CHECK(rig.sink.text(1).size() == 4);
}

TEST_CASE("scheduler: a stop string ends the text before it, over token borders") {
  Rig rig;
  rig.add(rig.request(1, 10, 30));
  rig.run();
  const std::string whole = rig.sink.text(1);
  rig.sink.events.clear();
  SequenceRequest request = rig.request(1, 10, 30);
  request.sampling.stop = {whole.substr(12, 3), "never"};
  rig.add(request);
  rig.run();
  const std::size_t cut = whole.find(whole.substr(12, 3));
  CHECK(rig.sink.end(1).reason == FinishReason::kStop);
  CHECK(rig.sink.text(1) == whole.substr(0, cut));
  CHECK(rig.sink.end(1).completion_tokens == cut + 3);
}

TEST_CASE("scheduler: what might have become a stop string is text when the limit comes first") {
  Rig rig;
  rig.add(rig.request(1, 10, 8));
  rig.run();
  const std::string whole = rig.sink.text(1);
  rig.sink.events.clear();
  SequenceRequest request = rig.request(1, 10, 8);
  request.sampling.stop = {whole.substr(6, 2) + "more"};
  rig.add(request);
  rig.run();
  CHECK(rig.sink.end(1).reason == FinishReason::kLength);
  CHECK(rig.sink.end(1).text.size() >= 2);
  CHECK(rig.sink.text(1) == whole);
}

TEST_CASE("scheduler: a cancelled request ends once, wherever it is, and the others go on") {
  Rig rig(SchedulerOptions{.max_running = 2, .chunk = 32});
  rig.add(rig.request(1, 100, 5));
  rig.add(rig.request(2, 8, 6));
  rig.add(rig.request(3, 8, 4));
  rig.scheduler->step();
  rig.scheduler->cancel(3);   // waits
  rig.scheduler->cancel(1);   // between two chunks
  rig.scheduler->cancel(99);  // unknown
  CHECK(rig.sink.end(1).reason == FinishReason::kCancelled);
  CHECK(rig.sink.end(1).completion_tokens == 0);
  CHECK(rig.sink.end(3).reason == FinishReason::kCancelled);
  const std::vector<std::byte> before(rig.pool.begin() + 10 * 8192, rig.pool.begin() + 20 * 8192);
  rig.run();
  CHECK(rig.shape.layout.page_bytes() == 8192);
  CHECK(std::equal(before.begin(), before.end(), rig.pool.begin() + 10 * 8192));
  CHECK(rig.sink.tokens(2).size() == 6);
  rig.scheduler->cancel(2);
  CHECK(rig.sink.end(2).reason == FinishReason::kLength);
}

TEST_CASE("scheduler: a request that cannot run is refused with the reason") {
  Rig rig;
  SequenceRequest request = rig.request(1, 10, 5);
  std::string what;
  SECTION("empty prompt") { request.prompt.clear(), what = "empty"; }
  SECTION("too long for the context") { request.sampling.max_tokens = 4090, what = "context"; }
  SECTION("unknown token") { request.prompt[3] = 257, what = "vocabulary"; }
  SECTION("negative token") { request.prompt[3] = -1, what = "vocabulary"; }
  SECTION("too few pages") { request.pages.resize(0), what = "pages"; }
  SECTION("a page outside the pool") { request.pages[0] = Rig::kPages, what = "outside"; }
  SECTION("nothing to generate") { request.sampling.max_tokens = 0, what = "max_tokens"; }
  SECTION("a first token that does not exist") {
    request.mode = SequenceMode::kDecode, request.first.id = -7, what = "first token";
  }
  rig.add(request);
  CHECK(rig.sink.end(1).reason == FinishReason::kError);
  CHECK_THAT(rig.sink.end(1).status.message(), Catch::Matchers::Contains(what));
  CHECK(rig.scheduler->idle());
}

TEST_CASE("scheduler: the last token's KV needs no page") {
  Rig rig;
  SequenceRequest request = rig.request(1, 30, 3);
  request.pages.resize(1);  // 30 + 3 tokens, of which 32 are kept
  rig.add(request);
  rig.run();
  CHECK(rig.sink.end(1).reason == FinishReason::kLength);
  CHECK(rig.sink.tokens(1).size() == 3);
}

TEST_CASE("mock: one wrong byte in a page ends the sequence as corrupted, and no other") {
  Rig rig;
  rig.add(rig.request(1, 64, 200));
  rig.add(rig.request(2, 64, 200));
  rig.scheduler->step();
  rig.scheduler->step();
  const std::size_t at = GENERATE(0U, 4097U, 8191U);
  // The first page of request 1 is page 19.
  rig.pool[19 * 8192 + at] ^= std::byte{1};
  rig.run();
  const Finished end = rig.sink.end(1);
  CHECK(end.reason == FinishReason::kError);
  CHECK(end.status.code() == StatusCode::kCorrupted);
  CHECK_THAT(end.status.message(), Catch::Matchers::Contains("page 19"));
  CHECK(rig.sink.end(2).reason == FinishReason::kLength);
  CHECK(rig.sink.tokens(2).size() == 200);
}

TEST_CASE("mock: the pattern tells apart prompts, layers, K from V, and positions") {
  Rig rig;
  rig.add(rig.request(1, 64, 1, SequenceMode::kPrefill));
  rig.add(rig.request(2, 64, 1, SequenceMode::kPrefill));
  rig.run();
  std::map<std::string, int> lines;
  for (const PageIndex page : {19U, 18U, 29U, 28U}) {
    for (std::size_t at = 0; at < 8192; at += 64) {
      lines[std::string(reinterpret_cast<const char*>(&rig.pool[page * 8192 + at]), 64)]++;
    }
  }
  CHECK(lines.size() == 4 * 128);
}

TEST_CASE("mock: shapes are those of the models they are named after") {
  CHECK(find_mock_shape("smollm2-135m", 32).value().layout.page_bytes() == 720U << 10);
  CHECK(find_mock_shape("llama-3.1-8b", 32).value().layout.page_bytes() == 4U << 20);
  CHECK(find_mock_shape("llama-3.1-70b", 32).value().layout.layers == 80);
  CHECK(find_mock_shape("qwen3-32b", 64).value().layout.page_size == 64);
  const auto unknown = find_mock_shape("gpt-5", 32);
  REQUIRE_FALSE(unknown.ok());
  CHECK_THAT(unknown.status().message(), Catch::Matchers::Contains("smollm2-135m"));
  CHECK_FALSE(find_mock_shape("tiny", 33).ok());
}

}  // namespace
}  // namespace kvd::engine
