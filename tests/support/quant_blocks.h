// Random blocks of GGUF's Q5_0, Q5_1 and K-quant types, with the values they stand for in double
// precision: written down as ggml's own dequantize_row functions walk them, not as the engine reads
// them.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/rng.h"
#include "engine/gguf.h"

namespace kvd::test {

class QuantBlocks {
 public:
  using Vector = std::vector<double>;
  using Bytes = std::vector<std::byte>;

  // True when append() knows the type.
  static bool has(engine::TensorType type) {
    using engine::TensorType;
    return type == TensorType::kQ5_0 || type == TensorType::kQ5_1 || type == TensorType::kQ4_K ||
           type == TensorType::kQ5_K || type == TensorType::kQ6_K;
  }
  // Appends a block to `bytes` and its weights, of about `scale`, to `values`. The scales have few
  // digits, so that their products are exact in f16; `any_scale`: they have all, and are not.
  static void append(Rng& rng, engine::TensorType type, double scale, Bytes& bytes, Vector& values,
                     bool any_scale = false) {
    QuantBlocks block(rng, any_scale);
    switch (type) {
      case engine::TensorType::kQ5_0:
        return block.q5(false, scale / 10, bytes, values);
      case engine::TensorType::kQ5_1:
        return block.q5(true, scale / 10, bytes, values);
      case engine::TensorType::kQ4_K:
        return block.q4_k(false, scale / 160, bytes, values);
      case engine::TensorType::kQ5_K:
        return block.q4_k(true, scale / 320, bytes, values);
      default:
        return block.q6_k(scale / 700, bytes, values);
    }
  }

 private:
  QuantBlocks(Rng& rng, bool any_scale) : rng_(rng), any_scale_(any_scale) {}

  static void put16(Bytes& out, std::uint16_t v) {
    out.push_back(static_cast<std::byte>(v & 255));
    out.push_back(static_cast<std::byte>(v >> 8));
  }
  // A positive f16 of about `scale`.
  double half(Bytes& out, double scale) {
    const int exponent = static_cast<int>(std::floor(std::log2(scale)));
    const auto fraction =
        static_cast<std::uint16_t>(any_scale_ ? rng_.below(1024) : rng_.below(8) * 128);
    if (exponent >= -14) {
      put16(out, static_cast<std::uint16_t>((exponent + 15) << 10 | fraction));
      return std::ldexp(1.0 + fraction / 1024.0, exponent);
    }
    // Subnormal: a multiple of 2^-24.
    const auto multiple = static_cast<std::uint16_t>(std::max(1.0, std::round(scale * 0x1p24)));
    put16(out, multiple);
    return multiple * 0x1p-24;
  }
  template <std::size_t N>
  std::array<unsigned, N> random_bytes(Bytes& out) {
    std::array<unsigned, N> drawn;
    for (unsigned& b : drawn) {
      b = static_cast<unsigned>(rng_.below(256));
      out.push_back(static_cast<std::byte>(b));
    }
    return drawn;
  }

  void q5(bool has_min, double scale, Bytes& bytes, Vector& values) {
    const double d = half(bytes, scale);
    const double m = has_min ? half(bytes, scale * 4) : 0;
    const auto high = random_bytes<4>(bytes);
    const auto low = random_bytes<16>(bytes);
    const unsigned bits = high[0] | high[1] << 8 | high[2] << 16 | high[3] << 24;
    std::array<double, 32> block;
    for (unsigned j = 0; j < 16; ++j) {
      const unsigned top0 = (bits >> j) << 4 & 0x10U;
      const unsigned top1 = bits >> (j + 12) & 0x10U;
      const int x0 = static_cast<int>((low[j] & 15U) | top0);
      const int x1 = static_cast<int>((low[j] >> 4) | top1);
      block[j] = has_min ? d * x0 + m : d * (x0 - 16);
      block[j + 16] = has_min ? d * x1 + m : d * (x1 - 16);
    }
    values.insert(values.end(), block.begin(), block.end());
  }

  static void scale_and_min(unsigned j, const std::array<unsigned, 12>& q, unsigned* d,
                            unsigned* m) {
    if (j < 4) {
      *d = q[j] & 63U;
      *m = q[j + 4] & 63U;
    } else {
      *d = (q[j + 4] & 0xFU) | ((q[j - 4] >> 6) << 4);
      *m = (q[j + 4] >> 4) | ((q[j] >> 6) << 4);
    }
  }
  void q4_k(bool five, double scale, Bytes& bytes, Vector& values) {
    const double d = half(bytes, scale), min = half(bytes, scale * 4);
    const auto scales = random_bytes<12>(bytes);
    std::array<unsigned, 32> high = {};
    if (five) high = random_bytes<32>(bytes);
    const auto low = random_bytes<128>(bytes);
    unsigned is = 0, u1 = 1, u2 = 2;
    for (unsigned chunk = 0; chunk < 128; chunk += 32) {
      unsigned sc = 0, m = 0;
      scale_and_min(is, scales, &sc, &m);
      const double d1 = d * sc, m1 = min * m;
      scale_and_min(is + 1, scales, &sc, &m);
      const double d2 = d * sc, m2 = min * m;
      for (unsigned l = 0; l < 32; ++l) {
        values.push_back(d1 * ((low[chunk + l] & 0xFU) + ((high[l] & u1) != 0 ? 16 : 0)) - m1);
      }
      for (unsigned l = 0; l < 32; ++l) {
        values.push_back(d2 * ((low[chunk + l] >> 4) + ((high[l] & u2) != 0 ? 16 : 0)) - m2);
      }
      is += 2, u1 <<= 2, u2 <<= 2;
    }
  }

  void q6_k(double scale, Bytes& bytes, Vector& values) {
    const auto low = random_bytes<128>(bytes);
    const auto high = random_bytes<64>(bytes);
    std::array<int, 16> scales;
    for (int& s : scales) {
      // Six bits and a sign keep the products exact in f16.
      s = static_cast<int>(rng_.below(any_scale_ ? 256 : 128)) - (any_scale_ ? 128 : 64);
      bytes.push_back(static_cast<std::byte>(s & 255));
    }
    const double d = half(bytes, scale);
    std::array<double, 256> y;
    for (unsigned n = 0; n < 2; ++n) {
      const unsigned* ql = low.data() + n * 64;
      const unsigned* qh = high.data() + n * 32;
      const int* sc = scales.data() + n * 8;
      double* to = y.data() + n * 128;
      for (unsigned l = 0; l < 32; ++l) {
        const unsigned is = l / 16;
        const int q1 = static_cast<int>((ql[l] & 0xFU) | (qh[l] & 3U) << 4) - 32;
        const int q2 = static_cast<int>((ql[l + 32] & 0xFU) | (qh[l] >> 2 & 3U) << 4) - 32;
        const int q3 = static_cast<int>((ql[l] >> 4) | (qh[l] >> 4 & 3U) << 4) - 32;
        const int q4 = static_cast<int>((ql[l + 32] >> 4) | (qh[l] >> 6 & 3U) << 4) - 32;
        to[l] = d * sc[is] * q1;
        to[l + 32] = d * sc[is + 2] * q2;
        to[l + 64] = d * sc[is + 4] * q3;
        to[l + 96] = d * sc[is + 6] * q4;
      }
    }
    values.insert(values.end(), y.begin(), y.end());
  }

  Rng& rng_;
  bool any_scale_;
};

}  // namespace kvd::test
