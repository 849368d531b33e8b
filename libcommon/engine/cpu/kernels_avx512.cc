// AVX-512 (F, BW, DQ, VL, VNNI): row-wise functions and the tables. Products are in
// avx512_linear.cc and amx_linear.h, attention in avx512_attention.cc where the processor has bf16
// dot products too, else in avx2_attention.cc.
#include "engine/cpu/amx.h"
#include "engine/cpu/avx2.h"
#include "engine/cpu/avx512.h"

namespace kvd::engine::cpu {
namespace {

// Blocks whose numbers reach less far are all zero, or all their offset: the inverse of their scale
// would overflow.
constexpr float kTiny = 1e-30F;

// Where the parts of a row are (kernels.h), from block 0 on.
struct Int8Row {
  std::int8_t* values;
  float *scales, *sums, *offsets;
  std::int32_t *starts, *half_starts;
};

// Never -128, so that the bytes can be negated.
KVD_INLINE void quantize_block(const float* x, std::uint32_t block, bool offsets,
                               const Int8Row& to) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  const float least = _mm512_reduce_min_ps(_mm512_min_ps(a, b));
  const float most = _mm512_reduce_max_ps(_mm512_max_ps(a, b));
  const float offset = offsets ? 0.5F * least + 0.5F * most : 0.0F;
  const float above = most - offset, below = offset - least;
  const float reach = above > below ? above : below;
  const bool any = reach > kTiny;
  const float d = any ? reach / 127.0F : 0.0F;
  const __m512 inverse = _mm512_set1_ps(any ? 127.0F / reach : 0.0F);
  const __m512 middle = _mm512_set1_ps(offset);
  const __m512i p = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(a, middle), inverse));
  const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(b, middle), inverse));
  const int half = _mm512_reduce_add_epi32(p), total = half + _mm512_reduce_add_epi32(q);
  to.scales[block] = d;
  to.sums[block] = d * static_cast<float>(total) + offset * kBlock;
  to.offsets[block] = offset;
  to.starts[block] = -128 * total;
  to.half_starts[block] = -128 * half;
  auto* values = reinterpret_cast<__m128i*>(to.values + block * kBlock);
  _mm_storeu_si128(values, _mm512_cvtsepi32_epi8(p));
  _mm_storeu_si128(values + 1, _mm512_cvtsepi32_epi8(q));
}

void quantize(const float* row, std::uint32_t columns, std::uint32_t begin, std::uint32_t end,
              bool offsets, std::byte* out) {
  const std::uint32_t blocks = columns / kBlock;
  auto* scales = reinterpret_cast<float*>(out + columns);
  auto* starts = reinterpret_cast<std::int32_t*>(scales + std::size_t{3} * blocks);
  const Int8Row to{reinterpret_cast<std::int8_t*>(out), scales, scales + blocks,
                   scales + std::size_t{2} * blocks,    starts, starts + blocks};
  for (std::uint32_t b = begin; b < end; ++b) quantize_block(row + b * kBlock, b, offsets, to);
}

void rms_norm(const float* x, const float* weight, float epsilon, std::uint32_t count, float* out) {
  __m512 squares = _mm512_setzero_ps();
  for (std::uint32_t i = 0; i < count; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(avx512::first_lanes(count - i), x + i);
    squares = _mm512_fmadd_ps(v, v, squares);
  }
  const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(count);
  const __m512 scale = _mm512_set1_ps(1.0F / __builtin_sqrtf(mean + epsilon));
  for (std::uint32_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = avx512::first_lanes(count - i);
    const __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), scale);
    _mm512_mask_storeu_ps(out + i, lanes,
                          _mm512_mul_ps(v, _mm512_maskz_loadu_ps(lanes, weight + i)));
  }
}

void swiglu(float* gate, const float* up, std::uint32_t count) {
  const __m512 one = _mm512_set1_ps(1.0F);
  for (std::uint32_t i = 0; i < count; i += 16) {
    const __mmask16 lanes = avx512::first_lanes(count - i);
    const __m512 g = _mm512_maskz_loadu_ps(lanes, gate + i);
    const __m512 e = avx512::exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), g));
    const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, e));
    _mm512_mask_storeu_ps(gate + i, lanes,
                          _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(lanes, up + i)));
  }
}

constexpr Attention kBf16Attention = {avx2::rotate,         avx2::to_bf16, avx512::prepare_query,
                                      avx512::attend_block, avx512::merge, avx512::finish};

}  // namespace

const Kernels kAvx512Kernels = {"avx512", int8_row_bytes, quantize,       avx512::linear,
                                rms_norm, swiglu,         kBf16Attention, avx2::kAttention};

// Processors before bf16 dot products (Cascade Lake, Ice Lake).
const Kernels kAvx512FloatKernels = {"avx512", int8_row_bytes, quantize,         avx512::linear,
                                     rms_norm, swiglu,         avx2::kAttention, avx2::kAttention};

// Unpacking to bf16 pays off from some rows on; up to those int8 products are faster.
const Kernels kAmxKernels = {"amx",  amx::row_bytes, amx::to_parts,    amx::linear,    rms_norm,
                             swiglu, kBf16Attention, avx2::kAttention, &kAvx512Kernels};

}  // namespace kvd::engine::cpu
