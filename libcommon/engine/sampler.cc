#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
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

// Four at a time in the compiler's own vector type, so that every x86-64 host does the same: libm's
// exp differs from host to host in the last bit, and a draw must not.
using Floats = float __attribute__((vector_size(16)));
using Ints = std::int32_t __attribute__((vector_size(16)));
constexpr std::size_t kLanes = 4;
constexpr std::size_t kBlock = 64;  // weights that are summed as floats, before doubles take over

Floats load(const float* from) {
  Floats x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}
Floats all(float x) { return Floats{x, x, x, x}; }

// e^x for x <= 0, 2e-7 relative; 0 below -87 and for NaN. (Cephes expf's polynomial.)
Floats exp_negative(Floats x) {
  Floats c = x > -87.0F ? x : all(-87.0F);
  c = c < 0.0F ? c : all(0.0F);
  const Ints exponent = __builtin_convertvector(c * 1.44269504F - 0.5F, Ints);
  const Floats n = __builtin_convertvector(exponent, Floats);
  const Floats r = (c - n * 0.693359375F) + n * 2.12194440e-4F;
  Floats p = r * 1.9875691500e-4F + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * r * r + r + 1.0F;
  const Ints scale = (exponent + 127) << 23;  // the bits of 2^n
  Floats power;
  std::memcpy(&power, &scale, sizeof(power));
  return x > -87.0F ? p * power : all(0.0F);
}
float exp_negative(float x) { return exp_negative(all(x))[0]; }

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

float largest(std::span<const float> logits) {
  std::array<Floats, 4> best;
  best.fill(all(kLeast));
  constexpr std::size_t kStep = 4 * kLanes;
  std::size_t i = 0;
  for (; i + kStep <= logits.size(); i += kStep) {
    for (std::size_t j = 0; j < best.size(); ++j) {
      const Floats x = load(logits.data() + i + j * kLanes);
      best[j] = x > best[j] ? x : best[j];  // false for NaN
    }
  }
  float out = kLeast;
  for (; i < logits.size(); ++i) out = std::max(out, finite(logits[i]));
  for (const Floats& b : best) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) out = std::max(out, finite(b[lane]));
  }
  return out;
}

TokenId argmax(std::span<const float> logits) {
  const float best = largest(logits);
  const auto found =
      best > kLeast && best < kMost
          ? std::find(logits.begin(), logits.end(), best)
          : std::find_if(logits.begin(), logits.end(), [&](float x) { return finite(x) == best; });
  return static_cast<TokenId>(found - logits.begin());
}

double sum_block(std::span<const float> weights) {
  Floats sums = all(0.0F);
  std::size_t i = 0;
  for (; i + kLanes <= weights.size(); i += kLanes) sums += load(weights.data() + i);
  double total = 0;
  for (std::size_t lane = 0; lane < kLanes; ++lane) total += static_cast<double>(sums[lane]);
  for (; i < weights.size(); ++i) total += static_cast<double>(weights[i]);
  return total;
}
double sum(std::span<const float> weights) {
  double total = 0;
  for (std::size_t i = 0; i < weights.size(); i += kBlock) {
    total += sum_block(weights.subspan(i, std::min(kBlock, weights.size() - i)));
  }
  return total;
}

// exp((logit - most) * scale) of each.
std::vector<float> exponentials(std::span<const float> logits, float most, float scale) {
  std::vector<float> weights(logits.size());
  const auto some = [&](const float* from, float* to) {
    Floats x = load(from);
    x = x > kLeast ? x : all(kLeast);  // NaN too
    x = x < kMost ? x : all(kMost);
    const Floats w = exp_negative((x - most) * scale);
    std::memcpy(to, &w, sizeof(w));
  };
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) some(logits.data() + i, weights.data() + i);
  std::array<float, kLanes> tail{};
  std::copy(logits.begin() + static_cast<std::ptrdiff_t>(i), logits.end(), tail.begin());
  some(tail.data(), tail.data());
  std::copy_n(tail.begin(), logits.size() - i, weights.begin() + static_cast<std::ptrdiff_t>(i));
  return weights;
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
  const auto at = [&](std::size_t i) { return entries->begin() + static_cast<std::ptrdiff_t>(i); };
  std::size_t sorted = 0;
  double total = 0;
  for (std::size_t want = 64; sorted < entries->size(); want *= 4) {
    const std::size_t end = std::min(want, entries->size());
    if (end < entries->size()) std::nth_element(at(sorted), at(end), entries->end(), better);
    std::sort(at(sorted), at(end), better);
    for (; sorted < end; ++sorted) {
      total += static_cast<double>((*entries)[sorted].value);
      if (total >= enough) {
        entries->resize(sorted + 1);
        return;
      }
    }
  }
}

// The index that `unit` in [0, 1) falls on. At least one weight is positive.
std::size_t draw(std::span<const float> weights, double unit) {
  const double target = unit * sum(weights);
  std::size_t chosen = 0;  // the first element of the block where the target lies
  double reached = 0;
  double before = 0;
  for (std::size_t i = 0; i < weights.size(); i += kBlock) {
    const double block = sum_block(weights.subspan(i, std::min(kBlock, weights.size() - i)));
    if (!(block > 0)) continue;
    chosen = i;
    reached = before;
    before += block;
    if (before > target) break;
  }
  // Where rounding leaves the target just outside, the block's last token takes it.
  std::size_t last = chosen;
  for (std::size_t i = chosen; i < std::min(chosen + kBlock, weights.size()); ++i) {
    if (!(weights[i] > 0)) continue;
    last = i;
    reached += static_cast<double>(weights[i]);
    if (reached > target) break;
  }
  return last;
}

// What weighs less than this is left out. The best weighs 1, so min-p is a plain floor, and it may
// come before top-p: both keep the best. For top-p, what weighs less than its even share of what is
// to be left out: all of it together is less than that. This drops nearly the whole vocabulary
// before anything is sorted.
double weight_floor(const SamplingParams& params, double total, std::size_t count) {
  const double top_p = std::clamp(static_cast<double>(params.top_p), 0.0, 1.0);
  const double share = (1.0 - top_p) * total / static_cast<double>(count);
  return std::max(share, std::min(static_cast<double>(params.min_p), 1.0));
}

// `entries` are above the floor; `total` is that of all.
TokenId draw_filtered(std::vector<Entry> entries, float top_p, double total, double unit) {
  if (top_p < 1.0F) keep_nucleus(&entries, static_cast<double>(std::max(0.0F, top_p)) * total);
  std::vector<float> weights(entries.size());
  std::transform(entries.begin(), entries.end(), weights.begin(),
                 [](const Entry& e) { return e.value; });
  return entries[draw(weights, unit)].id;
}

TokenId sample_random(std::span<const float> logits, const SamplingParams& params, double unit) {
  const float scale = std::min(1.0F / params.temperature, kMost);
  const float most = largest(logits);
  std::vector<Entry> entries;
  if (params.top_k > 0 && params.top_k < logits.size()) {
    entries = best_logits(logits, params.top_k);
    double total = 0;
    for (Entry& e : entries) {
      e.value = exp_negative((e.value - most) * scale);
      total += static_cast<double>(e.value);
    }
    const double floor = weight_floor(params, total, entries.size());
    std::erase_if(entries, [&](const Entry& e) { return static_cast<double>(e.value) < floor; });
    return draw_filtered(std::move(entries), params.top_p, total, unit);
  }
  const std::vector<float> weights = exponentials(logits, most, scale);
  if (!(params.top_p < 1.0F) && !(params.min_p > 0.0F)) {
    return static_cast<TokenId>(draw(weights, unit));
  }
  const double total = sum(weights);
  const double floor = weight_floor(params, total, weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (static_cast<double>(weights[i]) < floor) continue;
    entries.push_back({weights[i], static_cast<TokenId>(i)});
  }
  return draw_filtered(std::move(entries), params.top_p, total, unit);
}

void report(std::span<const float> logits, const SamplingParams& params, SampledToken* out) {
  const float most = largest(logits);
  const double log_total = std::log(sum(exponentials(logits, most, 1.0F)));
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
