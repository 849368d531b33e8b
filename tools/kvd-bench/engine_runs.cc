#include "kvd-bench/engine_runs.h"

#include <algorithm>
#include <cstring>
#include <span>
#include <string_view>

#include "base/units.h"
#include "common/memory.h"
#include "engine/cpu/pack.h"
#include "engine/gguf.h"

namespace kvd::tools {
namespace {

using engine::Segment;

// Steps of a decode run: long enough to be timed, short beside the contexts.
constexpr std::uint32_t kStepsAlone = 128, kStepsBatched = 64;

std::uint32_t steps_for(std::uint32_t batch) { return batch == 1 ? kStepsAlone : kStepsBatched; }

std::uint32_t longest(const std::vector<std::uint32_t>& values) {
  return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

Result<ModelCost> cost_of(const engine::Gguf& file, const kv::KvLayout& layout) {
  ModelCost cost;
  const bool tied = file.find("output.weight") == nullptr;
  for (const engine::Tensor& tensor : file.tensors()) {
    if (tensor.dims.size() != 2) continue;
    const auto matrix = engine::cpu::plan_matrix(tensor);
    if (!matrix.ok()) return matrix.status();
    const bool embedding = tensor.name == "token_embd.weight";
    if (!embedding || tied) cost.step_bytes += engine::cpu::packed_bytes(*matrix);
    if (!embedding && tensor.name != "output.weight") {
      cost.linear_macs += tensor.columns() * tensor.rows();
    }
  }
  cost.kv_token_bytes = layout.page_bytes() / layout.page_size;
  return cost;
}

SpeedFigure speed(const Samples& samples, double tokens) {
  std::vector<double> rates;
  for (const double seconds : samples.seconds) rates.push_back(tokens / seconds);
  SpeedFigure figure;
  figure.tok_per_s = spread_of(rates);
  figure.rejected = samples.rejected;
  figure.disturbed = samples.disturbed;
  return figure;
}

}  // namespace

std::vector<double> shares_of_memory(const std::vector<double>& rates,
                                     const std::vector<double>& memory) {
  std::vector<double> shares;
  for (std::size_t i = 1; i < rates.size(); ++i) {
    shares.push_back(rates[i] / std::max(memory[i], memory[i + 1]));
  }
  return shares;
}

std::string SpeedFigure::name() const {
  if (kind == Kind::kDecode) {
    return "decode " + std::to_string(batch) + " @" + std::to_string(context);
  }
  return (kind == Kind::kMatrices ? "matrices " : "prefill ") + std::to_string(tokens);
}

Result<std::unique_ptr<EngineRuns>> EngineRuns::open(const EngineBenchOptions& options) {
  Result<engine::Gguf> file = engine::Gguf::open(options.model);
  if (!file.ok()) return file.status();
  auto model = engine::cpu::make_llama_model(
      *file, {options.page_size, options.threads, options.pin, options.cpu, false});
  if (!model.ok()) return model.status();
  std::unique_ptr<EngineRuns> runs(new EngineRuns);
  runs->model_ = std::move(*model);
  runs->chunk_ = options.chunk;
  Result<ModelCost> cost = cost_of(*file, runs->model_->layout());
  if (!cost.ok()) return cost.status();
  runs->cost_ = *cost;
  KVD_RETURN_IF_ERROR(runs->allocate(options));
  return runs;
}

Status EngineRuns::allocate(const EngineBenchOptions& options) {
  const std::uint32_t context = longest(options.contexts), prompt = longest(options.prompts);
  const std::uint32_t generated = context + (options.batches.empty() ? 0 : kStepsAlone);
  if (std::max(generated, prompt) > model_->context()) {
    return invalid_argument("the model's context is " + std::to_string(model_->context()) +
                            " tokens; give smaller --prompts or --contexts");
  }
  const kv::KvLayout& layout = model_->layout();
  const std::uint32_t sequences = std::max(1U, longest(options.batches));
  pages_each_ = layout.pages_for(std::max(generated, prompt));
  const std::uint64_t count = std::uint64_t{pages_each_} * sequences;
  const std::uint64_t bytes = count * layout.page_bytes();
  std::uint64_t free = available_memory();
  if (!options.batches.empty()) free -= std::min<std::uint64_t>(free, MemoryReader::kBytes);
  if (bytes > free / 10 * 9) {
    return {StatusCode::kResourceExhausted,
            "the KV of " + std::to_string(sequences) + " sequences takes " + format_bytes(bytes) +
                ", the host has " + format_bytes(free) +
                "; give smaller --batches, --contexts or --prompts"};
  }
  Result<device::HostBuffer> pool = device::HostBuffer::allocate(bytes);
  if (!pool.ok()) return pool.status();
  pool_ = std::move(*pool);
  model_->adopt_thread();
  model_->attach_pool(pool_.data(), static_cast<std::uint32_t>(count));
  // Neighbouring pages of a sequence lie apart, as in a pool that has been in use.
  for (std::uint32_t s = 0; s < sequences; ++s) {
    for (std::uint32_t p = 0; p < pages_each_; ++p) pages_.push_back(p * sequences + s);
  }
  const std::uint32_t longest_prompt = std::max(context, prompt);
  for (std::uint32_t i = 0; i < longest_prompt; ++i) prompt_.push_back(token(i));
  return {};
}

TokenId EngineRuns::token(std::uint64_t number) const {
  return static_cast<TokenId>((number * 7919 + 13) % model_->vocab());
}

std::span<const PageIndex> EngineRuns::pages(std::uint32_t sequence) const {
  return std::span(pages_).subspan(std::size_t{sequence} * pages_each_, pages_each_);
}

// A prompt as the scheduler cuts it, from its first token on.
void EngineRuns::compute(std::uint32_t sequence, std::uint32_t tokens) {
  for (std::uint32_t at = 0; at < tokens; at += chunk_) {
    const std::uint32_t count = std::min(chunk_, tokens - at);
    const Segment segment{{prompt_.data() + at, count}, at,       pages(sequence),
                          at + count == tokens,         sequence, {}};
    std::span<const float> logits;
    model_->forward({&segment, 1}, nullptr, &logits);
  }
}

void EngineRuns::decode_step(std::uint32_t batch, std::uint32_t position, std::uint32_t step) {
  std::vector<TokenId> tokens(batch);
  std::vector<Segment> segments;
  for (std::uint32_t s = 0; s < batch; ++s) {
    tokens[s] = token(std::uint64_t{step} * 101 + s * 7);
    segments.push_back({{&tokens[s], 1}, position, pages(s), true, s, {}});
  }
  std::span<const float> logits;
  model_->forward(segments, nullptr, &logits);
}

SpeedFigure EngineRuns::prefill(std::uint32_t tokens, const SampleLimits& limits) {
  SpeedFigure figure = speed(sample(limits, nullptr, [&] { compute(0, tokens); }), tokens);
  figure.tokens = tokens;
  computed_ = std::max(computed_, tokens);
  return figure;
}

SpeedFigure EngineRuns::matrices(const SampleLimits& limits) {
  SpeedFigure figure =
      speed(sample(limits, nullptr, [&] { model_->multiply_layers(chunk_); }), chunk_);
  figure.kind = SpeedFigure::Kind::kMatrices;
  figure.tokens = chunk_;
  return figure;
}

SpeedFigure EngineRuns::decode(std::uint32_t batch, std::uint32_t context,
                               const SampleLimits& limits, MemoryReader* memory) {
  // One prompt is computed; the other sequences get copies of its pages, each its own.
  if (computed_ < context) {
    compute(0, context);
    computed_ = context;
  }
  const std::uint64_t page_bytes = model_->layout().page_bytes();
  const std::uint32_t filled = model_->layout().pages_for(context);
  for (std::uint32_t s = 1; s < batch; ++s) {
    for (std::uint32_t p = 0; p < filled; ++p) {
      std::memcpy(pool_.data() + pages(s)[p] * page_bytes, pool_.data() + pages(0)[p] * page_bytes,
                  page_bytes);
    }
  }
  const std::uint32_t steps = steps_for(batch);
  const double bytes = cost_.decode_bytes(batch, context, steps) * steps;
  const SteadyClock clock;
  std::vector<double> memory_rates, rates;  // memory's before each run; of the runs
  const auto read = [&] { memory_rates.push_back(memory->bytes_per_s()); };
  const auto run = [&] {
    const TimePoint begin = clock.now();
    for (std::uint32_t i = 0; i < steps; ++i) decode_step(batch, context + i, i);
    rates.push_back(bytes / (static_cast<double>((clock.now() - begin).count()) * 1e-9));
  };
  SpeedFigure figure = speed(sample(limits, read, run), static_cast<double>(steps) * batch);
  read();
  figure.memory_bytes_per_s = spread_of(memory_rates);
  figure.share_of_memory = spread_of(shares_of_memory(rates, memory_rates));
  // The steps wrote over what the prompt had behind the context.
  computed_ = std::min(computed_, context);
  figure.kind = SpeedFigure::Kind::kDecode;
  figure.batch = batch;
  figure.context = context;
  figure.steps = steps;
  return figure;
}

}  // namespace kvd::tools
