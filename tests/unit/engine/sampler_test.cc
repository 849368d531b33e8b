#include "engine/sampler.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "base/rng.h"

namespace kvd::engine {
namespace {

using Logits = std::vector<float>;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

SamplingParams greedy() {
  SamplingParams p;
  p.temperature = 0;
  return p;
}

Logits random_logits(std::size_t count, std::uint64_t seed, double spread) {
  Rng rng(seed);
  Logits logits(count);
  for (float& x : logits) {
    x = static_cast<float>(spread * (rng.uniform() + rng.uniform() + rng.uniform() - 1.5));
  }
  return logits;
}

std::vector<double> softmax(const Logits& logits, double temperature) {
  const double most = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p;
  for (float x : logits) p.push_back(std::exp((static_cast<double>(x) - most) / temperature));
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= total;
  return p;
}

// The tokens that the filters leave, by their definition.
std::set<TokenId> allowed(const Logits& logits, const SamplingParams& params) {
  const std::vector<double> p = softmax(logits, static_cast<double>(params.temperature));
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto at = [&](TokenId id) { return static_cast<std::size_t>(id); };
  std::stable_sort(order.begin(), order.end(),
                   [&](TokenId a, TokenId b) { return logits[at(a)] > logits[at(b)]; });
  if (params.top_k > 0 && params.top_k < order.size()) order.resize(params.top_k);
  double total = 0;
  for (TokenId id : order) total += p[at(id)];
  double sum = 0;
  std::set<TokenId> out;
  for (TokenId id : order) {
    if (!out.empty() && p[at(id)] < static_cast<double>(params.min_p) * p[at(order[0])]) break;
    out.insert(id);
    sum += p[at(id)];
    if (sum >= static_cast<double>(params.top_p) * total) break;
  }
  return out;
}

std::vector<int> draws(const Logits& logits, const SamplingParams& params, int count) {
  std::vector<int> counts(logits.size());
  for (int i = 0; i < count; ++i) {
    const SampledToken token = sample(logits, params, 0, static_cast<std::uint32_t>(i), {});
    ++counts.at(static_cast<std::size_t>(token.id));
  }
  return counts;
}

TEST_CASE("sampler: temperature 0 takes the largest logit, the lowest id on a tie") {
  CHECK(sample(Logits{1, 5, 3}, greedy(), 0, 0, {}).id == 1);
  CHECK(sample(Logits{1, 5, 5}, greedy(), 0, 0, {}).id == 1);
  CHECK(sample(Logits{-3}, greedy(), 0, 0, {}).id == 0);
  const Logits logits = random_logits(49152, 1, 10);
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  CHECK(sample(logits, greedy(), 0, 0, {}).id == best);
}

TEST_CASE("sampler: NaN and infinities never win or break a draw") {
  CHECK(sample(Logits{kNan, 1, 2, kNan}, greedy(), 0, 0, {}).id == 2);
  CHECK(sample(Logits{1, kInf, 2}, greedy(), 0, 0, {}).id == 1);
  CHECK(sample(Logits{kNan, kNan}, greedy(), 0, 0, {}).id == 0);
  for (std::uint32_t k : {0U, 1U, 2U, 3U}) {
    for (float p : {1.0F, 0.5F, 0.0F}) {
      SamplingParams params;
      params.top_k = k;
      params.top_p = p;
      params.min_p = 0.01F;
      params.logprobs = true;
      params.top_logprobs = 20;
      for (std::uint32_t i = 0; i < 50; ++i) {
        const SampledToken t = sample(Logits{kNan, 3, -kInf, 3, kNan}, params, 0, i, {});
        REQUIRE((t.id == 1 || t.id == 3));
        REQUIRE(t.logprob == Approx(std::log(0.5)).margin(1e-5));
        REQUIRE(t.top.size() == 5);
        for (const TokenLogprob& alternative : t.top) REQUIRE(std::isfinite(alternative.logprob));
        const SampledToken all = sample(Logits{kNan, kNan, -kInf}, params, 0, i, {});
        REQUIRE((all.id >= 0 && all.id < 3));
        REQUIRE(std::isfinite(all.logprob));
        REQUIRE(sample(Logits{0, kInf, 0}, params, 0, i, {}).id == 1);
      }
    }
  }
}

TEST_CASE("sampler: draws follow the distribution") {
  const Logits logits = random_logits(24, 2, 3);
  for (float temperature : {0.7F, 1.0F, 2.0F}) {
    SamplingParams params;
    params.temperature = temperature;
    params.seed = 42;
    constexpr int kDraws = 40000;
    const std::vector<int> counts = draws(logits, params, kDraws);
    const std::vector<double> p = softmax(logits, static_cast<double>(temperature));
    double chi2 = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      chi2 += std::pow(counts[i] - p[i] * kDraws, 2) / (p[i] * kDraws);
    }
    INFO("temperature " << temperature);
    CHECK(chi2 < 49.7);  // 23 degrees of freedom: 0.1 %
  }
}

TEST_CASE("sampler: the filters leave what their definitions leave") {
  const Logits logits = random_logits(3000, 3, 9);
  Rng rng(4);
  for (int round = 0; round < 40; ++round) {
    SamplingParams params;
    params.seed = rng.next();
    params.temperature = static_cast<float>(0.5 + rng.uniform());
    if (rng.chance(0.5)) params.top_k = static_cast<std::uint32_t>(1 + rng.below(600));
    if (rng.chance(0.6)) params.top_p = static_cast<float>(0.05 + 0.9 * rng.uniform());
    if (rng.chance(0.4)) params.min_p = static_cast<float>(0.2 * rng.uniform());
    const std::set<TokenId> expected = allowed(logits, params);
    const std::vector<double> p = softmax(logits, static_cast<double>(params.temperature));
    double total = 0;
    for (TokenId id : expected) total += p[static_cast<std::size_t>(id)];
    constexpr int kDraws = 400;
    const std::vector<int> counts = draws(logits, params, kDraws);
    INFO("k " << params.top_k << " p " << params.top_p << " min_p " << params.min_p);
    for (std::size_t i = 0; i < counts.size(); ++i) {
      if (counts[i] > 0) REQUIRE(expected.count(static_cast<TokenId>(i)) == 1);
    }
    for (TokenId id : expected) {
      // One that should come 20 times does come.
      const double share = p[static_cast<std::size_t>(id)] / total;
      if (share * kDraws >= 20) REQUIRE(counts[static_cast<std::size_t>(id)] > 0);
    }
  }
}

TEST_CASE("sampler: the ends of the filters' ranges") {
  const Logits logits{0, 1, 2, 3, 2.5F};
  SamplingParams params;
  const auto only = [&](TokenId id) {
    for (std::uint32_t i = 0; i < 100; ++i) {
      if (sample(logits, params, 0, i, {}).id != id) return false;
    }
    return true;
  };
  CHECK_FALSE(only(3));
  params.top_k = 1;
  CHECK(only(3));
  params = {};
  params.top_p = 0;
  CHECK(only(3));
  params = {};
  params.min_p = 1;
  CHECK(only(3));
  params.min_p = 7;
  CHECK(only(3));
  params = {};
  params.temperature = 1e-39F;
  CHECK(only(3));
  params = {};
  params.temperature = kNan;
  CHECK(only(3));
  params = {};
  params.temperature = kInf;
  const std::vector<int> counts = draws(logits, params, 1000);
  CHECK(*std::min_element(counts.begin(), counts.end()) > 120);
}

TEST_CASE("sampler: the same seed, choice and position draw the same token") {
  const Logits logits = random_logits(5000, 6, 4);
  SamplingParams params;
  params.seed = 99;
  std::set<TokenId> by_choice, by_position, by_seed;
  for (std::uint32_t i = 0; i < 20; ++i) {
    const TokenId id = sample(logits, params, i, 7, {}).id;
    CHECK(sample(logits, params, i, 7, {}).id == id);
    by_choice.insert(id);
    by_position.insert(sample(logits, params, 7, i, {}).id);
    SamplingParams other = params;
    other.seed = i;
    by_seed.insert(sample(logits, other, 7, 7, {}).id);
  }
  CHECK(by_choice.size() > 10);
  CHECK(by_position.size() > 10);
  CHECK(by_seed.size() > 10);
}

TEST_CASE("sampler: a draw is a fixed token on every host") {
  // Changing these changes every seeded answer that a user has seen.
  const Logits logits = random_logits(1000, 8, 5);
  SamplingParams params;
  params.seed = 1234;
  std::vector<TokenId> ids;
  for (std::uint32_t i = 0; i < 6; ++i) ids.push_back(sample(logits, params, 0, i, {}).id);
  CHECK(ids == std::vector<TokenId>{315, 679, 37, 194, 274, 202});
}

TEST_CASE("sampler: the repetition penalty weakens each token of the history once") {
  SamplingParams params = greedy();
  params.repetition_penalty = 2;
  const std::vector<TokenId> history{1, 1, 1, -5, 900};
  CHECK(sample(Logits{3, 5, 2}, params, 0, 0, history).id == 0);        // 5 / 2 < 3
  CHECK(sample(Logits{2, 5, 2}, params, 0, 0, history).id == 1);        // once: 2.5 > 2
  CHECK(sample(Logits{-1.5F, -1, -9}, params, 0, 0, history).id == 0);  // -1 * 2 < -1.5
  params.logprobs = true;
  // What is reported is the raw distribution.
  const SampledToken token = sample(Logits{3, 5, 2}, params, 0, 0, history);
  CHECK(token.logprob == Approx(std::log(softmax({3, 5, 2}, 1)[0])).margin(1e-5));
}

TEST_CASE("sampler: log-probabilities are those of the raw distribution, best first") {
  const Logits logits = random_logits(49152, 9, 12);
  SamplingParams params;
  params.temperature = 0.3F;
  params.top_k = 5;
  params.logprobs = true;
  params.top_logprobs = 20;
  const SampledToken token = sample(logits, params, 0, 0, {});
  const std::vector<double> p = softmax(logits, 1);
  CHECK(token.logprob == Approx(std::log(p[static_cast<std::size_t>(token.id)])).margin(1e-5));
  REQUIRE(token.top.size() == 20);
  Logits sorted = logits;
  std::sort(sorted.rbegin(), sorted.rend());
  for (std::size_t i = 0; i < token.top.size(); ++i) {
    const auto id = static_cast<std::size_t>(token.top[i].id);
    CHECK(logits[id] == sorted[i]);
    CHECK(token.top[i].logprob == Approx(std::log(p[id])).margin(1e-5));
  }
  params.top_logprobs = 1000;
  CHECK(sample(logits, params, 0, 0, {}).top.size() == kMaxTopLogprobs);
  params.logprobs = false;
  params.top_logprobs = 0;
  CHECK(sample(logits, params, 0, 0, {}).top.empty());
  CHECK(sample(logits, params, 0, 0, {}).logprob == 0);
  // Ties are in order of id, and a small vocabulary gives all it has.
  params.top_logprobs = 4;
  const SampledToken tied = sample(Logits{1, 2, 2}, params, 0, 0, {});
  REQUIRE(tied.top.size() == 3);
  CHECK(tied.top[0].id == 1);
  CHECK(tied.top[1].id == 2);
}

}  // namespace
}  // namespace kvd::engine
