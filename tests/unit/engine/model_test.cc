// The forward pass against a double-precision reference, and what must not change a bit of it.
#include <array>
#include <catch2/catch.hpp>
#include <memory>
#include <numeric>
#include <vector>

#include "engine/cpu/dispatch.h"
#include "engine/cpu/llama_model.h"
#include "engine/gguf.h"
#include "support/tiny_llama.h"

namespace kvd::engine {
namespace {

using cpu::CpuModel;
using cpu::CpuOptions;
using test::TinyLlama;
using Logits = std::vector<std::vector<float>>;

std::vector<TokenId> draw_tokens(std::size_t count, std::uint32_t vocab, std::uint64_t seed = 7) {
  Rng rng(seed);
  std::vector<TokenId> tokens(count);
  for (TokenId& t : tokens) t = static_cast<TokenId>(rng.below(vocab));
  return tokens;
}

// A model with a pool of its own; pages are given out in any order. The same kernels serve every
// step, unless `deterministic` is false.
class Rig {
 public:
  Rig(const TinyLlama& tiny, const std::string& kernels, std::uint32_t threads = 2,
      std::uint32_t page_size = 32, bool deterministic = true) {
    const std::vector<std::byte> bytes = tiny.builder.build();
    Result<Gguf> file = Gguf::parse(bytes, "tiny.gguf");
    REQUIRE(file.ok());
    CpuOptions options;
    options.kernels = kernels;
    options.threads = threads;
    options.page_size = page_size;
    options.deterministic = deterministic;
    Result<std::unique_ptr<CpuModel>> made = cpu::make_llama_model(*file, options);
    INFO((made.ok() ? "" : made.status().message()));
    REQUIRE(made.ok());
    model_ = std::move(*made);
    pool_.resize(kPages * model_->layout().page_bytes());
    forget();
    model_->attach_pool(pool_.data(), kPages);
  }
  // What a pool holds before its first use must not matter: bf16 3e38 everywhere.
  void forget() { std::fill(pool_.begin(), pool_.end(), std::byte{0x7F}); }

  std::vector<PageIndex> pages(PageIndex first, PageIndex step) const {
    std::vector<PageIndex> out(24);
    for (std::size_t i = 0; i < out.size(); ++i) {
      out[i] = static_cast<PageIndex>((first + i * step) % kPages);
    }
    return out;
  }
  // Logits after each step; a step takes the next `chunk` tokens.
  Logits run(const std::vector<TokenId>& tokens, std::size_t chunk,
             const std::vector<PageIndex>& pages) {
    Logits out;
    for (std::size_t at = 0; at < tokens.size(); at += chunk) {
      const std::size_t count = std::min(chunk, tokens.size() - at);
      const Segment segment{
          {tokens.data() + at, count}, static_cast<std::uint32_t>(at), pages, true, 1, {}};
      std::span<const float> logits;
      REQUIRE(model_->forward({&segment, 1}, nullptr, &logits).empty());
      out.emplace_back(logits.begin(), logits.end());
    }
    return out;
  }
  CpuModel& model() { return *model_; }
  std::vector<std::byte>& pool() { return pool_; }

  static constexpr PageIndex kPages = 61;

 private:
  std::unique_ptr<CpuModel> model_;
  std::vector<std::byte> pool_;
};

double relative_l2(const std::vector<float>& ours, const std::vector<double>& reference) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const double d = double{ours[i]} - reference[i];
    difference += d * d;
    size += reference[i] * reference[i];
  }
  return std::sqrt(difference / size);
}

// Every step's logits: prefill in two chunks, then token by token.
void check_against_reference(TinyLlama& tiny, std::uint32_t page_size, std::size_t count) {
  tiny.make();
  const std::vector<TokenId> tokens = draw_tokens(count, tiny.vocab);
  const auto reference = tiny.forward(tokens);
  const bool quantized = tensor_type_info(static_cast<std::uint32_t>(tiny.type))->block > 1;
  for (const std::string& kernels : cpu::available_kernels()) {
    Rig rig(tiny, kernels, 2, page_size, false);
    CHECK(rig.model().kernels() == kernels);
    const auto pages = rig.pages(3, 7);
    // int8 activations on random weights err by about 3 % each time (kernels_test.cc is strict).
    const double limit = kernels == "scalar" || !quantized ? 4e-3 : 0.1;
    CAPTURE(kernels, limit);
    const Logits whole = rig.run(tokens, (count + 1) / 2, pages);
    CHECK(relative_l2(whole[0], reference[(count + 1) / 2 - 1]) < limit);
    CHECK(relative_l2(whole[1], reference[count - 1]) < limit);
    rig.forget();
    const Logits single = rig.run(tokens, 1, pages);
    for (std::size_t i = 0; i < count; i += 13) {
      CAPTURE(i);
      CHECK(relative_l2(single[i], reference[i]) < limit);
    }
  }
}

// A shape whose rows are whole blocks of the tensors' type.
void fit_blocks(TinyLlama& tiny) {
  if (tensor_type_info(static_cast<std::uint32_t>(tiny.type))->block != 256) return;
  tiny.hidden = tiny.ffn = 256, tiny.heads = 8, tiny.kv_heads = 2;
}

TEST_CASE("model: every tensor type agrees with a double-precision reference") {
  TinyLlama tiny;
  tiny.type = GENERATE(TensorType::kF32, TensorType::kF16, TensorType::kBF16, TensorType::kQ4_0,
                       TensorType::kQ4_1, TensorType::kQ8_0, TensorType::kQ5_0, TensorType::kQ5_1,
                       TensorType::kQ4_K, TensorType::kQ5_K, TensorType::kQ6_K);
  tiny.embedding_type = tiny.type;
  fit_blocks(tiny);
  CAPTURE(static_cast<int>(tiny.type));
  check_against_reference(tiny, 32, 75);
}

TEST_CASE("model: shape edges agree with the reference") {
  TinyLlama tiny;
  std::uint32_t page_size = 32;
  std::size_t count = 70;
  SECTION("one query head a KV head, head dim 64, page size 64") {
    tiny.hidden = 64, tiny.heads = tiny.kv_heads = 2, tiny.head_dim = 64, page_size = 64;
  }
  SECTION("eight query heads a KV head, head dim 80, page size 96") {
    tiny.heads = 8, tiny.head_dim = 80, page_size = 96;
  }
  SECTION("three a KV head, two KV heads, head dim 96, untied output") {
    tiny.heads = 6, tiny.kv_heads = 2, tiny.head_dim = 96, tiny.tied = false;
  }
  SECTION("head dim 128") { tiny.heads = 4, tiny.kv_heads = 2, tiny.head_dim = 128; }
  SECTION("head dim 8, floats, hidden no multiple of 32, three panels of gate and up") {
    tiny.type = tiny.embedding_type = TensorType::kF32;
    tiny.hidden = 40, tiny.heads = 5, tiny.head_dim = 8, tiny.ffn = 40;
  }
  SECTION("gate and up of different types") {
    tiny.type = TensorType::kQ8_0, tiny.up_type = TensorType::kQ4_1;
  }
  SECTION("a vocabulary of 265: the last panel has 9 rows") { tiny.vocab = 265; }
  SECTION("more than one attention block split over threads") { count = 333; }
  SECTION("a 4-bit model with 8-bit output and one layer") {
    tiny.layers = 1, tiny.type = TensorType::kQ8_0, tiny.embedding_type = TensorType::kQ4_0;
  }
  check_against_reference(tiny, page_size, count);
}

TEST_CASE("model: chunks, page order, page size, thread count and company change no bit") {
  TinyLlama tiny;
  tiny.type = GENERATE(TensorType::kQ4_1, TensorType::kQ8_0, TensorType::kQ4_K, TensorType::kQ6_K);
  fit_blocks(tiny);
  if (tiny.hidden != 256) tiny.heads = 6, tiny.kv_heads = 2, tiny.head_dim = 64;
  tiny.make();
  const std::vector<TokenId> tokens = draw_tokens(345, tiny.vocab);
  for (const std::string& kernels : cpu::available_kernels()) {
    CAPTURE(kernels);
    Rig rig(tiny, kernels, 2);
    const std::vector<float> whole = rig.run(tokens, tokens.size(), rig.pages(0, 1)).back();
    rig.forget();
    const Logits single = rig.run(tokens, 1, rig.pages(0, 1));
    CHECK(single.back() == whole);
    for (std::size_t chunk : {7UL, 32UL, 100UL}) {
      CAPTURE(chunk);
      const Logits chunked = rig.run(tokens, chunk, rig.pages(0, 1));
      CHECK(chunked.back() == whole);
      CHECK(chunked.front() == single[chunk - 1]);
    }
    CHECK(rig.run(tokens, 100, rig.pages(11, 9)).back() == whole);
    CHECK(Rig(tiny, kernels, 1).run(tokens, 1, rig.pages(0, 1)) == single);
    CHECK(Rig(tiny, kernels, 3).run(tokens, 64, rig.pages(0, 1)).back() == whole);
    CHECK(Rig(tiny, kernels, 2, 96).run(tokens, 50, rig.pages(0, 1)).back() == whole);
  }
}

// The last token of each sequence in one step, after the others: what its logits are alone.
void check_last_tokens(Rig& rig, const std::vector<std::vector<TokenId>>& tokens,
                       const std::vector<std::vector<PageIndex>>& pages, const Logits& alone) {
  rig.forget();
  std::vector<Segment> segments;
  for (std::size_t s = 0; s < tokens.size(); ++s) {
    const std::size_t last = tokens[s].size() - 1;
    rig.run({tokens[s].begin(), tokens[s].end() - 1}, 64, pages[s]);
    segments.push_back(
        {{&tokens[s][last], 1}, static_cast<std::uint32_t>(last), pages[s], true, s, {}});
  }
  std::span<const float> logits;
  REQUIRE(rig.model().forward(segments, nullptr, &logits).empty());
  REQUIRE(alone.size() == tokens.size());
  for (std::size_t s = 0; s < tokens.size(); ++s) {
    CAPTURE(s);
    const std::span<const float> ours = logits.subspan(s * alone[s].size(), alone[s].size());
    CHECK(std::equal(ours.begin(), ours.end(), alone[s].begin(), alone[s].end()));
  }
}

TEST_CASE("model: a batch of prefill and decode gives each sequence what it gets alone") {
  TinyLlama tiny;
  tiny.type = GENERATE(TensorType::kQ4_1, TensorType::kQ4_K);
  fit_blocks(tiny);
  tiny.make();
  for (const std::string& kernels : cpu::available_kernels()) {
    CAPTURE(kernels);
    Rig rig(tiny, kernels);
    std::vector<std::vector<TokenId>> tokens;
    std::vector<std::vector<PageIndex>> pages;
    Logits alone;
    for (std::size_t s = 0; s < 12; ++s) {
      tokens.push_back(draw_tokens(1 + s * 17 % 90, tiny.vocab, s));
      // Three pages each, apart from each other's.
      const auto first = static_cast<PageIndex>(s * 5);
      pages.push_back({first + 2, first, first + 1});
      alone.push_back(rig.run(tokens[s], 1, pages[s]).back());
    }
    // Odd sequences have all but their last token computed; even ones come whole.
    std::vector<Segment> segments;
    for (std::size_t s = 0; s < 12; ++s) {
      const std::size_t from = s % 2 == 0 ? 0 : tokens[s].size() - 1;
      segments.push_back({{tokens[s].data() + from, tokens[s].size() - from},
                          static_cast<std::uint32_t>(from),
                          pages[s],
                          s % 3 != 1,
                          s,
                          {}});
    }
    std::span<const float> logits;
    REQUIRE(rig.model().forward(segments, nullptr, &logits).empty());
    REQUIRE(logits.size() == std::size_t{8} * tiny.vocab);
    std::size_t at = 0;
    for (std::size_t s = 0; s < 12; ++s) {
      if (s % 3 == 1) continue;
      CAPTURE(s);
      const std::span<const float> ours = logits.subspan(at, tiny.vocab);
      CHECK(std::equal(ours.begin(), ours.end(), alone[s].begin(), alone[s].end()));
      at += tiny.vocab;
    }
    check_last_tokens(rig, tokens, pages, alone);
  }
}

TEST_CASE("model: a row whose runs are spread over threads gives what it gives whole") {
  TinyLlama tiny;
  tiny.kv_heads = 2;
  // 36 rows of partials, which every thread merges for itself, and 192, which are shared.
  tiny.heads = GENERATE(6U, 32U);
  CAPTURE(tiny.heads);
  tiny.make();
  for (const std::string& kernels : cpu::available_kernels()) {
    CAPTURE(kernels);
    Rig one(tiny, kernels, 1), rig(tiny, kernels, 2);
    std::vector<std::vector<TokenId>> tokens;
    std::vector<std::vector<PageIndex>> pages;
    Logits alone;
    for (std::size_t s = 0; s < 3; ++s) {
      // Three runs, three runs, and the company.
      tokens.push_back(draw_tokens(std::array{600, 577, 9}[s], tiny.vocab, s));
      pages.emplace_back();
      for (PageIndex i = 0; i < 20; ++i) pages[s].push_back(i * 3 + static_cast<PageIndex>(s));
      alone.push_back(one.run(tokens[s], 64, pages[s]).back());
    }
    check_last_tokens(rig, {tokens[0], tokens[1]}, {pages[0], pages[1]}, {alone[0], alone[1]});
    // Again, beside a prompt: more rows than each thread merges for itself.
    std::vector<Segment> segments;
    for (std::size_t s = 0; s < 3; ++s) {
      const std::size_t from = s == 2 ? 0 : tokens[s].size() - 1;
      segments.push_back({{tokens[s].data() + from, tokens[s].size() - from},
                          static_cast<std::uint32_t>(from),
                          pages[s],
                          true,
                          s,
                          {}});
    }
    std::span<const float> logits;
    REQUIRE(rig.model().forward(segments, nullptr, &logits).empty());
    for (std::size_t s = 0; s < 3; ++s) {
      CAPTURE(s);
      const std::span<const float> ours = logits.subspan(s * tiny.vocab, tiny.vocab);
      CHECK(std::equal(ours.begin(), ours.end(), alone[s].begin(), alone[s].end()));
    }
  }
}

// One token more, whose K and V the attention of its layer writes itself.
void check_next_token(Rig& rig, std::span<const PageIndex> pages) {
  const kv::KvLayout& layout = rig.model().layout();
  const TokenId token = 3;
  const Segment segment{{&token, 1}, 40, pages, false, 1, {}};
  std::vector<std::byte> reported;
  const auto written = [&](std::uint32_t layer) {
    std::vector<std::byte> out;
    for (const bool value : {false, true}) {
      const std::byte* at = rig.pool().data() + pages[1] * layout.page_bytes() +
                            layout.offset(layer, value, 0, 40 % layout.page_size);
      out.insert(out.end(), at, at + std::size_t{layout.head_dim} * 2);
    }
    return out;
  };
  const std::vector<std::byte> untouched = written(0);
  std::span<const float> logits;
  std::uint32_t next = 0;
  rig.model().forward(
      {&segment, 1},
      [&](std::uint32_t layer) {
        CHECK(layer == next++);
        CHECK(written(layer) != untouched);
        const std::vector<std::byte> now = written(layer);
        reported.insert(reported.end(), now.begin(), now.end());
      },
      &logits);
  CHECK(next == layout.layers);
  std::vector<std::byte> stayed;
  for (std::uint32_t l = 0; l < layout.layers; ++l) {
    const std::vector<std::byte> now = written(l);
    stayed.insert(stayed.end(), now.begin(), now.end());
  }
  CHECK(reported == stayed);
}

TEST_CASE("model: when a layer is reported its K and V are in the pages and stay") {
  TinyLlama tiny;
  tiny.layers = 3;
  tiny.make();
  Rig rig(tiny, "");
  const std::vector<TokenId> tokens = draw_tokens(40, tiny.vocab);
  const auto pages = rig.pages(5, 3);
  const kv::KvLayout layout = rig.model().layout();
  const std::vector<std::byte> before = rig.pool();
  std::vector<std::vector<std::byte>> seen;
  const auto slice = [&](std::uint32_t layer, PageIndex page) {
    const auto at =
        rig.pool().begin() +
        static_cast<std::ptrdiff_t>(page * layout.page_bytes() + layout.offset(layer, false, 0, 0));
    return std::vector<std::byte>(at, at + static_cast<std::ptrdiff_t>(layout.layer_bytes()));
  };
  std::vector<std::uint32_t> order;
  const Segment segment{tokens, 0, pages, false, 1, {}};
  std::span<const float> logits;
  rig.model().forward(
      {&segment, 1},
      [&](std::uint32_t layer) {
        order.push_back(layer);
        seen.push_back(slice(layer, pages[0]));
      },
      &logits);
  CHECK(logits.empty());
  REQUIRE(order == std::vector<std::uint32_t>{0, 1, 2});
  for (std::uint32_t l = 0; l < 3; ++l) CHECK(seen[l] == slice(l, pages[0]));
  check_next_token(rig, pages);
  // 41 tokens: 9 rows of the second page, nothing behind them, and no other page at all.
  const std::byte* second = rig.pool().data() + pages[1] * layout.page_bytes();
  for (std::uint32_t l = 0; l < 3; ++l) {
    for (bool value : {false, true}) {
      const std::byte* behind = second + layout.offset(l, value, 0, 9);
      const auto count = static_cast<std::ptrdiff_t>(23 * layout.head_dim * 2);
      CHECK(std::count(behind, behind + count, std::byte{0x7F}) == count);
      CHECK(std::count(behind - layout.head_dim * 2, behind, std::byte{0x7F}) < layout.head_dim);
    }
  }
  for (PageIndex page = 0; page < Rig::kPages; ++page) {
    if (page == pages[0] || page == pages[1]) continue;
    const auto at = static_cast<std::ptrdiff_t>(page * layout.page_bytes());
    const auto end = at + static_cast<std::ptrdiff_t>(layout.page_bytes());
    CHECK(std::equal(rig.pool().begin() + at, rig.pool().begin() + end, before.begin() + at));
  }
}

TEST_CASE("model: products that are only timed leave the steps and the pool alone") {
  TinyLlama tiny;
  tiny.make();
  const std::vector<TokenId> tokens = draw_tokens(40, tiny.vocab);
  for (const std::string& kernels : cpu::available_kernels()) {
    CAPTURE(kernels);
    Rig rig(tiny, kernels, 2, 32, false);
    const auto pages = rig.pages(5, 3);
    rig.model().multiply_layers(3);
    const Logits before = rig.run(tokens, 20, pages);
    const std::vector<std::byte> pool = rig.pool();
    for (const std::uint32_t rows : {0U, 1U, 64U, 9U}) rig.model().multiply_layers(rows);
    CHECK(rig.pool() == pool);
    CHECK(rig.run(tokens, 20, pages) == before);
  }
}

std::string refusal(const std::vector<std::byte>& bytes, const std::string& kernels = "") {
  Result<Gguf> file = Gguf::parse(bytes, "m.gguf");
  REQUIRE(file.ok());
  CpuOptions options;
  options.kernels = kernels;
  options.threads = 1;
  const auto made = cpu::make_llama_model(*file, options);
  REQUIRE_FALSE(made.ok());
  CHECK(made.status().code() == StatusCode::kInvalidArgument);
  return made.status().message();
}

TEST_CASE("model: a file that does not fit its own numbers is refused with what is wrong") {
  using Catch::Matchers::Contains;
  TinyLlama tiny;
  tiny.layers = 1;
  SECTION("a key says otherwise than the tensors") {
    tiny.claimed_ffn = 192;
    tiny.make();
    CHECK_THAT(refusal(tiny.builder.build()),
               Contains("blk.0.ffn_gate.weight is 96 x 160, must be 96 x 192"));
  }
  SECTION("a tensor that the graph would leave out") {
    tiny.make();
    tiny.builder.tensor_f32("blk.0.attn_q.bias", {96}, std::vector<float>(96));
    CHECK_THAT(refusal(tiny.builder.build()), Contains("blk.0.attn_q.bias"));
  }
  SECTION("a vector that is quantized") {
    tiny.head_dim = 64;
    tiny.make();
    tiny.builder.tensor("rope_freqs.weight", TensorType::kQ8_0, {32}, std::vector<std::byte>(34));
    CHECK_THAT(refusal(tiny.builder.build()), Contains("Q8_0") && Contains("vectors must be F32"));
  }
  SECTION("kernels this host does not have") {
    tiny.make();
    CHECK_THAT(refusal(tiny.builder.build(), "sve"), Contains("available: scalar"));
  }
  SECTION("another architecture") {
    CHECK_THAT(refusal(test::GgufBuilder().meta("general.architecture", "mamba").build()),
               Contains("mamba"));
  }
  SECTION("a million layers") {
    test::GgufBuilder hostile;
    hostile.meta("general.architecture", "llama").meta("llama.block_count", 1000000U);
    CHECK_THAT(refusal(hostile.build()), Contains("llama.block_count"));
  }
  SECTION("heads that do not divide") {
    tiny.heads = 4, tiny.kv_heads = 3;
    tiny.make();
    CHECK_THAT(refusal(tiny.builder.build()), Contains("head_count"));
  }
}

}  // namespace
}  // namespace kvd::engine
