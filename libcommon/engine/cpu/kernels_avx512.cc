// AVX-512 (F, BW, DQ, VL, VNNI): row-wise functions and the tables. Products are in
// avx512_linear.cc and amx_linear.h, attention in avx512_attention.cc where the processor has bf16
// dot products too, else in avx2_attention.cc.
#include "engine/cpu/amx.h"
#include "engine/cpu/avx2.h"
#include "engine/cpu/avx512.h"

namespace kvd::engine::cpu {
namespace {

// Blocks whose largest value is below this are zero: the inverse of their scale would overflow.
constexpr float kTiny = 1e-30F;

// One block of 32: 127 levels each way, never -128, so that the bytes can be negated.
KVD_INLINE void quantize_block(const float* x, std::int8_t* values, float* scale, float* sum,
                               std::int32_t* start, std::int32_t* half_start) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
  const bool any = most > kTiny;
  const float d = any ? most / 127.0F : 0.0F;
  const __m512 inverse = _mm512_set1_ps(any ? 127.0F / most : 0.0F);
  const __m512i p = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
  const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
  const int half = _mm512_reduce_add_epi32(p), total = half + _mm512_reduce_add_epi32(q);
  *scale = d;
  *sum = d * static_cast<float>(total);
  *start = -128 * total;
  *half_start = -128 * half;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(values), _mm512_cvtsepi32_epi8(p));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(values + 16), _mm512_cvtsepi32_epi8(q));
}

void quantize(const float* row, std::uint32_t columns, std::uint32_t begin, std::uint32_t end,
              std::byte* out) {
  auto* values = reinterpret_cast<std::int8_t*>(out);
  auto* scales = reinterpret_cast<float*>(out + columns);
  float* sums = scales + columns / kBlock;
  auto* starts = reinterpret_cast<std::int32_t*>(sums + columns / kBlock);
  for (std::uint32_t b = begin; b < end; ++b) {
    quantize_block(row + b * kBlock, values + b * kBlock, scales + b, sums + b, starts + b,
                   starts + columns / kBlock + b);
  }
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
