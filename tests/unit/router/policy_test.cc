#include "router/policy.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <set>

namespace kvd::router {
namespace {

std::vector<Candidate> workers(const std::string& prefix, std::size_t count) {
  std::vector<Candidate> out(count);
  for (std::size_t i = 0; i < count; ++i) out[i].address = prefix + std::to_string(i) + ":1";
  return out;
}

std::unique_ptr<RoutingPolicy> policy(std::string_view name, Rng* rng) {
  auto made = make_policy(name, rng);
  REQUIRE(made.ok());
  CHECK((*made)->name() == name);
  return std::move(made).value();
}

TEST_CASE("policy: an unknown name lists the known ones") {
  Rng rng(1);
  const auto made = make_policy("best", &rng);
  REQUIRE_FALSE(made.ok());
  CHECK(made.status().code() == StatusCode::kInvalidArgument);
  for (const std::string_view name : policy_names()) {
    CHECK(made.status().message().find(name) != std::string::npos);
    CHECK(make_policy(name, &rng).ok());
  }
}

TEST_CASE("policy: without workers of one kind there is no pair") {
  Rng rng(1);
  const auto some = workers("w", 2);
  for (const std::string_view name : policy_names()) {
    const auto it = policy(name, &rng);
    CHECK_FALSE(it->pick({}, some, {}));
    CHECK_FALSE(it->pick(some, {}, {}));
    CHECK(it->pick(some, some, {}));
  }
}

TEST_CASE("policy: round robin uses every pair once a round, and every worker evenly on the way") {
  for (std::size_t p = 1; p <= 6; ++p) {
    for (std::size_t d = 1; d <= 6; ++d) {
      const auto prefills = workers("p", p);
      const auto decodes = workers("d", d);
      const auto it = policy("round-robin", nullptr);
      std::set<std::pair<std::size_t, std::size_t>> seen;
      std::vector<std::size_t> prefill_use(p), decode_use(d);
      for (std::size_t i = 0; i < p * d; ++i) {
        const auto pair = it->pick(prefills, decodes, {});
        REQUIRE(pair);
        seen.emplace(pair->prefill, pair->decode);
        ++prefill_use[pair->prefill];
        ++decode_use[pair->decode];
        const auto [p_low, p_high] = std::minmax_element(prefill_use.begin(), prefill_use.end());
        const auto [d_low, d_high] = std::minmax_element(decode_use.begin(), decode_use.end());
        CHECK(*p_high - *p_low <= 1);
        CHECK(*d_high - *d_low <= 2);  // one more where a diagonal closes
      }
      CHECK(seen.size() == p * d);
    }
  }
}

TEST_CASE("policy: random is fair over pairs and replays its seed") {
  const auto prefills = workers("p", 3);
  const auto decodes = workers("d", 4);
  Rng rng(7);
  Rng same(7);
  const auto one = policy("random", &rng);
  const auto two = policy("random", &same);
  std::map<std::pair<std::size_t, std::size_t>, int> counts;
  constexpr int kDraws = 12'000;
  for (int i = 0; i < kDraws; ++i) {
    const auto a = one->pick(prefills, decodes, {});
    const auto b = two->pick(prefills, decodes, {});
    REQUIRE((a && b && a->prefill == b->prefill && a->decode == b->decode));
    ++counts[{a->prefill, a->decode}];
  }
  CHECK(counts.size() == 12);
  for (const auto& [pair, count] : counts) {
    CHECK(count > 1000 - 200);  // six standard deviations
    CHECK(count < 1000 + 200);
  }
}

TEST_CASE("policy: fresh workers go before tried ones, tried ones before none") {
  const auto prefills = workers("p", 2);
  const auto decodes = workers("d", 2);
  Rng rng(3);
  for (const std::string_view name : policy_names()) {
    const auto it = policy(name, &rng);
    for (int i = 0; i < 50; ++i) {
      const std::vector<std::string> one = {"p0:1>d0:1"};
      const auto fresh = it->pick(prefills, decodes, one);
      REQUIRE(fresh);
      CHECK((fresh->prefill == 1 && fresh->decode == 1));
      const std::vector<std::string> three = {"p0:1>d0:1", "p1:1>d1:1", "p0:1>d1:1"};
      const auto last = it->pick(prefills, decodes, three);
      REQUIRE(last);
      CHECK((last->prefill == 1 && last->decode == 0));
      const std::vector<std::string> all = {"p0:1>d0:1", "p1:1>d1:1", "p0:1>d1:1", "p1:1>d0:1"};
      CHECK(it->pick(prefills, decodes, all));
    }
  }
}

TEST_CASE("policy: a tried decode alone is avoided, junk and strangers are ignored") {
  const auto prefills = workers("p", 1);
  const auto decodes = workers("d", 3);
  Rng rng(3);
  for (const std::string_view name : policy_names()) {
    const auto it = policy(name, &rng);
    const std::vector<std::string> tried = {">d1:1", "", "junk", "x>y", "p9:1>d9:1"};
    std::set<std::size_t> used;
    for (int i = 0; i < 60; ++i) used.insert(it->pick(prefills, decodes, tried)->decode);
    CHECK(used == std::set<std::size_t>{0, 2});
  }
}

TEST_CASE("policy: random choices among what is left are fair") {
  const auto prefills = workers("p", 1);
  const auto decodes = workers("d", 4);
  Rng rng(11);
  const auto it = policy("random", &rng);
  const std::vector<std::string> tried = {"p0:1>d0:1"};
  std::vector<int> counts(4);
  for (int i = 0; i < 9'000; ++i) ++counts[it->pick(prefills, decodes, tried)->decode];
  CHECK(counts[0] == 0);
  for (std::size_t d = 1; d < 4; ++d) CHECK((counts[d] > 2700 && counts[d] < 3300));
}

TEST_CASE("policy: round robin goes on when workers come and go") {
  const auto it = policy("round-robin", nullptr);
  std::map<std::size_t, int> use;
  for (std::size_t step = 0; step < 600; ++step) {
    const auto prefills = workers("p", 1 + step % 3);
    const auto decodes = workers("d", 1 + step % 5);
    const auto pair = it->pick(prefills, decodes, {});
    REQUIRE(pair);
    CHECK((pair->prefill < prefills.size() && pair->decode < decodes.size()));
    ++use[pair->decode];
  }
  CHECK(use.size() == 5);
}

}  // namespace
}  // namespace kvd::router
