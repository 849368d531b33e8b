// Each instruction set's attention over scattered pages against plain double arithmetic.
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <memory>
#include <vector>

#include "base/rng.h"
#include "engine/cpu/dispatch.h"
#include "engine/cpu/float16.h"
#include "engine/cpu/kernels.h"

namespace kvd::engine::cpu {
namespace {

struct Shape {
  std::uint32_t head_dim, group, page_size;
};

// One KV head of one layer of one sequence: tokens 0..count, in pages that lie in reverse.
class Rig {
 public:
  Rig(Shape shape, std::uint32_t tokens, std::uint64_t seed) : shape_(shape), tokens_(tokens) {
    Rng rng(seed);
    const std::uint32_t page_count = (tokens + shape.page_size - 1) / shape.page_size;
    const std::size_t side = std::size_t{shape.page_size} * shape.head_dim;
    // NaN in every place that no token has.
    pool_.assign(page_count * side * 2, 0x7FC1);
    for (std::uint32_t p = 0; p < page_count; ++p) pages_.push_back(page_count - 1 - p);
    for (std::uint32_t t = 0; t < tokens; ++t) {
      for (std::uint32_t i = 0; i < shape.head_dim; ++i) {
        at(false, t, i) = float_to_bf16(static_cast<float>(rng.uniform() * 2 - 1));
        at(true, t, i) = float_to_bf16(static_cast<float>(rng.uniform() * 2 - 1));
      }
    }
  }
  std::uint16_t& at(bool value, std::uint32_t token, std::uint32_t i) {
    const std::size_t side = std::size_t{shape_.page_size} * shape_.head_dim;
    return pool_[(pages_[token / shape_.page_size] * 2 + (value ? 1 : 0)) * side +
                 std::size_t{token % shape_.page_size} * shape_.head_dim + i];
  }
  KvView view() const {
    const std::size_t side = std::size_t{shape_.page_size} * shape_.head_dim * 2;
    return {reinterpret_cast<const std::byte*>(pool_.data()),
            pages_.data(),
            2 * side,
            0,
            side,
            shape_.page_size,
            shape_.head_dim,
            tokens_};
  }
  // Attention of one query, scaled already, over tokens 0..last.
  std::vector<double> expect(const float* query, std::uint32_t last) {
    std::vector<double> weights(last + 1), out(shape_.head_dim);
    double sum = 0;
    for (std::uint32_t t = 0; t <= last; ++t) {
      double score = 0;
      for (std::uint32_t i = 0; i < shape_.head_dim; ++i) {
        score += double{query[i]} * double{bf16_to_float(at(false, t, i))};
      }
      sum += weights[t] = std::exp(score);
    }
    for (std::uint32_t t = 0; t <= last; ++t) {
      for (std::uint32_t i = 0; i < shape_.head_dim; ++i) {
        out[i] += weights[t] / sum * double{bf16_to_float(at(true, t, i))};
      }
    }
    return out;
  }

 private:
  Shape shape_;
  std::uint32_t tokens_;
  std::vector<std::uint16_t> pool_;
  std::vector<std::uint32_t> pages_;
};

// The last `rows / group` tokens ask, block after block.
std::vector<float> attend(const Attention& attention, const KvView& kv, Shape shape,
                          std::uint32_t position, std::uint32_t rows, std::vector<float> queries) {
  for (std::uint32_t r = 0; r < rows; ++r) {
    attention.prepare_query(queries.data() + r * shape.head_dim, shape.head_dim, 1.0F);
  }
  const Queries asked{queries.data(), std::size_t{shape.group} * shape.head_dim, shape.group,
                      position, rows};
  const std::size_t stride = partial_stride(shape.head_dim);
  std::vector<float> states(rows * stride), partials(rows * stride);
  const std::size_t scratch_bytes = attend_scratch_bytes(shape.head_dim);
  const std::unique_ptr<std::byte, void (*)(void*)> scratch(
      static_cast<std::byte*>(std::aligned_alloc(64, scratch_bytes)), std::free);
  const std::uint32_t last = position + rows / shape.group - 1;
  for (std::uint32_t b = 0; b * kKvBlock <= last; ++b) {
    const std::uint32_t first_token = std::max(b * kKvBlock, position) - position;
    const std::uint32_t first_row = first_token * shape.group;
    float* to = b == 0 ? states.data() : partials.data();
    attention.attend_block(kv, b, asked, first_row, to, scratch.get());
    for (std::uint32_t r = first_row; b != 0 && r < rows; ++r) {
      attention.merge(states.data() + r * stride, partials.data() + r * stride, shape.head_dim);
    }
  }
  std::vector<float> out(std::size_t{rows} * shape.head_dim);
  for (std::uint32_t r = 0; r < rows; ++r) {
    attention.finish(states.data() + r * stride, shape.head_dim, out.data() + r * shape.head_dim);
  }
  return out;
}

void check(const Attention& attention, Shape shape, std::uint32_t tokens, std::uint32_t asking,
           double limit) {
  Rig rig(shape, tokens, tokens + shape.head_dim);
  Rng rng(9);
  const std::uint32_t rows = asking * shape.group, position = tokens - asking;
  std::vector<float> queries(std::size_t{rows} * shape.head_dim);
  for (float& q : queries) q = static_cast<float>(rng.uniform() - 0.5);
  const std::vector<float> ours = attend(attention, rig.view(), shape, position, rows, queries);
  double worst = 0;
  for (std::uint32_t r = 0; r < rows; ++r) {
    const float* query = queries.data() + r * shape.head_dim;
    const std::vector<double> expected = rig.expect(query, position + r / shape.group);
    for (std::uint32_t i = 0; i < shape.head_dim; ++i) {
      // A NaN fails too: the comparison is the other way round.
      const double error = std::fabs(expected[i] - double{ours[r * shape.head_dim + i]});
      if (!(error <= worst)) worst = error;
    }
  }
  CAPTURE(shape.head_dim, shape.group, shape.page_size, tokens, asking);
  CHECK(worst < limit);
}

TEST_CASE("attention: every shape gives what double arithmetic gives") {
  const std::uint32_t head_dim = GENERATE(64U, 80U, 96U, 128U);
  const std::uint32_t group = GENERATE(1U, 3U, 8U);
  const std::uint32_t page_size = GENERATE(32U, 64U, 96U);
  for (const std::string& name : available_kernels()) {
    CAPTURE(name);
    const Kernels& kernels = *select_kernels(name).value();
    const Shape shape{head_dim, group, page_size};
    // bf16 queries and weights err by 2^-9 of values up to 1; floats hardly.
    for (const auto& [tokens, asking] :
         {std::pair{1U, 1U}, {16U, 1U}, {64U, 1U}, {67U, 3U}, {131U, 1U}, {193U, 29U}}) {
      check(kernels.attention, shape, tokens, asking, 6e-3);
      check(kernels.exact_attention, shape, tokens, asking, 2e-6);
    }
  }
}

TEST_CASE("attention: what is asked for is what is read next") {
  const std::uint32_t head_dim = GENERATE(64U, 80U, 128U);
  const std::uint32_t page_size = GENERATE(32U, 64U, 96U);
  const std::uint32_t end = GENERATE(1U, 15U, 32U, 33U, 64U, 65U, 80U, 81U, 97U, 128U, 192U);
  CAPTURE(head_dim, page_size, end);
  Rig rig({head_dim, 1, page_size}, 192, 1);
  KvView kv = rig.view();
  kv.end = end;  // of a task, whose sequence goes on
  const std::vector<std::byte> other(2);
  if (GENERATE(false, true)) kv.after = {other.data(), other.data() + 1};
  // Both runs have the bytes of the tokens from `token` on, in their order.
  const auto check_runs = [&](const KvRuns& runs, std::size_t offset, std::uint32_t token) {
    const std::size_t bytes = std::size_t{head_dim} * 2;
    const std::uint32_t tokens = std::min(kKvBlock, end - token);
    const auto place = [&](std::size_t at) {
      return token_at(kv, offset, token + static_cast<std::uint32_t>(at / bytes)) + at % bytes;
    };
    const std::size_t in_first = tokens > kKvTogether ? kKvTogether * bytes : tokens * bytes / 2;
    std::size_t wrong = 0;
    for (std::size_t at = 0; at < tokens * bytes; ++at) {
      const bool in_second = at >= in_first;
      const std::byte* asked = in_second ? runs.second + (at - in_first) : runs.first + at;
      if (asked != place(at)) ++wrong;
    }
    CHECK(wrong == 0);
  };
  for (std::uint32_t block = 0; block < end; block += kKvBlock) {
    CAPTURE(block);
    check_runs(read_after_keys(kv, block), kv.value_offset, block);
    const KvRuns next = read_after_values(kv, block);
    if (block + kKvBlock + kKvFew < end) {
      check_runs(next, kv.key_offset, block + kKvBlock);
    } else if (kv.after.first != nullptr) {
      CHECK(next.first == kv.after.first);
      CHECK(next.second == kv.after.second);
    } else {
      check_runs(next, kv.value_offset, block);
    }
  }
}

TEST_CASE("attention: rotation and rounding are the same on every instruction set") {
  Rng rng(3);
  std::vector<float> head(96), angles(96);
  for (std::size_t i = 0; i < 96; ++i) {
    head[i] = static_cast<float>(rng.uniform() * 2 - 1);
    angles[i] = static_cast<float>(rng.uniform() * 2 - 1);
  }
  // A tie, infinity and what is no number.
  head[90] = bits_to_float(0x3F808000), head[91] = bits_to_float(0x7F800000);
  head[92] = bits_to_float(0x7F800001), head[93] = bits_to_float(0x00000001);
  for (const std::string& name : available_kernels()) {
    CAPTURE(name);
    const Attention& attention = select_kernels(name).value()->attention;
    std::vector<std::uint16_t> words(96);
    attention.to_bf16(head.data(), 96, words.data());
    for (std::size_t i = 0; i < 96; ++i) CHECK(words[i] == float_to_bf16(head[i]));
    for (std::uint32_t dims : {64U, 42U, 8U, 2U}) {
      std::vector<float> rotated = head;
      attention.rotate(rotated.data(), angles.data(), dims);
      for (std::uint32_t i = 0; i < dims; i += 2) {
        const double x{head[i]}, y{head[i + 1]}, c{angles[i]}, s{angles[i + 1]};
        CHECK(double{rotated[i]} == Approx(x * c - y * s).margin(1e-7));
        CHECK(double{rotated[i + 1]} == Approx(x * s + y * c).margin(1e-7));
      }
      CHECK(std::equal(rotated.begin() + dims, rotated.begin() + 90, head.begin() + dims));
    }
  }
}

}  // namespace
}  // namespace kvd::engine::cpu
