// What the AVX-512 kernel files share. Only for files compiled with the flags of CMakeLists.txt:
// everything here is static, so that no copy of it is linked into code for older processors.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "engine/cpu/kernels.h"

#define KVD_INLINE static inline __attribute__((always_inline))
#define KVD_MEMBER inline __attribute__((always_inline))

namespace kvd::engine::cpu::avx512 {

void linear(const Matrix& matrix, std::uint32_t begin, std::uint32_t end, const Activations& x,
            std::uint32_t rows, float* out, std::size_t out_stride, bool add, std::byte* scratch);

// Attention in bf16 dot products; needs AVX512_BF16 too.
void prepare_query(float* head, std::uint32_t head_dim, float scale);
void attend_block(const KvView& kv, std::uint32_t block, const Queries& queries,
                  std::uint32_t first_row, float* partials, std::byte* scratch);
void merge(float* state, const float* partial, std::uint32_t head_dim);
void finish(const float* state, std::uint32_t head_dim, float* out);

KVD_INLINE std::uint32_t least(std::uint32_t a, std::uint32_t b) { return a < b ? a : b; }
// The lowest `count` lanes, all from 16 on.
KVD_INLINE __mmask16 first_lanes(std::uint32_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xFFFFU : (1U << count) - 1);
}

KVD_INLINE __m512 half16(const std::uint8_t* at) {
  return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(at)));
}

// What two neighbours' scales are made of: those of block b (even) of a panel of kQ4K and the next.
struct Q4KPair {
  static constexpr std::size_t kBlocks = 2;
  __m512 d, dmin;
  __m512i bits;  // of the first in the lowest 12, of the second above

  KVD_MEMBER Q4KPair(const std::uint8_t* panel, std::size_t b) {
    const std::uint8_t *super = panel + q4k_super_at(b), *words = super + kQ4KHalves;
    d = half16(super);
    dmin = half16(super + 32);
    const std::size_t pair = b % kQ4KBlocks / 2;
    if (pair < 3) {
      bits = _mm512_load_si512(words + pair * 64);
      return;
    }
    const __m512i first = _mm512_srli_epi32(_mm512_load_si512(words), 24);
    const __m512i second = _mm512_srli_epi32(_mm512_load_si512(words + 64), 16);
    const __m512i third = _mm512_srli_epi32(_mm512_load_si512(words + 128), 8);
    bits =
        _mm512_ternarylogic_epi32(first, _mm512_and_si512(second, _mm512_set1_epi32(0xFF00)),
                                  _mm512_and_si512(third, _mm512_set1_epi32(0xFF0000)), 0xFE);  // |
  }
};
// w = d * q + m in the rows of the first block of a pair, or of the second.
struct Q4KScales {
  __m512 d, m;
};
KVD_INLINE Q4KScales q4k_scales(const Q4KPair& pair, bool second) {
  const __m512i bits = second ? _mm512_srli_epi32(pair.bits, 12) : pair.bits;
  const __m512i six = _mm512_set1_epi32(63);
  const __m512i scale = _mm512_and_si512(bits, six);
  const __m512i minimum = _mm512_and_si512(_mm512_srli_epi32(bits, 6), six);
  return {_mm512_mul_ps(pair.d, _mm512_cvtepi32_ps(scale)),
          _mm512_fnmadd_ps(pair.dmin, _mm512_cvtepi32_ps(minimum), _mm512_setzero_ps())};
}

// Cephes' expf, 2 ulp. Below -87 the result is about 1e-38, not 0.
KVD_INLINE __m512 exp_ps(__m512 x) {
  x = _mm512_max_ps(_mm512_min_ps(x, _mm512_set1_ps(88.3762626647949F)),
                    _mm512_set1_ps(-87.3365447505531F));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341F)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375F), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4F), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4F);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1F));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1F));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0F)));
  return _mm512_scalef_ps(p, n);
}

}  // namespace kvd::engine::cpu::avx512
