// A long prompt must not stall running streams: eight of them generate while a prompt of 4,000
// tokens arrives. Between two of its chunks each stream gets a token, and no stream waits longer
// for one than 1.5 times what the prompt's longest chunk takes alone.
//   kvd_stall_engine --model FILE
// The second is a matter of time, which other processes take too: the best of three rounds counts.
// KVD_CPU chooses the kernels. Exit: 0 held, 1 not, 2 usage, 77 no file, or scalar kernels.
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <iostream>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "device/host_buffer.h"
#include "engine/engine.h"

namespace {

namespace engine = kvd::engine;
using kvd::TimePoint;

constexpr std::uint64_t kPrompt = 100;  // ids below are streams
constexpr std::uint32_t kStreams = 8, kPromptTokens = 4000, kStreamPrompt = 16;
constexpr std::uint32_t kMostTokens = 200;  // of a stream: more than the prompt takes
constexpr std::uint32_t kSettled = 8;       // tokens of each stream before the prompt comes
constexpr int kRounds = 3;
constexpr double kAllowed = 1.5;

// When each stream got a token and when each chunk of the prompt was computed.
class Times final : public engine::EngineSink {
 public:
  void on_event(engine::EngineEvent event) override {
    const std::lock_guard lock(mutex_);
    const TimePoint now = clock_.now();
    if (const auto* token = std::get_if<engine::TokenOut>(&event)) {
      tokens_[token->id].push_back(now);
    } else if (std::get_if<engine::LayersReady>(&event) != nullptr) {
      chunks_.push_back(now);
    } else if (const auto* finished = std::get_if<engine::Finished>(&event)) {
      ++finished_[finished->id];
    }
    changed_.notify_all();
  }
  // False after two minutes.
  template <typename Condition>
  bool wait(const Condition& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::minutes(2), [&] { return condition(*this); });
  }
  bool settled() const {
    for (std::uint64_t id = 0; id < kStreams; ++id) {
      const auto found = tokens_.find(id);
      if (found == tokens_.end() || found->second.size() < kSettled) return false;
    }
    return true;
  }
  bool ended(std::uint64_t id) const { return finished_.contains(id); }
  void clear() {
    const std::lock_guard lock(mutex_);
    tokens_.clear();
    chunks_.clear();
    finished_.clear();
  }
  // Only when nothing runs.
  const std::map<std::uint64_t, std::vector<TimePoint>>& tokens() const { return tokens_; }
  const std::vector<TimePoint>& chunks() const { return chunks_; }
  TimePoint now() const { return clock_.now(); }

 private:
  const kvd::SteadyClock clock_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::uint64_t, std::vector<TimePoint>> tokens_;
  std::vector<TimePoint> chunks_;
  std::map<std::uint64_t, int> finished_;
};

class Bench {
 public:
  Bench(engine::Engine* model, Times* times) : model_(model), times_(times) {}

  // One round; sets `ratio` to the longest gap by the longest chunk alone. False: a stream got no
  // token between two chunks, or nothing ended.
  bool round(double* ratio) {
    times_->clear();
    const TimePoint begin = times_->now();
    submit_prompt();
    if (!times_->wait([](Times& t) { return t.ended(kPrompt); })) return say("no end alone");
    const double chunk_ms = longest_ms(times_->chunks(), begin);

    times_->clear();
    for (std::uint64_t id = 0; id < kStreams; ++id) submit_stream(id);
    if (!times_->wait([](Times& t) { return t.settled(); })) return say("no tokens");
    submit_prompt();
    if (!times_->wait([](Times& t) { return t.ended(kPrompt); })) return say("no end beside");
    for (std::uint64_t id = 0; id < kStreams; ++id) model_->cancel(id);
    const auto all = [](Times& t) {
      for (std::uint64_t id = 0; id < kStreams; ++id) {
        if (!t.ended(id)) return false;
      }
      return true;
    };
    if (!times_->wait(all)) return say("a stream did not end");
    if (!a_token_a_chunk()) return false;
    double gap_ms = 0;
    for (const auto& [id, at] : times_->tokens()) {
      if (id != kPrompt) gap_ms = std::max(gap_ms, longest_ms(at, at.front()));
    }
    std::cout << "longest chunk alone " << chunk_ms << " ms, longest gap " << gap_ms << " ms\n";
    *ratio = gap_ms / chunk_ms;
    return true;
  }

 private:
  static bool say(const char* what) {
    std::cout << what << "\n";
    return false;
  }
  static double longest_ms(const std::vector<TimePoint>& at, TimePoint begin) {
    double longest = 0;
    for (const TimePoint t : at) {
      longest = std::max(longest, kvd::to_ms(t - begin));
      begin = t;
    }
    return longest;
  }
  bool a_token_a_chunk() const {
    const std::vector<TimePoint>& chunks = times_->chunks();
    if (chunks.size() < 4) return say("the prompt came in fewer than four chunks");
    for (const auto& [id, at] : times_->tokens()) {
      for (std::size_t c = 1; id != kPrompt && c < chunks.size(); ++c) {
        const auto between = [&](TimePoint t) { return t > chunks[c - 1] && t <= chunks[c]; };
        // The step of chunk c delivers its tokens after the last layer: right behind chunks[c].
        if (std::none_of(at.begin(), at.end(), between)) {
          std::cout << "stream " << id << " got no token before chunk " << c << "\n";
          return false;
        }
      }
    }
    return true;
  }
  engine::SequenceRequest request(std::uint64_t id, std::uint32_t prompt, std::uint32_t output,
                                  std::uint32_t first_page) const {
    engine::SequenceRequest out;
    out.id = id;
    for (std::uint32_t i = 0; i < prompt; ++i) {
      out.prompt.push_back(static_cast<kvd::TokenId>((i * 7919 + id * 31 + 13) % 40000 + 100));
    }
    out.sampling.max_tokens = output;
    out.sampling.temperature = 0;
    out.sampling.ignore_eos = true;
    const std::uint32_t pages = model_->info().layout.pages_for(prompt + output);
    for (std::uint32_t p = 0; p < pages; ++p) out.pages.push_back(first_page + p);
    return out;
  }
  void submit_prompt() {
    auto prompt = request(kPrompt, kPromptTokens, 1, 0);
    prompt.mode = engine::SequenceMode::kPrefill;
    prompt.groups = {{0, model_->info().layout.layers}};
    model_->submit(std::move(prompt));
  }
  void submit_stream(std::uint64_t id) {
    const std::uint32_t each = model_->info().layout.pages_for(kStreamPrompt + kMostTokens);
    const std::uint32_t before = model_->info().layout.pages_for(kPromptTokens + 1);
    model_->submit(
        request(id, kStreamPrompt, kMostTokens, before + static_cast<std::uint32_t>(id) * each));
  }

  engine::Engine* model_;
  Times* times_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 || std::string_view(argv[1]) != "--model") {
    std::cerr << "usage: kvd_stall_engine --model FILE\n";
    return 2;
  }
  const char* cpu = std::getenv("KVD_CPU");
  if (::access(argv[2], R_OK) != 0) return std::cout << "no model file\n", 77;
  if (cpu != nullptr && std::string_view(cpu) == "scalar") {
    return std::cout << "scalar kernels: too slow for a matter of time\n", 77;
  }
  engine::EngineOptions options;
  options.model_path = argv[2];
  if (cpu != nullptr) options.cpu = cpu;
  auto model = engine::create_engine(options, nullptr);
  if (!model.ok()) return std::cerr << model.status().message() << "\n", 2;
  const auto& layout = (*model)->info().layout;
  const std::uint32_t pages = layout.pages_for(kPromptTokens + 1) +
                              kStreams * layout.pages_for(kStreamPrompt + kMostTokens);
  auto pool = kvd::device::HostBuffer::allocate(pages * layout.page_bytes());
  if (!pool.ok()) return std::cerr << pool.status().message() << "\n", 2;
  Times times;
  (*model)->start(pool->data(), pages, &times);
  Bench bench(model->get(), &times);
  int result = 1;
  for (int i = 0; i < kRounds && result != 0; ++i) {
    double ratio = 0;
    if (!bench.round(&ratio)) break;
    std::cout << "longest gap is " << ratio << " of the longest chunk (at most " << kAllowed
              << ")\n";
    if (ratio <= kAllowed) result = 0;
  }
  (*model)->stop();
  return result;
}
