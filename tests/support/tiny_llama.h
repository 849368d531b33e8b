// A random Llama of any shape and tensor type: as a GGUF file, and as a forward pass in double
// precision that shares no code with the engine. K and V are rounded to bf16, as in the pages.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/rng.h"
#include "engine/gguf.h"
#include "support/gguf_builder.h"
#include "support/quant_blocks.h"
#include "support/tiny_vocabulary.h"

namespace kvd::test {

struct TinyLlama {
  engine::TensorType type = engine::TensorType::kQ4_1;
  std::optional<engine::TensorType> up_type;  // of the up matrices, where it is another
  engine::TensorType embedding_type = engine::TensorType::kQ8_0;
  std::uint32_t layers = 2, hidden = 96, heads = 3, kv_heads = 1, head_dim = 32, ffn = 160;
  std::uint32_t vocab = 270, context = 1024;
  std::uint32_t claimed_ffn = 0;  // what the key says instead of ffn
  bool tied = true;
  std::uint64_t seed = 1;

  struct Weights {
    std::uint32_t columns = 0;
    std::vector<double> values;  // row after row
  };
  std::map<std::string, Weights> weights;
  GgufBuilder builder;

  // Draws the weights. Call once, after the fields are set.
  TinyLlama& make() {
    Rng rng(seed);
    builder.meta("general.architecture", "llama")
        .meta("llama.block_count", layers)
        .meta("llama.context_length", context)
        .meta("llama.embedding_length", hidden)
        .meta("llama.feed_forward_length", claimed_ffn == 0 ? ffn : claimed_ffn)
        .meta("llama.attention.head_count", heads)
        .meta("llama.attention.head_count_kv", kv_heads)
        .meta("llama.attention.key_length", head_dim)
        .meta("llama.attention.value_length", head_dim)
        .meta("llama.attention.layer_norm_rms_epsilon", 1e-5F)
        .meta("llama.rope.freq_base", 10000.0F);
    TinyVocabulary vocabulary;
    vocabulary.add_to(builder);
    add(rng, "token_embd.weight", embedding_type, hidden, vocab);
    if (!tied) add(rng, "output.weight", type, hidden, vocab);
    add_norm(rng, "output_norm.weight");
    for (std::uint32_t l = 0; l < layers; ++l) {
      const std::string p = "blk." + std::to_string(l) + ".";
      add_norm(rng, p + "attn_norm.weight");
      add_norm(rng, p + "ffn_norm.weight");
      add(rng, p + "attn_q.weight", type, hidden, heads * head_dim);
      add(rng, p + "attn_k.weight", type, hidden, kv_heads * head_dim);
      add(rng, p + "attn_v.weight", type, hidden, kv_heads * head_dim);
      add(rng, p + "attn_output.weight", type, heads * head_dim, hidden);
      add(rng, p + "ffn_gate.weight", type, hidden, ffn);
      add(rng, p + "ffn_up.weight", up_type.value_or(type), hidden, ffn);
      add(rng, p + "ffn_down.weight", type, ffn, hidden);
    }
    return *this;
  }

  // Logits after each token.
  std::vector<std::vector<double>> forward(const std::vector<TokenId>& tokens) const {
    std::vector<Cache> cache(layers);
    std::vector<std::vector<double>> logits;
    for (std::size_t i = 0; i < tokens.size(); ++i) logits.push_back(step(tokens[i], i, cache));
    return logits;
  }

 private:
  using Vector = std::vector<double>;
  struct Cache {
    std::vector<Vector> k, v;  // by token
  };

  static double bf16(double value) {
    auto as_float = static_cast<float>(value);
    std::uint32_t bits = 0;
    std::memcpy(&bits, &as_float, 4);
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000;
    std::memcpy(&as_float, &bits, 4);
    return as_float;
  }
  Vector times(const std::string& name, const Vector& x) const {
    const Weights& w = weights.at(name);
    Vector out(w.values.size() / w.columns, 0.0);
    for (std::size_t r = 0; r < out.size(); ++r) {
      for (std::uint32_t k = 0; k < w.columns; ++k) out[r] += w.values[r * w.columns + k] * x[k];
    }
    return out;
  }
  Vector norm(const std::string& name, const Vector& x) const {
    double squares = 0;
    for (double v : x) squares += v * v;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + double{1e-5F});
    Vector out(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) out[i] = x[i] * scale * weights.at(name).values[i];
    return out;
  }
  void rope(Vector& x, std::size_t position) const {
    for (std::size_t i = 0; i < x.size(); i += 2) {
      const double pair = static_cast<double>(i % head_dim);
      const double angle = static_cast<double>(position) * std::pow(10000.0, -pair / head_dim);
      const double a = x[i], b = x[i + 1];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
  }
  Vector attend(const Vector& q, const Cache& cache) const {
    Vector out(q.size(), 0.0);
    for (std::uint32_t h = 0; h < heads; ++h) {
      const std::size_t at = std::size_t{h} * head_dim;
      const std::size_t kv = std::size_t{h} / (heads / kv_heads) * head_dim;
      Vector scores;
      for (const Vector& k : cache.k) {
        double s = 0;
        for (std::uint32_t i = 0; i < head_dim; ++i) s += q[at + i] * k[kv + i];
        scores.push_back(s / std::sqrt(static_cast<double>(head_dim)));
      }
      const double most = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (double& s : scores) sum += s = std::exp(s - most);
      for (std::size_t j = 0; j < scores.size(); ++j) {
        for (std::uint32_t i = 0; i < head_dim; ++i) {
          out[at + i] += scores[j] / sum * cache.v[j][kv + i];
        }
      }
    }
    return out;
  }
  Vector step(TokenId token, std::size_t position, std::vector<Cache>& cache) const {
    const Weights& embedding = weights.at("token_embd.weight");
    const auto row = embedding.values.begin() + static_cast<std::ptrdiff_t>(token) * hidden;
    Vector x(row, row + hidden);
    const auto add_to_x = [&x](const Vector& y) {
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
    };
    for (std::uint32_t l = 0; l < layers; ++l) {
      const std::string p = "blk." + std::to_string(l) + ".";
      const Vector n = norm(p + "attn_norm.weight", x);
      Vector q = times(p + "attn_q.weight", n), k = times(p + "attn_k.weight", n);
      Vector v = times(p + "attn_v.weight", n);
      rope(q, position);
      rope(k, position);
      for (double& e : k) e = bf16(e);
      for (double& e : v) e = bf16(e);
      cache[l].k.push_back(k);
      cache[l].v.push_back(v);
      add_to_x(times(p + "attn_output.weight", attend(q, cache[l])));
      const Vector m = norm(p + "ffn_norm.weight", x);
      Vector gate = times(p + "ffn_gate.weight", m);
      const Vector up = times(p + "ffn_up.weight", m);
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] *= up[i] / (1 + std::exp(-gate[i]));
      add_to_x(times(p + "ffn_down.weight", gate));
    }
    return times(tied ? "token_embd.weight" : "output.weight", norm("output_norm.weight", x));
  }

  void add_norm(Rng& rng, const std::string& name) {
    std::vector<float> values(hidden);
    for (float& v : values) v = static_cast<float>(0.5 + rng.uniform());
    builder.tensor_f32(name, {hidden}, values);
    weights[name] = {hidden, Vector(values.begin(), values.end())};
  }

  static void put16(std::vector<std::byte>& out, std::uint16_t v) {
    out.push_back(static_cast<std::byte>(v & 255));
    out.push_back(static_cast<std::byte>(v >> 8));
  }
  // A power of two in f16, negative with `sign`, about `scale`.
  static std::uint16_t half_power(Rng& rng, double scale, double* value, bool sign = false) {
    const int exponent =
        static_cast<int>(std::lround(std::log2(scale))) - static_cast<int>(rng.below(2));
    const auto fraction = static_cast<std::uint16_t>(rng.below(1024));
    *value = std::ldexp(1.0 + fraction / 1024.0, exponent) * (sign ? -1 : 1);
    return static_cast<std::uint16_t>((sign ? 0x8000 : 0) | ((exponent + 15) << 10) | fraction);
  }

  void add(Rng& rng, const std::string& name, engine::TensorType kind, std::uint32_t columns,
           std::uint32_t rows) {
    using engine::TensorType;
    const double scale = 1.0 / std::sqrt(static_cast<double>(columns));  // of one weight
    Weights w{columns, {}};
    std::vector<std::byte> bytes;
    const std::size_t count = std::size_t{columns} * rows;
    const bool quantized =
        kind == TensorType::kQ4_0 || kind == TensorType::kQ4_1 || kind == TensorType::kQ8_0;
    const bool wide = QuantBlocks::has(kind);
    const engine::TensorTypeInfo* info = engine::tensor_type_info(static_cast<std::uint32_t>(kind));
    for (std::size_t i = 0; i < count; i += info->block) {
      if (wide)
        QuantBlocks::append(rng, kind, scale, bytes, w.values);
      else if (kind == TensorType::kQ8_0)
        add_q8(rng, scale / 80, bytes, w.values);
      else if (quantized)
        add_q4(rng, kind == TensorType::kQ4_1, scale / 5, bytes, w.values);
      else
        add_float(rng, kind, scale, bytes, w.values);
    }
    builder.tensor(name, kind, {columns, rows}, bytes);
    weights[name] = std::move(w);
  }
  static void add_q8(Rng& rng, double scale, std::vector<std::byte>& bytes, Vector& values) {
    double d = 0;
    put16(bytes, half_power(rng, scale, &d));
    for (int i = 0; i < 32; ++i) {
      const int q = static_cast<int>(rng.below(256)) - 128;
      bytes.push_back(static_cast<std::byte>(q & 255));
      values.push_back(d * q);
    }
  }
  static void add_q4(Rng& rng, bool has_min, double scale, std::vector<std::byte>& bytes,
                     Vector& values) {
    double d = 0, m = 0;
    put16(bytes, half_power(rng, scale, &d));
    if (has_min)
      put16(bytes, half_power(rng, scale * 8, &m, true));
    else
      m = -8 * d;
    const std::size_t base = values.size();
    values.resize(base + 32);
    for (std::size_t i = 0; i < 16; ++i) {
      const auto low = static_cast<unsigned>(rng.below(16)),
                 high = static_cast<unsigned>(rng.below(16));
      bytes.push_back(static_cast<std::byte>(low | high << 4));
      values[base + i] = d * low + m;
      values[base + i + 16] = d * high + m;
    }
  }
  static void add_float(Rng& rng, engine::TensorType kind, double scale,
                        std::vector<std::byte>& bytes, Vector& values) {
    if (kind == engine::TensorType::kF16) {
      double value = 0;
      put16(bytes, half_power(rng, scale, &value, rng.chance(0.5)));
      values.push_back(value);
      return;
    }
    auto value = static_cast<float>((rng.uniform() * 2 - 1) * scale * 1.7);
    if (kind == engine::TensorType::kBF16) value = static_cast<float>(bf16(value));
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, 4);
    if (kind == engine::TensorType::kF32) put16(bytes, static_cast<std::uint16_t>(bits));
    put16(bytes, static_cast<std::uint16_t>(bits >> 16));
    values.push_back(value);
  }
};

}  // namespace kvd::test
