#include "oracle.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <string>
#include <thread>

#include "engine/cpu/pack.h"

namespace kvd::test {
namespace {

namespace cpu = engine::cpu;
using Vector = std::vector<double>;

// One activation row a token.
struct Rows {
  std::size_t width = 0;
  Vector values;
  Rows(std::size_t count, std::size_t w) : width(w), values(count * w) {}
  double* row(std::size_t i) { return values.data() + i * width; }
  const double* row(std::size_t i) const { return values.data() + i * width; }
};

double dot(const double* a, const double* b, std::size_t count) {
  using Lanes = double __attribute__((vector_size(16)));
  Lanes sums[4] = {};
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (std::size_t j = 0; j < 4; ++j) {
      Lanes x, y;
      __builtin_memcpy(&x, a + i + 2 * j, sizeof x);
      __builtin_memcpy(&y, b + i + 2 * j, sizeof y);
      sums[j] += x * y;
    }
  }
  const Lanes all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  double sum = all[0] + all[1];
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

class Oracle {
 public:
  Oracle(const engine::Gguf& file, const cpu::LlamaConfig& config, unsigned threads)
      : file_(file), config_(config), threads_(threads) {}

  std::vector<float> run(const std::vector<TokenId>& tokens) {
    Rows x = embed(tokens);
    for (std::uint32_t l = 0; l < config_.layers; ++l) layer(l, x);
    const Rows last = norm("output_norm.weight", x);
    const bool tied = file_.find("output.weight") == nullptr;
    const Rows logits = times(tied ? "token_embd.weight" : "output.weight", last);
    return {logits.values.begin(), logits.values.end()};
  }

 private:
  // Calls work(i) for each i on all threads.
  void share(std::size_t count, const std::function<void(std::size_t)>& work) const {
    std::atomic<std::size_t> next{0};
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < threads_; ++t) {
      threads.emplace_back([&] {
        for (std::size_t i; (i = next.fetch_add(1)) < count;) work(i);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  Rows embed(const std::vector<TokenId>& tokens) const {
    const engine::Tensor& tensor = *file_.find("token_embd.weight");
    Rows x(tokens.size(), config_.hidden);
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      const auto token = static_cast<std::uint32_t>(tokens[t]);
      std::vector<double> rows = panel(tensor, token / cpu::kPanelRows);
      for (std::uint32_t k = 0; k < config_.hidden; ++k) {
        x.row(t)[k] = rows[k * cpu::kPanelRows + token % cpu::kPanelRows];
      }
    }
    return x;
  }

  // Sixteen rows of a matrix, [column][row].
  static std::vector<double> panel(const engine::Tensor& tensor, std::uint32_t index) {
    cpu::Matrix matrix = cpu::plan_matrix(tensor).value();
    std::vector<std::byte> packed(matrix.panel_bytes);
    cpu::pack_panel(tensor, matrix, index, packed.data());
    matrix.data = packed.data();
    std::vector<float> floats(std::size_t{matrix.columns} * cpu::kPanelRows);
    cpu::dequantize_panel(matrix, 0, floats.data());
    return {floats.begin(), floats.end()};
  }

  Rows times(const std::string& name, const Rows& x) const {
    const engine::Tensor& tensor = *file_.find(name);
    const std::size_t count = x.values.size() / x.width, rows = tensor.rows();
    Rows out(count, rows);
    share((rows + cpu::kPanelRows - 1) / cpu::kPanelRows, [&](std::size_t p) {
      const std::vector<double> weights = panel(tensor, static_cast<std::uint32_t>(p));
      Vector row(x.width);
      for (std::size_t r = p * cpu::kPanelRows; r < std::min(rows, (p + 1) * cpu::kPanelRows);
           ++r) {
        for (std::size_t k = 0; k < x.width; ++k) {
          row[k] = weights[k * cpu::kPanelRows + r % cpu::kPanelRows];
        }
        for (std::size_t t = 0; t < count; ++t) out.row(t)[r] = dot(row.data(), x.row(t), x.width);
      }
    });
    return out;
  }

  Rows norm(const std::string& name, const Rows& x) const {
    std::vector<float> weight(x.width);
    (void)cpu::read_vector(*file_.find(name), weight.data()).ok();
    Rows out = x;
    for (std::size_t t = 0; t < x.values.size() / x.width; ++t) {
      double* row = out.row(t);
      const double mean = dot(row, row, x.width) / static_cast<double>(x.width);
      const double scale = 1 / std::sqrt(mean + double{config_.norm_epsilon});
      for (std::size_t k = 0; k < x.width; ++k) row[k] *= scale * double{weight[k]};
    }
    return out;
  }

  // Interleaved pairs, position t for row t.
  void rope(Rows& x) const {
    for (std::size_t t = 0; t < x.values.size() / x.width; ++t) {
      for (std::size_t i = 0; i < x.width; i += 2) {
        const std::size_t pair = i % config_.head_dim;
        if (pair >= config_.rope_dim) continue;
        const double power = -static_cast<double>(pair) / config_.rope_dim;
        const double angle =
            static_cast<double>(t) / config_.rope_scale * std::pow(config_.rope_base, power);
        double* at = x.row(t) + i;
        const double a = at[0], b = at[1];
        at[0] = a * std::cos(angle) - b * std::sin(angle);
        at[1] = a * std::sin(angle) + b * std::cos(angle);
      }
    }
  }

  Rows attend(const Rows& q, const Rows& k, const Rows& v) const {
    const std::size_t dim = config_.head_dim;
    Rows out(q.values.size() / q.width, q.width);
    share(q.values.size() / q.width, [&](std::size_t t) {
      Vector scores(t + 1);
      for (std::size_t h = 0; h < config_.heads; ++h) {
        const std::size_t kv = h / config_.group() * dim;
        for (std::size_t j = 0; j <= t; ++j) {
          const double score = dot(q.row(t) + h * dim, k.row(j) + kv, dim);
          scores[j] = score / std::sqrt(static_cast<double>(dim));
        }
        const double most = *std::max_element(scores.begin(), scores.end());
        double sum = 0;
        for (double& s : scores) sum += s = std::exp(s - most);
        for (std::size_t j = 0; j <= t; ++j) {
          for (std::size_t i = 0; i < dim; ++i) {
            out.row(t)[h * dim + i] += scores[j] / sum * v.row(j)[kv + i];
          }
        }
      }
    });
    return out;
  }

  void layer(std::uint32_t index, Rows& x) const {
    const std::string p = "blk." + std::to_string(index) + ".";
    const auto add = [&x](const Rows& y) {
      for (std::size_t i = 0; i < x.values.size(); ++i) x.values[i] += y.values[i];
    };
    const Rows n = norm(p + "attn_norm.weight", x);
    Rows q = times(p + "attn_q.weight", n), k = times(p + "attn_k.weight", n);
    const Rows v = times(p + "attn_v.weight", n);
    rope(q);
    rope(k);
    add(times(p + "attn_output.weight", attend(q, k, v)));
    const Rows m = norm(p + "ffn_norm.weight", x);
    Rows gate = times(p + "ffn_gate.weight", m);
    const Rows up = times(p + "ffn_up.weight", m);
    for (std::size_t i = 0; i < gate.values.size(); ++i) {
      gate.values[i] *= up.values[i] / (1 + std::exp(-gate.values[i]));
    }
    add(times(p + "ffn_down.weight", gate));
  }

  const engine::Gguf& file_;
  const cpu::LlamaConfig& config_;
  const unsigned threads_;
};

}  // namespace

std::vector<float> oracle_logits(const engine::Gguf& file, const cpu::LlamaConfig& config,
                                 const std::vector<TokenId>& tokens, unsigned threads) {
  return Oracle(file, config, threads).run(tokens);
}

}  // namespace kvd::test
