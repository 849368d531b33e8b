#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/rng.h"

namespace kvd::engine {
namespace {

constexpr float kLeast = std::numeric_limits<float>::lowest();
constexpr float kMost = std::numeric_limits<float>::max();
// What OpenAI's API gives for a token that has no probability; -inf is no JSON.
constexpr float kLeastLogprob = -9999.0F;

// A broken model must not break the choice: NaN is the least likely.
float finite(float x) { return std::isnan(x) ? kLeast : std::clamp(x, kLeast, kMost); }

// e^x for x <= 0, 2e-7 relative; 0 below -87. libm's differs from host to host in the last bit, and
// a draw must not. Straight-line, so that the compiler can use vectors.
inline float exp_negative(float x) {
  const float clamped = x > -87.0F ? x : -87.0F;  // NaN too
  const float n = static_cast<float>(static_cast<std::int32_t>(clamped * 1.44269504F - 0.5F));
  const float r = (clamped - n * 0.693359375F) + n * 2.12194440e-4F;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const auto bits = static_cast<std::uint32_t>((static_cast<std::int32_t>(n) + 127) << 23);
  return x > -87.0F ? p * std::bit_cast<float>(bits) : 0.0F;
}

struct Entry {
  float value;  // logit or weight
  TokenId id;
};
// Better first; the lower id on a tie, so that the order is total.
bool better(const Entry& a, const Entry& b) {
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

// The k best of `entries`, best first, at its beginning; k is at most its size.
void select_best(std::vector<Entry>* entries, std::size_t k) {
  const auto middle = entries->begin() + static_cast<std::ptrdiff_t>(k);
  if (k < entries->size()) std::nth_element(entries->begin(), middle, entries->end(), better);
  std::sort(entries->begin(), middle, better);
}

// The k best logits, best first. For few of many: one pass with a heap of k.
std::vector<Entry> best_logits(std::span<const float> logits, std::size_t k) {
  k = std::min(k, logits.size());
  std::vector<Entry> heap;
  if (k == 0) return heap;
  heap.reserve(k);
  constexpr std::size_t kHeapAtMost = 256;
  const std::size_t first = k <= kHeapAtMost ? k : logits.size();
  heap.reserve(first);
  for (std::size_t i = 0; i < first; ++i) {
    heap.push_back({finite(logits[i]), static_cast<TokenId>(i)});
  }
  if (first == logits.size()) {
    select_best(&heap, k);
    heap.resize(k);
    return heap;
  }
  std::make_heap(heap.begin(), heap.end(), better);  // the worst is in front
  for (std::size_t i = first; i < logits.size(); ++i) {
    // Not `<=`: a NaN is never better either. A tie keeps the lower id, which came first.
    if (!(logits[i] > heap.front().value)) continue;
    std::pop_heap(heap.begin(), heap.end(), better);
    heap.back() = {finite(logits[i]), static_cast<TokenId>(i)};
    std::push_heap(heap.begin(), heap.end(), better);
  }
  std::sort_heap(heap.begin(), heap.end(), better);
  return heap;
}

TokenId argmax(std::span<const float> logits) {
  std::size_t best = 0;
  float value = finite(logits[0]);
  for (std::size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > value) {
      value = logits[i];
      best = i;
    }
  }
  return static_cast<TokenId>(best);
}

// exp((logit - most) / temperature) into `weights`; their sum.
double exponentials(std::span<const float> logits, float most, float scale, float* weights) {
  constexpr std::size_t kBlock = 64;
  double total = 0;
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) {
    std::array<float, kBlock> x;
    std::array<float, kBlock> sums{};
    const std::size_t count = std::min(kBlock, logits.size() - begin);
    for (std::size_t i = 0; i < count; ++i) x[i] = (finite(logits[begin + i]) - most) * scale;
    for (std::size_t i = count; i < kBlock; ++i) x[i] = -100.0F;
    for (std::size_t i = 0; i < kBlock; ++i) sums[i] = exp_negative(x[i]);
    if (weights != nullptr) std::copy_n(sums.begin(), count, weights + begin);
    float sum = 0;
    for (float s : sums) sum += s;
    total += static_cast<double>(sum);
  }
  return total;
}

void penalise(std::span<float> logits, float penalty, std::span<const TokenId> history) {
  std::vector<bool> seen(logits.size(), false);
  for (TokenId id : history) {
    const auto i = static_cast<std::size_t>(id);
    if (id < 0 || i >= logits.size() || seen[i]) continue;
    seen[i] = true;
    const float x = finite(logits[i]);
    logits[i] = x > 0 ? x / penalty : x * penalty;
  }
}

// Cuts `entries` (weights) to the smallest set, best first, whose sum is `enough`.
void keep_nucleus(std::vector<Entry>* entries, double enough) {
  std::size_t sorted = 0;
  double sum = 0;
  for (std::size_t want = 64; sorted < entries->size(); want *= 4) {
    const std::size_t end = std::min(want, entries->size());
    const auto begin = entries->begin() + static_cast<std::ptrdiff_t>(sorted);
    std::partial_sort(begin, entries->begin() + static_cast<std::ptrdiff_t>(end), entries->end(),
                      better);
    for (; sorted < end; ++sorted) {
      sum += static_cast<double>((*entries)[sorted].value);
      if (sum >= enough) {
        entries->resize(sorted + 1);
        return;
      }
    }
  }
}

// The index that `unit` in [0, 1) falls on. At least one weight is positive.
std::size_t draw(std::span<const float> weights, double unit) {
  double total = 0;
  for (float w : weights) total += static_cast<double>(w);
  const double target = unit * total;
  double sum = 0;
  std::size_t last = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (!(weights[i] > 0)) continue;
    sum += static_cast<double>(weights[i]);
    last = i;
    if (sum > target) break;
  }
  return last;
}

// The best weighs 1 here, so min-p is a plain floor, and it may come before top-p: both keep the
// best.
TokenId draw_filtered(std::vector<Entry> entries, const SamplingParams& params, double total,
                      double unit) {
  const double top_p = std::clamp(static_cast<double>(params.top_p), 0.0, 1.0);
  // What weighs less than its even share of what top-p leaves out is left out: all of it together
  // is less than that. This drops nearly the whole vocabulary before anything is sorted.
  const double share = (1.0 - top_p) * total / static_cast<double>(entries.size());
  const double floor = std::max(share, std::min(static_cast<double>(params.min_p), 1.0));
  std::erase_if(entries, [&](const Entry& e) { return static_cast<double>(e.value) < floor; });
  if (top_p < 1.0) keep_nucleus(&entries, top_p * total);
  std::vector<float> weights(entries.size());
  std::transform(entries.begin(), entries.end(), weights.begin(),
                 [](const Entry& e) { return e.value; });
  return entries[draw(weights, unit)].id;
}

TokenId sample_random(std::span<const float> logits, const SamplingParams& params, double unit) {
  const float scale = std::min(1.0F / params.temperature, kMost);
  const float most = finite(logits[static_cast<std::size_t>(argmax(logits))]);
  if (params.top_k > 0 && params.top_k < logits.size()) {
    std::vector<Entry> entries = best_logits(logits, params.top_k);
    double total = 0;
    for (Entry& e : entries) {
      e.value = exp_negative((e.value - most) * scale);
      total += static_cast<double>(e.value);
    }
    return draw_filtered(std::move(entries), params, total, unit);
  }
  std::vector<float> weights(logits.size());
  const double total = exponentials(logits, most, scale, weights.data());
  if (!(params.top_p < 1.0F) && !(params.min_p > 0.0F)) {
    return static_cast<TokenId>(draw(weights, unit));
  }
  std::vector<Entry> entries;
  entries.reserve(weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    entries.push_back({weights[i], static_cast<TokenId>(i)});
  }
  return draw_filtered(std::move(entries), params, total, unit);
}

void report(std::span<const float> logits, const SamplingParams& params, SampledToken* out) {
  const float most = finite(logits[static_cast<std::size_t>(argmax(logits))]);
  const double log_total = std::log(exponentials(logits, most, 1.0F, nullptr));
  const auto logprob = [&](float logit) {
    const double value = static_cast<double>(logit) - static_cast<double>(most) - log_total;
    return std::max(kLeastLogprob, static_cast<float>(value));
  };
  out->logprob = logprob(finite(logits[static_cast<std::size_t>(out->id)]));
  const std::uint32_t count = std::min(params.top_logprobs, kMaxTopLogprobs);
  for (const Entry& e : best_logits(logits, count)) out->top.push_back({e.id, logprob(e.value)});
}

}  // namespace

SampledToken sample(std::span<const float> logits, const SamplingParams& params,
                    std::uint32_t choice, std::uint32_t position,
                    std::span<const TokenId> history) {
  KVD_CHECK(!logits.empty());
  std::vector<float> penalised;
  std::span<const float> view = logits;
  if (params.repetition_penalty > 0.0F && params.repetition_penalty != 1.0F) {
    penalised.assign(logits.begin(), logits.end());
    penalise(penalised, params.repetition_penalty, history);
    view = penalised;
  }
  SampledToken out;
  if (params.temperature > 0.0F) {
    out.id = sample_random(view, params, to_unit(counter_random(params.seed, choice, position)));
  } else {
    out.id = argmax(view);
  }
  if (params.logprobs || params.top_logprobs > 0) report(logits, params, &out);
  return out;
}

}  // namespace kvd::engine
