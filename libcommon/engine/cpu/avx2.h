// What the AVX2 kernel files share. Only for files compiled with -mavx2 -mfma -mf16c: everything
// here is static, so that no copy of it is linked into code for older processors.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "engine/cpu/kernels.h"

#define KVD_INLINE static inline __attribute__((always_inline))
#define KVD_MEMBER inline __attribute__((always_inline))

namespace kvd::engine::cpu::avx2 {

void linear(const Matrix& matrix, std::uint32_t begin, std::uint32_t end, const Activations& x,
            std::uint32_t rows, float* out, std::size_t out_stride, bool add, std::byte* scratch);
// Of kQ5 and kQ6 (avx2_wide.cc).
void linear_wide(const Matrix& matrix, std::uint32_t begin, std::uint32_t end, const Activations& x,
                 std::uint32_t rows, float* out, std::size_t out_stride, bool add);
void rotate(float* head, const float* angles, std::uint32_t dims);
void to_bf16(const float* from, std::uint32_t count, std::uint16_t* to);
void prepare_query(float* head, std::uint32_t head_dim, float scale);
void attend_block(const KvView& kv, std::uint32_t block, const Queries& queries,
                  std::uint32_t first_row, float* partials, std::byte* scratch);
void merge(float* state, const float* partial, std::uint32_t head_dim);
void finish(const float* state, std::uint32_t head_dim, float* out);
constexpr Attention kAttention = {rotate, to_bf16, prepare_query, attend_block, merge, finish};

// acc += w * x. As one piece of assembly: left to itself GCC 12 computes all products of the loop
// first and spills them, which costs two thirds of the speed.
KVD_INLINE void multiply_add(__m256i& acc, __m256i w, __m256i x) {
  __m256i product;
  asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(acc), "=&x"(product) : "x"(w), "x"(x));
}

// Sums of the four bytes of each 32-bit lane; unsigned bytes, or signed ones.
KVD_INLINE __m256i sum_unsigned(__m256i bytes) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
}
KVD_INLINE __m256i sum_signed(__m256i bytes) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
}

// Where the parts of T tokens' rows of int8 activations are (kernels.h).
template <int T>
struct Int8Rows {
  const std::uint8_t* values[T];
  const float* scales[T];
  const float* sums[T];
  const float* offsets[T];

  KVD_MEMBER Int8Rows(const Activations& x, std::uint32_t row, std::size_t columns) {
    for (std::uint32_t t = 0; t < T; ++t) {
      const std::byte* at = x.quantized + (row + t) * x.quantized_stride;
      values[t] = reinterpret_cast<const std::uint8_t*>(at);
      scales[t] = reinterpret_cast<const float*>(at + columns);
      sums[t] = scales[t] + columns / kBlock;
      offsets[t] = sums[t] + columns / kBlock;
    }
  }
};

KVD_INLINE __m256i load(const std::uint8_t* at) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
}
KVD_INLINE __m256i broadcast4(const std::uint8_t* at) {
  std::int32_t word;
  __builtin_memcpy(&word, at, sizeof word);
  return _mm256_set1_epi32(word);
}
KVD_INLINE __m256 half8(const std::uint8_t* at) {
  return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(at)));
}

// Cephes' expf, 2 ulp. Below -87 the result is about 1e-38, not 0.
KVD_INLINE __m256 exp_ps(__m256 x) {
  x = _mm256_max_ps(_mm256_min_ps(x, _mm256_set1_ps(88.3762626647949F)),
                    _mm256_set1_ps(-87.3365447505531F));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341F)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375F), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4F), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4F);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1F));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1F));
  p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0F)));
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

// ((0+4) + (2+6)) + ((1+5) + (3+7)), always in this order.
KVD_INLINE float sum_lanes(__m256 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
KVD_INLINE float max_lanes(__m256 x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

}  // namespace kvd::engine::cpu::avx2
