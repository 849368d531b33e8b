// AVX2, FMA and F16C: row-wise functions and the table. Products are in avx2_linear.cc, attention
// in avx2_attention.cc.
#include "engine/cpu/avx2.h"

namespace kvd::engine::cpu {
namespace {

// Blocks whose numbers reach less far are all zero, or all their offset: the inverse of their scale
// would overflow.
constexpr float kTiny = 1e-30F;

// Where the parts of a row are (kernels.h), from block 0 on.
struct Int8Row {
  std::int8_t* values;
  float *scales, *sums, *offsets;
};

// Never -128: the product kernels could overflow on it.
KVD_INLINE void quantize_block(const float* x, std::uint32_t block, bool offsets,
                               const Int8Row& to) {
  __m256 v[4];
  for (int i = 0; i < 4; ++i) v[i] = _mm256_loadu_ps(x + 8 * i);
  const float most =
      avx2::max_lanes(_mm256_max_ps(_mm256_max_ps(v[0], v[1]), _mm256_max_ps(v[2], v[3])));
  const __m256 lowest = _mm256_min_ps(_mm256_min_ps(v[0], v[1]), _mm256_min_ps(v[2], v[3]));
  const float least = -avx2::max_lanes(_mm256_sub_ps(_mm256_setzero_ps(), lowest));
  const float offset = offsets ? 0.5F * least + 0.5F * most : 0.0F;
  const float above = most - offset, below = offset - least;
  const float reach = above > below ? above : below;
  const bool any = reach > kTiny;
  const float d = any ? reach / 127.0F : 0.0F;
  const __m256 inverse = _mm256_set1_ps(any ? 127.0F / reach : 0.0F);
  const __m256 middle = _mm256_set1_ps(offset);
  __m256i q[4];
  for (int i = 0; i < 4; ++i) {
    q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_sub_ps(v[i], middle), inverse));
  }
  const __m256i total =
      _mm256_add_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
  __m128i t = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4E));
  t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xB1));
  to.scales[block] = d;
  to.sums[block] = d * static_cast<float>(_mm_cvtsi128_si32(t)) + offset * kBlock;
  to.offsets[block] = offset;
  const __m256i bytes =
      _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.values + block * kBlock),
                      _mm256_permutevar8x32_epi32(bytes, order));
}

void quantize(const float* row, std::uint32_t columns, std::uint32_t begin, std::uint32_t end,
              bool offsets, std::byte* out) {
  const std::uint32_t blocks = columns / kBlock;
  auto* scales = reinterpret_cast<float*>(out + columns);
  const Int8Row to{reinterpret_cast<std::int8_t*>(out), scales, scales + blocks,
                   scales + std::size_t{2} * blocks};
  for (std::uint32_t b = begin; b < end; ++b) quantize_block(row + b * kBlock, b, offsets, to);
}

void rms_norm(const float* x, const float* weight, float epsilon, std::uint32_t count, float* out) {
  __m256 squares = _mm256_setzero_ps();
  for (std::uint32_t i = 0; i < count; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    squares = _mm256_fmadd_ps(v, v, squares);
  }
  const float mean = avx2::sum_lanes(squares) / static_cast<float>(count);
  const __m256 scale = _mm256_set1_ps(1.0F / __builtin_sqrtf(mean + epsilon));
  for (std::uint32_t i = 0; i < count; i += 8) {
    const __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), scale);
    _mm256_storeu_ps(out + i, _mm256_mul_ps(v, _mm256_loadu_ps(weight + i)));
  }
}

void swiglu(float* gate, const float* up, std::uint32_t count) {
  const __m256 one = _mm256_set1_ps(1.0F);
  for (std::uint32_t i = 0; i < count; i += 8) {
    const __m256 g = _mm256_loadu_ps(gate + i);
    const __m256 e = avx2::exp_ps(_mm256_sub_ps(_mm256_setzero_ps(), g));
    const __m256 silu = _mm256_div_ps(g, _mm256_add_ps(one, e));
    _mm256_storeu_ps(gate + i, _mm256_mul_ps(silu, _mm256_loadu_ps(up + i)));
  }
}

}  // namespace

const Kernels kAvx2Kernels = {"avx2",   int8_row_bytes, quantize,         avx2::linear,
                              rms_norm, swiglu,         avx2::kAttention, avx2::kAttention};

}  // namespace kvd::engine::cpu
