// Products of the panels that hold five- and six-bit weights in bytes (kQ5, kQ6 of panels.h), in
// tiles of 16 weight rows by up to 4 tokens, as avx2_linear.cc.
//
// Range: kQ5's bytes are unsigned, four steps add up to 31 * 127 * 2 * 4 = 31,496; of kQ6 the
// magnitude is multiplied, 32 * 127 * 2 * 4 = 32,512. So sixteen columns fit into int16 before they
// are widened, which is also as far as a scale of kQ6 reaches.
#include "engine/cpu/avx2.h"

namespace kvd::engine::cpu::avx2 {
namespace {

constexpr std::uint32_t kTile = 4;  // tokens

// int16 sums of rows 8h..8h+7 over units [4 half, 4 half + 4), and the sums of their bytes: of
// four, which of kQ5 are at most 124, of kQ6 from -128 to 124.
template <PanelType kType, int T>
KVD_INLINE void half_block(const std::uint8_t* block, std::size_t half, std::size_t column,
                           const Int8Rows<T>& x, __m256i (&acc)[T][2], __m256i (&all)[2]) {
  for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_si256();
  __m256i bytes0 = _mm256_setzero_si256(), bytes1 = bytes0;
#pragma GCC unroll 1
  for (std::size_t unit = 4 * half; unit < 4 * half + 4; ++unit) {
    const __m256i w0 = load(block + unit * 64), w1 = load(block + unit * 64 + 32);
    const __m256i size0 = _mm256_abs_epi8(w0), size1 = _mm256_abs_epi8(w1);
    for (int t = 0; t < T; ++t) {
      const __m256i v = broadcast4(x.values[t] + column + unit * 4);
      if constexpr (kType == PanelType::kQ5) {
        multiply_add(acc[t][0], w0, v);
        multiply_add(acc[t][1], w1, v);
      } else {
        multiply_add(acc[t][0], size0, _mm256_sign_epi8(v, w0));
        multiply_add(acc[t][1], size1, _mm256_sign_epi8(v, w1));
      }
    }
    bytes0 = _mm256_add_epi8(bytes0, w0);
    bytes1 = _mm256_add_epi8(bytes1, w1);
  }
  all[0] = sum_signed(bytes0);
  all[1] = sum_signed(bytes1);
}

// The sums of a tile stay in memory: in registers GCC would have to spill the int16 ones.
template <int T, bool kOffsets>
KVD_INLINE void tile_q5(const std::uint8_t* block, std::size_t blocks, const Int8Rows<T>& x,
                        float* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (std::size_t b = 0; b < blocks; ++b, block += kWideBlockBytes) {
    ask_for(block, kWideBlockBytes);
    __m256i first[T][2], second[T][2], first_all[2], second_all[2];
    half_block<PanelType::kQ5, T>(block, 0, b * kBlock, x, first, first_all);
    for (int t = 0; t < T; ++t) {
      for (int h = 0; h < 2; ++h) first[t][h] = _mm256_madd_epi16(first[t][h], ones);
    }
    half_block<PanelType::kQ5, T>(block, 1, b * kBlock, x, second, second_all);
    for (int h = 0; h < 2; ++h) {
      const __m256 d = half8(block + 512 + h * 16), m = half8(block + 544 + h * 16);
      const __m256i bytes = _mm256_add_epi32(first_all[h], second_all[h]);
      const __m256 total = _mm256_mul_ps(d, _mm256_cvtepi32_ps(bytes));
      for (int t = 0; t < T; ++t) {
        const __m256i all = _mm256_add_epi32(first[t][h], _mm256_madd_epi16(second[t][h], ones));
        float* to = sums + t * 16 + h * 8;
        const __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(x.scales[t][b]));
        __m256 sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(all), scale, _mm256_load_ps(to));
        if constexpr (kOffsets) {
          sum = _mm256_fmadd_ps(total, _mm256_set1_ps(x.offsets[t][b]), sum);
        }
        sum = _mm256_fmadd_ps(m, _mm256_set1_ps(x.sums[t][b]), sum);
        _mm256_store_ps(to, sum);
      }
    }
  }
}

template <int T, bool kOffsets>
KVD_INLINE void tile_q6(const std::uint8_t* block, std::size_t blocks, const Int8Rows<T>& x,
                        float* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (std::size_t b = 0; b < blocks; ++b, block += kWideBlockBytes) {
    ask_for(block, kWideBlockBytes);
    for (std::size_t half = 0; half < 2; ++half) {
      __m256i acc[T][2], all[2];
      half_block<PanelType::kQ6, T>(block, half, b * kBlock, x, acc, all);
      for (int h = 0; h < 2; ++h) {
        const __m256 d = half8(block + 512 + half * 32 + static_cast<std::size_t>(h) * 16);
        const __m256 total = _mm256_mul_ps(d, _mm256_cvtepi32_ps(all[h]));
        for (int t = 0; t < T; ++t) {
          float* to = sums + t * 16 + h * 8;
          const __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(x.scales[t][b]));
          const __m256 dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(acc[t][h], ones));
          __m256 sum = _mm256_fmadd_ps(dot, scale, _mm256_load_ps(to));
          if constexpr (kOffsets) {
            sum = _mm256_fmadd_ps(total, _mm256_set1_ps(x.offsets[t][b]), sum);
          }
          _mm256_store_ps(to, sum);
        }
      }
    }
  }
}

template <int T, bool kOffsets>
void run_tile(const Matrix& matrix, const std::uint8_t* panel, const Activations& x,
              std::uint32_t row, float* sums) {
  const std::size_t blocks = matrix.columns / kBlock;
  const Int8Rows<T> rows(x, row, matrix.columns);
  for (int i = 0; i < T * 16; i += 8) _mm256_store_ps(sums + i, _mm256_setzero_ps());
  if (matrix.type == PanelType::kQ5) {
    tile_q5<T, kOffsets>(panel, blocks, rows, sums);
  } else {
    tile_q6<T, kOffsets>(panel, blocks, rows, sums);
  }
}

}  // namespace

void linear_wide(const Matrix& matrix, std::uint32_t begin, std::uint32_t end, const Activations& x,
                 std::uint32_t rows, float* out, std::size_t out_stride, bool add) {
  alignas(32) float sums[kTile * kPanelRows];
  using Run =
      void (*)(const Matrix&, const std::uint8_t*, const Activations&, std::uint32_t, float*);
  constexpr Run kRuns[2][kTile] = {
      {run_tile<1, false>, run_tile<2, false>, run_tile<3, false>, run_tile<4, false>},
      {run_tile<1, true>, run_tile<2, true>, run_tile<3, true>, run_tile<4, true>}};
  for (std::uint32_t panel = begin; panel < end; ++panel) {
    const auto* at = reinterpret_cast<const std::uint8_t*>(matrix.data + panel_at(matrix, panel));
    const std::uint32_t left = matrix.rows - panel * kPanelRows;
    const std::uint32_t valid = left < kPanelRows ? left : kPanelRows;
    for (std::uint32_t row = 0; row < rows; row += kTile) {
      const std::uint32_t count = rows - row < kTile ? rows - row : kTile;
      kRuns[x.offsets ? 1 : 0][count - 1](matrix, at, x, row, sums);
      for (std::uint32_t t = 0; t < count; ++t) {
        float* to = out + (row + t) * out_stride + std::size_t{panel} * kPanelRows;
        const float* from = sums + t * kPanelRows;
        for (std::uint32_t r = 0; r < valid; ++r) to[r] = add ? to[r] + from[r] : from[r];
      }
    }
  }
}

}  // namespace kvd::engine::cpu::avx2
