// What kvd-bench pages measures: shapes of models, lengths of prompts, and the places of pages.
#include <catch2/catch.hpp>
#include <cstdio>
#include <fstream>
#include <set>

#include "kvd-bench/pages_options.h"
#include "kvd-bench/pages_shape.h"
#include "peer/page_sets.h"

namespace kvd::tools {
namespace {

const TimePoint kNow{1};

std::uint64_t page_bytes(const std::string& name, std::uint32_t tp = 1) {
  return rank_layout(*find_shape(name), tp, 32)->page_bytes();
}

struct Config {
  explicit Config(const std::string& text) { std::ofstream(path) << text; }
  ~Config() { std::remove(path.c_str()); }
  Result<ModelShape> read() const { return read_model_config(path); }
  const std::string path = "bench-pages-config.json";
};

kv::KvLayout tiny() {
  kv::KvLayout layout;
  layout.layers = layout.kv_heads = 1;
  layout.head_dim = 8;
  return layout;
}

// A pool of whose pages `open` sets are free at any time.
struct Sets {
  Sets(std::uint32_t count, std::uint32_t each, std::uint32_t open, double fragmentation)
      : pool(tiny(), nullptr,
             static_cast<std::uint32_t>(PageSets::pages_needed(count, each, fragmentation))),
        sets(&pool, count, each, open, fragmentation, &rng, kNow) {}
  std::vector<PageIndex> take(std::uint32_t pages) {
    const kv::LeaseId lease = *pool.lease(pages, kNow);
    const auto span = pool.pages(lease);
    std::vector<PageIndex> out(span.begin(), span.end());
    pool.release(lease, kv::Proof::kSequenceDone);
    return out;
  }
  Rng rng{5};
  kv::PagePool pool;
  PageSets sets;
};

}  // namespace

TEST_CASE("shapes: the pages of the built-in models have the sizes that their dimensions give") {
  // layers * 2 * KV heads * head size * 32 tokens * 2 bytes; DeepSeek: layers * 576 * 32 * 2.
  CHECK(page_bytes("SmolLM2-135M") == 30ull * 2 * 3 * 64 * 32 * 2);
  CHECK(page_bytes("Llama-3.1-8B") == 4u << 20);
  CHECK(page_bytes("llama-3.1-70b") == 80ull * 2 * 8 * 128 * 32 * 2);
  CHECK(page_bytes("Qwen3-32B") == 64ull * 2 * 8 * 128 * 32 * 2);
  CHECK(page_bytes("DeepSeek-V3") == 61ull * 576 * 32 * 2);
  const auto none = find_shape("gpt-2");
  REQUIRE_FALSE(none.ok());
  for (const std::string& name : shape_names()) {
    CHECK(find_shape(name).ok());
    CHECK(none.status().message().find(name) != std::string::npos);
  }
}

TEST_CASE("shapes: ranks share heads evenly, repeat them, and each have the whole latent") {
  CHECK(page_bytes("Llama-3.1-8B", 4) == 1u << 20);
  CHECK(page_bytes("Llama-3.1-8B", 8) == page_bytes("Llama-3.1-8B", 16));
  CHECK(page_bytes("DeepSeek-V3", 8) == page_bytes("DeepSeek-V3"));
  CHECK(rank_layout(*find_shape("SmolLM2-135M"), 2, 32).status().code() ==
        StatusCode::kInvalidArgument);
  CHECK_FALSE(rank_layout(*find_shape("Llama-3.1-8B"), 12, 32).ok());
}

TEST_CASE("shapes: a config.json gives heads, head size or latent, or says what is missing") {
  const auto plain = Config(R"({"num_hidden_layers":2,"num_attention_heads":8,"hidden_size":256,
                                "model_type":"llama"})")
                         .read();
  REQUIRE(plain.ok());
  CHECK(plain->name == "llama");
  CHECK(plain->kv_heads == 8);
  CHECK(plain->head_dim == 32);
  const auto grouped = Config(R"({"num_hidden_layers":2,"num_attention_heads":8,
                                  "num_key_value_heads":4,"head_dim":128})")
                           .read();
  REQUIRE(grouped.ok());
  CHECK(grouped->kv_heads == 4);
  CHECK(grouped->head_dim == 128);
  const auto latent =
      Config(R"({"num_hidden_layers":2,"kv_lora_rank":512,"qk_rope_head_dim":64})").read();
  REQUIRE(latent.ok());
  CHECK(latent->latent == 576);
  const auto missing = [](const std::string& text) {
    return Config(text).read().status().message();
  };
  CHECK(missing(R"({"num_attention_heads":8})").find("num_hidden_layers is missing") !=
        std::string::npos);
  CHECK(missing(R"({"num_hidden_layers":2})").find("num_attention_heads is missing") !=
        std::string::npos);
  CHECK(missing(R"({"num_hidden_layers":2,"num_attention_heads":"8"})").find("is missing") !=
        std::string::npos);
  CHECK_FALSE(Config("{").read().ok());
  CHECK_FALSE(read_model_config("no-such-config.json").ok());
}

TEST_CASE("shapes: explicit pages have the bytes that are asked for") {
  for (const std::uint64_t bytes : {128ull, 4096ull, 24576ull, 65536ull, 4ull << 20}) {
    CHECK(plain_layout(bytes)->page_bytes() == bytes);
  }
  for (const std::uint64_t bytes : {0ull, 100ull, 4097ull}) CHECK_FALSE(plain_layout(bytes).ok());
}

TEST_CASE("lengths: a number, a range and a lognormal are drawn within their bounds") {
  Rng rng(3);
  CHECK(TokenLengths::parse("2048")->draw(&rng) == 2048);
  const auto range = TokenLengths::parse("100-103");
  std::set<std::uint32_t> seen;
  for (int i = 0; i < 400; ++i) seen.insert(range->draw(&rng));
  CHECK(seen == std::set<std::uint32_t>{100, 101, 102, 103});
  CHECK(range->longest() == 103);
  const auto lognormal = TokenLengths::parse("lognormal:1000:0.5");
  int below = 0;
  for (int i = 0; i < 4000; ++i) {
    const std::uint32_t drawn = lognormal->draw(&rng);
    CHECK((drawn >= 1 && drawn <= lognormal->longest()));
    below += drawn < 1000 ? 1 : 0;
  }
  CHECK((below > 1800 && below < 2200));  // half of them, by more than six sigma
  for (const char* wrong :
       {"", "0", "-", "5-", "-5", "9-8", "x", "1e3", "lognormal", "lognormal:", "lognormal:0:1",
        "lognormal:10:0", "lognormal:10:x", "lognormal:10:3", "99999999999"}) {
    INFO(wrong);
    CHECK(TokenLengths::parse(wrong).status().code() == StatusCode::kInvalidArgument);
  }
}

TEST_CASE("plans: a pool of the smallest requests has room for a plain write of 1 MiB") {
  PagesOptions options;
  for (const std::uint64_t bytes : {128, 4096, 1 << 20}) {
    options.page_bytes = bytes;
    options.pages = 1;
    const auto plan = check_pages(options);
    REQUIRE(plan.ok());
    CHECK(plan->pool_pages * bytes >= 1u << 20);
    CHECK(plan->sets <= 4096);
  }
}

TEST_CASE("page sets: without fragmentation every request gets one run, each time another") {
  Sets pages(12, 16, 2, 0);
  std::set<PageIndex> starts;
  for (int i = 0; i < 40; ++i) {
    const auto got = pages.take(16);
    CHECK(kv::to_runs(got).size() == 1);
    starts.insert(got.front());
    pages.sets.rotate(kNow);
    CHECK(pages.pool.counts().free == 2 * 16);
  }
  CHECK(starts.size() > 6);
}

TEST_CASE("page sets: fully fragmented no two pages of a request are neighbours") {
  Sets pages(12, 16, 2, 1);
  std::set<PageIndex> seen;
  for (int i = 0; i < 40; ++i) {
    const auto got = pages.take(16);
    CHECK(kv::to_runs(got).size() == 16);
    seen.insert(got.begin(), got.end());
    pages.sets.rotate(kNow);
  }
  CHECK(seen.size() > 100);
}

TEST_CASE("page sets: between, the share of places at which a run ends is what is asked for") {
  Sets pages(40, 64, 4, 0.25);
  std::size_t runs = 0;
  constexpr int kRequests = 60;
  for (int i = 0; i < kRequests; ++i) {
    runs += kv::to_runs(pages.take(64)).size();
    pages.sets.rotate(kNow);
  }
  // Of 63 places inside a set; a request takes the longest of four sets' runs, so it has fewer.
  const double share = (static_cast<double>(runs) / kRequests - 1) / 63;
  CHECK(share > 0.08);
  CHECK(share < 0.3);
}

TEST_CASE("page sets: what a request holds is not closed under it, and all pages come back") {
  kv::PagePool pool(tiny(), nullptr, static_cast<std::uint32_t>(PageSets::pages_needed(6, 8, 0.5)));
  {
    Rng rng(1);
    PageSets sets(&pool, 6, 8, 1, 0.5, &rng, kNow);
    const kv::LeaseId held = *pool.lease(5, kNow);
    sets.rotate(kNow);  // three pages are free, a set has eight
    CHECK(pool.counts().free == 3);
    pool.release(held, kv::Proof::kSequenceDone);
    sets.rotate(kNow);
    CHECK(pool.counts().free == 8);
  }
  CHECK(pool.counts().free == pool.page_count());
}

}  // namespace kvd::tools
