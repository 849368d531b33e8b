// Weights and activations as the bf16 operands of tiles (amx.h).
//
// A register of weights is two columns of a panel, row after row: 16 pairs, a row of a tile. It is
// packed from two registers of floats, of rows 0-7 and of rows 8-15, each with both columns of a
// row side by side.
#include "engine/cpu/amx.h"
#include "engine/cpu/avx512.h"

namespace kvd::engine::cpu::amx {
namespace {

// Rows 0-7 and 8-15.
struct Pairs {
  __m512 w[2];
};

// Every other block of kQ8 begins in the middle of a line.
KVD_INLINE __m512i load(const std::byte* at) { return _mm512_loadu_si512(at); }
KVD_INLINE void store(std::byte* at, __m512i value) { _mm512_store_si512(at, value); }

// 32 floats rounded to bf16.
KVD_INLINE __m512i high_parts(const Pairs& of) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(of.w[1], of.w[0]));
}
// What that left out.
KVD_INLINE __m512i low_parts(const Pairs& of, __m512i high) {
  const __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(high));
  const __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(high, 1));
  const __m512 a = _mm512_castsi512_ps(_mm512_slli_epi32(first, 16));
  const __m512 b = _mm512_castsi512_ps(_mm512_slli_epi32(second, 16));
  return high_parts({{_mm512_sub_ps(of.w[0], a), _mm512_sub_ps(of.w[1], b)}});
}

// How a type's bytes become floats without conversion (kQ4K's are looked up): byte b is put into
// the mantissa of a number between 1 and 2, whose other bits are `base`, at byte `place`. Signed
// bytes are made unsigned by turning their highest bit over. The number is 1 + (b + bias) / scale,
// so that d * b + m = (d * scale) * number + (m - d * (scale + bias)).
struct ByteForm {
  int mask, base;
  float scale, bias;
};
constexpr ByteForm byte_form(PanelType type) {
  switch (type) {
    case PanelType::kQ4:
      return {0x000F0000, 0x3F800000, 128, 0};
    case PanelType::kQ6:  // seven bits are enough for -32 to 31
      return {0x007F0000, 0x3FC00000, 128, 64};
    case PanelType::kQ8:  // byte 2 has only seven bits of mantissa
      return {0x0000FF00, 0x3F808000, 32768, 128};
    default:
      return {0x007F0000, 0x3F800000, 128, 0};
  }
}

// w = d * number + m, for the rows of Pairs.
struct Scales {
  Pairs d, m;
};

// f16 numbers [first, first + 16) as floats, each twice.
KVD_INLINE Pairs twice(__m512i halves, int first) {
  const __m512i lanes = _mm512_set_epi16(15, 15, 14, 14, 13, 13, 12, 12, 11, 11, 10, 10, 9, 9, 8, 8,
                                         7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  const __m512i from = _mm512_add_epi16(lanes, _mm512_set1_epi16(static_cast<short>(first)));
  const __m512i each = _mm512_permutexvar_epi16(from, halves);
  return {{_mm512_cvtph_ps(_mm512_castsi512_si256(each)),
           _mm512_cvtph_ps(_mm512_extracti64x4_epi64(each, 1))}};
}

// The same of floats.
KVD_INLINE Pairs twice(__m512 numbers) {
  const __m512i first = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  return {{_mm512_permutexvar_ps(first, numbers), _mm512_permutexvar_ps(second, numbers)}};
}

// Of columns 0-15 of block b of a panel, or of 16-31.
template <PanelType kType>
KVD_INLINE Scales scales_of(const std::byte* panel, std::size_t b, int half) {
  if constexpr (kType == PanelType::kQ4K) {
    const avx512::Q4KPair pair(reinterpret_cast<const std::uint8_t*>(panel), b - b % 2);
    const auto of = avx512::q4k_scales(pair, b % 2 != 0);
    return {twice(of.d), twice(of.m)};
  } else {
    constexpr ByteForm kForm = byte_form(kType);
    const std::byte* at = panel + units_at(kType, b) + (kType == PanelType::kQ4 ? 256 : 512);
    const __m512i halves = kType == PanelType::kQ8
                               ? _mm512_castsi256_si512(_mm256_load_si256(
                                     reinterpret_cast<const __m256i*>(at)))  // d is all there is
                               : load(at);
    const Pairs d = twice(halves, kType == PanelType::kQ6 ? 16 * half : 0);
    Pairs m = {{_mm512_setzero_ps(), _mm512_setzero_ps()}};
    if (kType == PanelType::kQ4 || kType == PanelType::kQ5) m = twice(halves, 16);
    Scales scales;
    for (int h = 0; h < 2; ++h) {
      scales.d.w[h] = _mm512_mul_ps(d.w[h], _mm512_set1_ps(kForm.scale));
      scales.m.w[h] = _mm512_fnmadd_ps(d.w[h], _mm512_set1_ps(kForm.scale + kForm.bias), m.w[h]);
    }
    return scales;
  }
}

// Four columns of a block: 16 rows x 4 bytes, of which kQ4 and kQ4K use a nibble each.
template <PanelType kType>
KVD_INLINE __m512i unit_of(const std::byte* block, std::size_t unit) {
  if (kType != PanelType::kQ4 && kType != PanelType::kQ4K) return load(block + unit * 64);
  const __m512i both = load(block + unit / 2 * 64);
  return unit % 2 == 0 ? both : _mm512_srli_epi32(both, 4);
}

// Lanes with a byte of a unit each: what w = d * number + m takes for it.
template <PanelType kType>
KVD_INLINE __m512 numbers_of(__m512i bytes) {
  // Nibbles themselves, so that a weight is rounded just as on the other paths; the lookup sees the
  // low four bits of a lane alone.
  if constexpr (kType == PanelType::kQ4K) {
    return _mm512_permutexvar_ps(
        bytes, _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  } else {
    constexpr ByteForm kForm = byte_form(kType);
    const __m512i mask = _mm512_set1_epi32(kForm.mask), base = _mm512_set1_epi32(kForm.base);
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(bytes, mask, base, 0x6A));  // & mask ^ base
  }
}

// Block b of a panel to one tile.
template <PanelType kType>
KVD_INLINE void quantized_tile(const std::byte* panel, std::size_t b, std::byte* out) {
  // Bytes 0 and 1 of each row of a unit, each to all four bytes of a lane.
  const __m512i spread =
      _mm512_set_epi32(0x1D1D1D1D, 0x1C1C1C1C, 0x19191919, 0x18181818, 0x15151515, 0x14141414,
                       0x11111111, 0x10101010, 0x0D0D0D0D, 0x0C0C0C0C, 0x09090909, 0x08080808,
                       0x05050505, 0x04040404, 0x01010101, 0x00000000);
  const std::byte* block = panel + units_at(kType, b);
  Scales scales = scales_of<kType>(panel, b, 0);
#pragma GCC unroll 8
  for (std::size_t unit = 0; unit < 8; ++unit) {
    if (kType == PanelType::kQ6 && unit == 4) scales = scales_of<kType>(panel, b, 1);
    const __m512i bytes = unit_of<kType>(block, unit);
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair, out += kPairBytes) {
      Pairs pairs;
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m512i from =
            _mm512_add_epi8(spread, _mm512_set1_epi8(static_cast<char>(32 * h + 2 * pair)));
        const __m512 number = numbers_of<kType>(_mm512_permutexvar_epi8(from, bytes));
        pairs.w[h] = _mm512_fmadd_ps(number, scales.d.w[h], scales.m.w[h]);
      }
      store(out, high_parts(pairs));
    }
  }
}

template <PanelType kType>
void quantized_tiles(const std::byte* panel, std::uint32_t first, std::uint32_t steps,
                     std::byte* out) {
  for (std::uint32_t i = 0; i < steps; ++i, out += kStepBytes) {
    quantized_tile<kType>(panel, first + i, out);
  }
}

KVD_INLINE Pairs beside(__m512 even, __m512 odd) {
  const __m512i first = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  return {{_mm512_permutex2var_ps(even, first, odd), _mm512_permutex2var_ps(even, second, odd)}};
}

template <PanelType kType>
void float_tiles(const std::byte* panel, std::uint32_t first, std::uint32_t steps, std::byte* out) {
  constexpr std::size_t kBytes = kPanelRows * (kType == PanelType::kF32 ? 4 : 2);
  const std::byte* column = panel + first * std::size_t{kBlock} * kBytes;
  const auto weights = [](const std::byte* at) {
    if (kType == PanelType::kF32) return _mm512_load_ps(at);
    return _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(at)));
  };
  const std::size_t low = std::size_t{steps} * kStepBytes;
  for (std::uint32_t i = 0; i < steps * kBlock / 2; ++i, column += 2 * kBytes, out += kPairBytes) {
    const Pairs pairs = beside(weights(column), weights(column + kBytes));
    const __m512i high = high_parts(pairs);
    store(out, high);
    store(out + low, low_parts(pairs, high));
  }
}

}  // namespace

std::size_t row_bytes(std::uint32_t columns) {
  return std::size_t{columns + kBlock - 1} / kBlock * 2 * kStepRowBytes + 64;
}

void to_parts(const float* row, std::uint32_t columns, std::uint32_t begin, std::uint32_t end, bool,
              std::byte* out) {
  const std::size_t low = columns / kBlock * std::size_t{kStepRowBytes};
  for (std::size_t b = begin; b < end; ++b) {
    const float* at = row + b * kBlock;
    const Pairs block = {{_mm512_loadu_ps(at), _mm512_loadu_ps(at + 16)}};
    const __m512i high = high_parts(block);
    _mm512_storeu_si512(out + b * kStepRowBytes, high);
    _mm512_storeu_si512(out + low + b * kStepRowBytes, low_parts(block, high));
  }
}

const std::byte* weight_tiles(const Matrix& matrix, std::uint32_t panel, std::uint32_t first,
                              std::uint32_t steps, std::byte* out) {
  const std::byte* at = matrix.data + panel_at(matrix, panel);
  switch (matrix.type) {
    case PanelType::kQ4:
      quantized_tiles<PanelType::kQ4>(at, first, steps, out);
      break;
    case PanelType::kQ4K:
      quantized_tiles<PanelType::kQ4K>(at, first, steps, out);
      break;
    case PanelType::kQ5:
      quantized_tiles<PanelType::kQ5>(at, first, steps, out);
      break;
    case PanelType::kQ6:
      quantized_tiles<PanelType::kQ6>(at, first, steps, out);
      break;
    case PanelType::kQ8:
      quantized_tiles<PanelType::kQ8>(at, first, steps, out);
      break;
    case PanelType::kF32:
      float_tiles<PanelType::kF32>(at, first, steps, out);
      break;
    case PanelType::kF16:
      float_tiles<PanelType::kF16>(at, first, steps, out);
      break;
    case PanelType::kBF16:
      return at + first * std::size_t{kStepBytes};
  }
  return out;
}

}  // namespace kvd::engine::cpu::amx
