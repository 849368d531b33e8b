// The oracle: float activations on dequantized weights, no instruction beyond x86-64's own.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/cpu/float16.h"
#include "engine/cpu/kernels.h"

namespace kvd::engine::cpu {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();

void quantize(const float*, std::uint32_t, std::uint32_t, std::uint32_t, bool, std::byte*) {}

// Four floats that every x86-64 (and every other) compiler target adds and multiplies at once; GCC
// keeps a plain array of sums in memory, at a quarter of the speed.
using Lanes = float __attribute__((vector_size(16)));

// sums[r] = weights[.][r] . in, in order of columns.
void dot_panel(const float* weights, const float* in, std::uint32_t columns, float* sums) {
  Lanes total[kPanelRows / 4] = {};
  for (std::uint32_t k = 0; k < columns; ++k, weights += kPanelRows) {
    for (std::uint32_t i = 0; i < kPanelRows / 4; ++i) {
      Lanes w;
      std::memcpy(&w, weights + 4 * i, sizeof w);
      total[i] += w * in[k];
    }
  }
  std::memcpy(sums, total, sizeof total);
}

void linear(const Matrix& matrix, std::uint32_t begin, std::uint32_t end, const Activations& x,
            std::uint32_t rows, float* out, std::size_t out_stride, bool add, std::byte* scratch) {
  auto* weights = reinterpret_cast<float*>(scratch);
  for (std::uint32_t panel = begin; panel < end; ++panel) {
    dequantize_panel(matrix, panel, weights);
    const std::uint32_t valid = std::min(kPanelRows, matrix.rows - panel * kPanelRows);
    for (std::uint32_t row = 0; row < rows; ++row) {
      float sums[kPanelRows];
      dot_panel(weights, x.floats + row * x.float_stride, matrix.columns, sums);
      float* to = out + row * out_stride + std::size_t{panel} * kPanelRows;
      for (std::uint32_t r = 0; r < valid; ++r) to[r] = add ? to[r] + sums[r] : sums[r];
    }
  }
}

void rms_norm(const float* x, const float* weight, float epsilon, std::uint32_t count, float* out) {
  double squares = 0;
  for (std::uint32_t i = 0; i < count; ++i) squares += double{x[i]} * double{x[i]};
  const auto scale = static_cast<float>(1.0 / std::sqrt(squares / count + double{epsilon}));
  for (std::uint32_t i = 0; i < count; ++i) out[i] = x[i] * scale * weight[i];
}

void swiglu(float* gate, const float* up, std::uint32_t count) {
  for (std::uint32_t i = 0; i < count; ++i) {
    gate[i] = gate[i] / (1.0F + std::exp(-gate[i])) * up[i];
  }
}

void rotate(float* head, const float* angles, std::uint32_t dims) {
  for (std::uint32_t i = 0; i < dims; i += 2) {
    const float x = head[i], y = head[i + 1], c = angles[i], s = angles[i + 1];
    head[i] = x * c - y * s;
    head[i + 1] = x * s + y * c;
  }
}

void to_bf16(const float* from, std::uint32_t count, std::uint16_t* to) {
  for (std::uint32_t i = 0; i < count; ++i) to[i] = float_to_bf16(from[i]);
}

void prepare_query(float* head, std::uint32_t head_dim, float scale) {
  for (std::uint32_t i = 0; i < head_dim; ++i) head[i] *= scale;
}

float element(const std::byte* row, std::uint32_t i) {
  std::uint16_t bits;
  std::memcpy(&bits, row + 2 * std::size_t{i}, sizeof bits);
  return bf16_to_float(bits);
}

void attend_row(const KvView& kv, std::uint32_t first, std::uint32_t count, const float* query,
                float* partial) {
  float scores[kKvBlock];
  float highest = kNothing;
  for (std::uint32_t j = 0; j < count; ++j) {
    const std::byte* key = token_at(kv, kv.key_offset, first + j);
    float score = 0;
    for (std::uint32_t i = 0; i < kv.head_dim; ++i) score += query[i] * element(key, i);
    scores[j] = score;
    highest = std::max(highest, score);
  }
  float sum = 0;
  std::fill(partial, partial + kv.head_dim, 0.0F);
  for (std::uint32_t j = 0; j < count; ++j) {
    const float weight = std::exp(scores[j] - highest);
    sum += weight;
    const std::byte* value = token_at(kv, kv.value_offset, first + j);
    for (std::uint32_t i = 0; i < kv.head_dim; ++i) partial[i] += weight * element(value, i);
  }
  partial[kv.head_dim] = highest;
  partial[kv.head_dim + 1] = sum;
}

void attend_block(const KvView& kv, std::uint32_t block, const Queries& queries,
                  std::uint32_t first_row, float* partials, std::byte*) {
  const std::uint32_t first = block * kKvBlock;
  for (std::uint32_t row = first_row; row < queries.rows; ++row) {
    const std::uint32_t token = row / queries.group;
    const std::uint32_t count = std::min(kKvBlock, queries.position + token - first + 1);
    const float* query =
        queries.data + token * queries.stride + std::size_t{row % queries.group} * kv.head_dim;
    attend_row(kv, first, count, query, partials + row * partial_stride(kv.head_dim));
  }
}

void merge(float* state, const float* partial, std::uint32_t head_dim) {
  const float highest = std::max(state[head_dim], partial[head_dim]);
  const float old_scale = std::exp(state[head_dim] - highest);
  const float new_scale = std::exp(partial[head_dim] - highest);
  for (std::uint32_t i = 0; i < head_dim; ++i) {
    state[i] = state[i] * old_scale + partial[i] * new_scale;
  }
  state[head_dim] = highest;
  state[head_dim + 1] = state[head_dim + 1] * old_scale + partial[head_dim + 1] * new_scale;
}

void finish(const float* state, std::uint32_t head_dim, float* out) {
  const float inverse = 1.0F / state[head_dim + 1];
  for (std::uint32_t i = 0; i < head_dim; ++i) out[i] = state[i] * inverse;
}

constexpr Attention kAttention = {rotate, to_bf16, prepare_query, attend_block, merge, finish};

}  // namespace

const Kernels kScalarKernels = {"scalar", nullptr, quantize,   linear,
                                rms_norm, swiglu,  kAttention, kAttention};

}  // namespace kvd::engine::cpu
