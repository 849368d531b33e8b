#include "router/policy.h"

#include <array>
#include <numeric>

namespace kvd::router {
namespace {

constexpr std::array<std::string_view, 2> kNames = {"random", "round-robin"};

// How much a pair has to do with what was tried: 0 nothing, 1 one of its workers, 2 both, 4 the
// very pair. A worker that failed with one partner is likely to fail with the next, so fresh
// workers go first.
class Tried {
 public:
  Tried(std::span<const Candidate> prefills, std::span<const Candidate> decodes,
        std::span<const std::string> tried)
      : decode_count_(decodes.size()) {
    if (tried.empty()) return;
    prefills_.assign(prefills.size(), false);
    decodes_.assign(decodes.size(), false);
    pairs_.assign(prefills.size() * decodes.size(), false);
    for (const std::string& pair : tried) {
      const std::size_t mark = pair.find('>');
      if (mark == std::string::npos) continue;
      const std::string_view view = pair;
      const auto p = index_of(prefills, view.substr(0, mark));
      const auto d = index_of(decodes, view.substr(mark + 1));
      if (p) prefills_[*p] = true;
      if (d) decodes_[*d] = true;
      if (p && d) pairs_[*p * decode_count_ + *d] = true;
    }
  }

  bool empty() const { return pairs_.empty(); }
  int cost(const Pair& pair) const {
    if (empty()) return 0;
    if (pairs_[pair.prefill * decode_count_ + pair.decode]) return 4;
    return static_cast<int>(prefills_[pair.prefill]) + static_cast<int>(decodes_[pair.decode]);
  }

 private:
  static std::optional<std::size_t> index_of(std::span<const Candidate> candidates,
                                             std::string_view address) {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      if (candidates[i].address == address) return i;
    }
    return std::nullopt;
  }

  std::size_t decode_count_;
  std::vector<bool> prefills_, decodes_, pairs_;
};

class RandomPolicy final : public RoutingPolicy {
 public:
  explicit RandomPolicy(Rng* rng) : rng_(rng) {}
  std::string_view name() const override { return kNames[0]; }

  std::optional<Pair> pick(std::span<const Candidate> prefills, std::span<const Candidate> decodes,
                           std::span<const std::string> tried) override {
    const std::size_t pairs = prefills.size() * decodes.size();
    if (pairs == 0) return std::nullopt;
    const auto pair_at = [&](std::size_t i) {
      return Pair{i / decodes.size(), i % decodes.size()};
    };
    const Tried avoid(prefills, decodes, tried);
    if (avoid.empty()) return pair_at(rng_->below(pairs));
    // One pass: a uniform choice among the pairs of the lowest cost seen so far.
    Pair best;
    int best_cost = 5;
    std::uint64_t equals = 0;
    for (std::size_t i = 0; i < pairs; ++i) {
      const int cost = avoid.cost(pair_at(i));
      if (cost > best_cost) continue;
      equals = cost < best_cost ? 1 : equals + 1;
      best_cost = cost;
      if (rng_->below(equals) == 0) best = pair_at(i);
    }
    return best;
  }

 private:
  Rng* rng_;
};

// Walks all pairs along diagonals: every step moves to the next prefill and the next decode, so
// that neighbours in time share no worker, and each time the diagonal closes (after lcm(P, D)
// steps) decode slips by one. All P x D pairs come once in P x D steps; two counters in lockstep
// would reach only the lcm(P, D) pairs of the first diagonal.
class RoundRobinPolicy final : public RoutingPolicy {
 public:
  std::string_view name() const override { return kNames[1]; }

  std::optional<Pair> pick(std::span<const Candidate> prefills, std::span<const Candidate> decodes,
                           std::span<const std::string> tried) override {
    const std::size_t pairs = prefills.size() * decodes.size();
    if (pairs == 0) return std::nullopt;
    const std::size_t diagonal = std::lcm(prefills.size(), decodes.size());
    const auto pair_at = [&](std::uint64_t step) {
      const std::uint64_t i = step % pairs;
      return Pair{i % prefills.size(), (i + i / diagonal) % decodes.size()};
    };
    const Tried avoid(prefills, decodes, tried);
    std::uint64_t chosen = next_;
    int best_cost = avoid.cost(pair_at(next_));
    for (std::uint64_t step = next_ + 1; best_cost > 0 && step < next_ + pairs; ++step) {
      const int cost = avoid.cost(pair_at(step));
      if (cost >= best_cost) continue;
      best_cost = cost;
      chosen = step;
    }
    next_ = chosen + 1;
    return pair_at(chosen);
  }

 private:
  std::uint64_t next_ = 0;
};

}  // namespace

Result<std::unique_ptr<RoutingPolicy>> make_policy(std::string_view name, Rng* rng) {
  if (name == kNames[0]) {
    KVD_CHECK(rng != nullptr);
    return std::unique_ptr<RoutingPolicy>(std::make_unique<RandomPolicy>(rng));
  }
  if (name == kNames[1])
    return std::unique_ptr<RoutingPolicy>(std::make_unique<RoundRobinPolicy>());
  std::string known;
  for (const std::string_view each : kNames) {
    known += known.empty() ? "" : ", ";
    known += each;
  }
  return invalid_argument("unknown policy '" + std::string(name) + "'; use one of: " + known);
}

std::span<const std::string_view> policy_names() { return kNames; }

}  // namespace kvd::router
