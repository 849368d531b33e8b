// Matrix products on panels (panels.h), in tiles of 16 weight rows by up to 4 tokens.
//
// Block-quantized weights meet int8 activations: vpmaddubsw multiplies unsigned by signed bytes and
// adds pairs into int16. Range: a 4-bit block's 8 steps add up to 15 * 127 * 2 * 8 = 30,480, so
// exactly one block of 32 fits into int16 before it is widened. 8-bit weights fit one step: |w| *
// sign(x, w) is at most 128 * 127 * 2 = 32,512, widened each time.
//
// A tile's arithmetic for a token does not depend on the tile's width, nor on whether the panel was
// unpacked first: integer sums are exact, and each block has the same fused additions in one order.
#include "engine/cpu/avx2.h"

namespace kvd::engine::cpu::avx2 {
namespace {

constexpr std::uint32_t kTile = 4;        // tokens
constexpr std::uint32_t kDirectRows = 8;  // up to so many tokens nibbles are used where they lie
// A block: 512 values, then 16 f32 each of d, m, and the sum of d * q.
constexpr std::uint32_t kUnpackedBytes = 704;

// What eight weight rows of a block are in floats: w = d * q + m, and the sum of d * q over it.
struct Scales {
  __m256 d, m, total;
};

// Adds one block's integer sums into the tile's floats.
template <int T, bool kOffsets>
KVD_INLINE void add_block(const __m256i (&acc)[T][2], const Int8Rows<T>& x, std::size_t block,
                          const Scales (&w)[2], float* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int t = 0; t < T; ++t) {
    const __m256 scale = _mm256_set1_ps(x.scales[t][block]);
    const __m256 all = _mm256_set1_ps(x.sums[t][block]);
    const __m256 offset = _mm256_set1_ps(x.offsets[t][block]);
    for (int h = 0; h < 2; ++h) {
      float* to = sums + t * 16 + h * 8;
      const __m256 dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(acc[t][h], ones));
      __m256 sum = _mm256_fmadd_ps(dot, _mm256_mul_ps(w[h].d, scale), _mm256_load_ps(to));
      if constexpr (kOffsets) sum = _mm256_fmadd_ps(w[h].total, offset, sum);
      sum = _mm256_fmadd_ps(w[h].m, all, sum);
      _mm256_store_ps(to, sum);
    }
  }
  // The sums stay in memory: in registers GCC would spill them, and the integer ones with them.
  asm("" : "+m"(*reinterpret_cast<float(*)[T * 16]>(sums)));
}

// d and m of rows 8h..8h+7 of a block of kQ4, or of kQ4K.
KVD_INLINE Scales q4_scales(const std::uint8_t* block, std::size_t h) {
  return {half8(block + 256 + h * 16), half8(block + 288 + h * 16), _mm256_setzero_ps()};
}
KVD_INLINE Scales q4k_scales(const std::uint8_t* panel, std::size_t b, std::size_t h) {
  const std::uint8_t* halves = panel + q4k_super_at(b) + h * 16;
  const std::uint8_t* words = panel + q4k_super_at(b) + kQ4KHalves + h * 32;
  const std::size_t pair = b % kQ4KBlocks / 2;
  __m256i bits;
  if (pair < 3) {
    bits = load(words + pair * 64);
  } else {
    const __m256i second =
        _mm256_and_si256(_mm256_srli_epi32(load(words + 64), 16), _mm256_set1_epi32(0xFF00));
    const __m256i third =
        _mm256_and_si256(_mm256_srli_epi32(load(words + 128), 8), _mm256_set1_epi32(0xFF0000));
    bits = _mm256_or_si256(_mm256_srli_epi32(load(words), 24), _mm256_or_si256(second, third));
  }
  bits = _mm256_srl_epi32(bits, _mm_cvtsi32_si128(static_cast<int>(b % 2 * 12)));
  const __m256i six = _mm256_set1_epi32(63);
  const __m256i scale = _mm256_and_si256(bits, six);
  const __m256i minimum = _mm256_and_si256(_mm256_srli_epi32(bits, 6), six);
  return {_mm256_mul_ps(half8(halves), _mm256_cvtepi32_ps(scale)),
          _mm256_fnmadd_ps(half8(halves + 32), _mm256_cvtepi32_ps(minimum), _mm256_setzero_ps()),
          _mm256_setzero_ps()};
}
// `bytes`: the block's 32 columns' values added up, four bytes a row.
template <PanelType kType>
KVD_INLINE Scales nibble_scales(const std::uint8_t* panel, std::size_t b, std::size_t h,
                                __m256i bytes) {
  Scales scales =
      kType == PanelType::kQ4 ? q4_scales(panel + units_at(kType, b), h) : q4k_scales(panel, b, h);
  scales.total = _mm256_mul_ps(scales.d, _mm256_cvtepi32_ps(sum_unsigned(bytes)));
  return scales;
}

// From nibbles, for few tokens: the panel is read once from memory.
template <PanelType kType, int T, bool kOffsets>
void tile_nibbles(const std::uint8_t* panel, std::size_t blocks, const Int8Rows<T>& x,
                  float* sums) {
  const __m256i low = _mm256_set1_epi8(15);
  for (std::size_t b = 0; b < blocks; ++b) {
    ask_for_block<kType>(panel, b);
    const std::uint8_t* block = panel + units_at(kType, b);
    __m256i acc[T][2];
    for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_si256();
    __m256i bytes0 = _mm256_setzero_si256(), bytes1 = bytes0;  // at most 8 * 15
#pragma GCC unroll 1
    for (std::size_t unit = 0; unit < 4; ++unit) {
      const __m256i w0 = load(block + unit * 64), w1 = load(block + unit * 64 + 32);
      const __m256i low0 = _mm256_and_si256(w0, low), low1 = _mm256_and_si256(w1, low);
      const std::size_t at = b * kBlock + unit * 8;
      for (int t = 0; t < T; ++t) {
        const __m256i v = broadcast4(x.values[t] + at);
        multiply_add(acc[t][0], low0, v);
        multiply_add(acc[t][1], low1, v);
      }
      const __m256i high0 = _mm256_and_si256(_mm256_srli_epi16(w0, 4), low);
      const __m256i high1 = _mm256_and_si256(_mm256_srli_epi16(w1, 4), low);
      for (int t = 0; t < T; ++t) {
        const __m256i v = broadcast4(x.values[t] + at + 4);
        multiply_add(acc[t][0], high0, v);
        multiply_add(acc[t][1], high1, v);
      }
      bytes0 = _mm256_add_epi8(bytes0, _mm256_add_epi8(low0, high0));
      bytes1 = _mm256_add_epi8(bytes1, _mm256_add_epi8(low1, high1));
    }
    const Scales w[2] = {nibble_scales<kType>(panel, b, 0, bytes0),
                         nibble_scales<kType>(panel, b, 1, bytes1)};
    add_block<T, kOffsets>(acc, x, b, w, sums);
  }
}

template <PanelType kType>
void unpack(const std::uint8_t* panel, std::size_t blocks, std::uint8_t* to) {
  const __m256i low = _mm256_set1_epi8(15);
  for (std::size_t b = 0; b < blocks; ++b, to += kUnpackedBytes) {
    ask_for_block<kType>(panel, b);
    const std::uint8_t* from = panel + units_at(kType, b);
    __m256i bytes[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (std::size_t i = 0; i < 8; ++i) {
      const __m256i w = load(from + i * 32);
      // Unit i / 2, its rows 0-7 or 8-15: the low nibbles are 4 columns, the high ones the next 4.
      auto* out = reinterpret_cast<__m256i*>(to + i / 2 * 128 + i % 2 * 32);
      const __m256i four = _mm256_and_si256(w, low);
      const __m256i next = _mm256_and_si256(_mm256_srli_epi16(w, 4), low);
      _mm256_store_si256(out, four);
      _mm256_store_si256(out + 2, next);
      bytes[i % 2] = _mm256_add_epi8(bytes[i % 2], _mm256_add_epi8(four, next));
    }
    auto* floats = reinterpret_cast<float*>(to + 512);
    for (std::size_t h = 0; h < 2; ++h) {
      const Scales scales = nibble_scales<kType>(panel, b, h, bytes[h]);
      _mm256_store_ps(floats + 8 * h, scales.d);
      _mm256_store_ps(floats + 16 + 8 * h, scales.m);
      _mm256_store_ps(floats + 32 + 8 * h, scales.total);
    }
  }
}

// From an unpacked panel, for many tokens.
template <int T, bool kOffsets>
void tile_unpacked(const std::uint8_t* block, std::size_t blocks, const Int8Rows<T>& x,
                   float* sums) {
  for (std::size_t b = 0; b < blocks; ++b, block += kUnpackedBytes) {
    __m256i acc[T][2];
    for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
    for (std::size_t k = 0; k < 8; ++k) {
      const __m256i w0 = load(block + k * 64), w1 = load(block + k * 64 + 32);
      for (int t = 0; t < T; ++t) {
        const __m256i v = broadcast4(x.values[t] + b * kBlock + k * 4);
        multiply_add(acc[t][0], w0, v);
        multiply_add(acc[t][1], w1, v);
      }
    }
    const auto* floats = reinterpret_cast<const float*>(block + 512);
    const auto scales = [floats](std::size_t h) -> Scales {
      const float* at = floats + 8 * h;
      return {_mm256_load_ps(at), _mm256_load_ps(at + 16), _mm256_load_ps(at + 32)};
    };
    const Scales w[2] = {scales(0), scales(1)};
    add_block<T, kOffsets>(acc, x, b, w, sums);
  }
}

template <int T, bool kOffsets>
void tile_q8(const std::uint8_t* block, std::size_t blocks, const Int8Rows<T>& x, float* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (std::size_t b = 0; b < blocks; ++b, block += kQ8BlockBytes) {
    ask_for(block, kQ8BlockBytes);
    for (std::size_t h = 0; h < 2; ++h) {
      __m256i acc[T];
      for (int t = 0; t < T; ++t) acc[t] = _mm256_setzero_si256();
      __m256i all = _mm256_setzero_si256();
#pragma GCC unroll 2
      for (std::size_t k = 0; k < 8; ++k) {
        const __m256i w = load(block + k * 64 + h * 32);
        if constexpr (kOffsets) all = _mm256_add_epi32(all, sum_signed(w));
        const __m256i magnitude = _mm256_abs_epi8(w);
        for (int t = 0; t < T; ++t) {
          const __m256i v = broadcast4(x.values[t] + b * kBlock + k * 4);
          const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(v, w));
          acc[t] = _mm256_add_epi32(acc[t], _mm256_madd_epi16(pairs, ones));
        }
      }
      const __m256 d = half8(block + 512 + h * 16);
      const __m256 total = _mm256_mul_ps(d, _mm256_cvtepi32_ps(all));
      for (int t = 0; t < T; ++t) {
        float* to = sums + t * 16 + h * 8;
        const __m256 scale = _mm256_mul_ps(d, _mm256_set1_ps(x.scales[t][b]));
        __m256 sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[t]), scale, _mm256_load_ps(to));
        if constexpr (kOffsets) {
          sum = _mm256_fmadd_ps(total, _mm256_set1_ps(x.offsets[t][b]), sum);
        }
        _mm256_store_ps(to, sum);
      }
    }
  }
}

// Weights of float panels: columns k and k + 1 (k even) of rows 0-7 and 8-15.
struct F32Weights {
  KVD_INLINE void load2(const std::uint8_t* panel, std::size_t k, __m256 (&w)[2][2]) {
    const float* at = reinterpret_cast<const float*>(panel) + k * 16;
    for (int c = 0; c < 2; ++c) {
      for (int h = 0; h < 2; ++h) w[c][h] = _mm256_load_ps(at + c * 16 + h * 8);
    }
  }
};
struct F16Weights {
  KVD_INLINE void load2(const std::uint8_t* panel, std::size_t k, __m256 (&w)[2][2]) {
    for (int c = 0; c < 2; ++c) {
      for (int h = 0; h < 2; ++h) w[c][h] = half8(panel + k * 32 + c * 32 + h * 16);
    }
  }
};
struct Bf16Weights {
  KVD_INLINE void load2(const std::uint8_t* panel, std::size_t k, __m256 (&w)[2][2]) {
    for (int h = 0; h < 2; ++h) {
      const __m256i pair = load(panel + k * 32 + h * 32);
      w[0][h] = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
      const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000U));
      w[1][h] = _mm256_castsi256_ps(_mm256_and_si256(pair, upper));
    }
  }
};

// The exact path: float activations.
template <typename Weights, int T>
void tile_float(const std::uint8_t* panel, std::size_t columns, const float* const* x,
                float* sums) {
  __m256 acc[T][2];
  for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = _mm256_setzero_ps();
  for (std::size_t k = 0; k < columns; k += 2) {
    __m256 w[2][2];
    Weights::load2(panel, k, w);
    for (int c = 0; c < 2; ++c) {
      for (int t = 0; t < T; ++t) {
        const __m256 v = _mm256_set1_ps(x[t][k + static_cast<std::size_t>(c)]);
        acc[t][0] = _mm256_fmadd_ps(w[c][0], v, acc[t][0]);
        acc[t][1] = _mm256_fmadd_ps(w[c][1], v, acc[t][1]);
      }
    }
  }
  for (int t = 0; t < T; ++t) {
    _mm256_store_ps(sums + t * 16, acc[t][0]);
    _mm256_store_ps(sums + t * 16 + 8, acc[t][1]);
  }
}

enum class Form { kQ4, kQ4K, kUnpacked, kQ8, kF32, kF16, kBf16 };

struct Tile {
  Form form;
  const std::uint8_t* panel;
  std::size_t columns;
  const Activations* x;
};

template <int T, bool kOffsets>
void run_quantized(const Tile& tile, std::uint32_t row, float* sums) {
  const std::size_t blocks = tile.columns / kBlock;
  const Int8Rows<T> rows(*tile.x, row, tile.columns);
  for (int i = 0; i < T * 16; i += 8) _mm256_store_ps(sums + i, _mm256_setzero_ps());
  if (tile.form == Form::kQ4)
    return tile_nibbles<PanelType::kQ4, T, kOffsets>(tile.panel, blocks, rows, sums);
  if (tile.form == Form::kQ4K)
    return tile_nibbles<PanelType::kQ4K, T, kOffsets>(tile.panel, blocks, rows, sums);
  if (tile.form == Form::kQ8) return tile_q8<T, kOffsets>(tile.panel, blocks, rows, sums);
  tile_unpacked<T, kOffsets>(tile.panel, blocks, rows, sums);
}

template <int T>
void run_exact(const Tile& tile, std::uint32_t row, float* sums) {
  const float* floats[T];
  for (std::uint32_t t = 0; t < T; ++t) {
    floats[t] = tile.x->floats + (row + t) * tile.x->float_stride;
  }
  if (tile.form == Form::kF16)
    return tile_float<F16Weights, T>(tile.panel, tile.columns, floats, sums);
  if (tile.form == Form::kBf16)
    return tile_float<Bf16Weights, T>(tile.panel, tile.columns, floats, sums);
  tile_float<F32Weights, T>(tile.panel, tile.columns, floats, sums);
}

// By number of tokens less one.
using Run = void (*)(const Tile&, std::uint32_t, float*);
constexpr Run kPlain[] = {run_quantized<1, false>, run_quantized<2, false>, run_quantized<3, false>,
                          run_quantized<4, false>};
constexpr Run kOffset[] = {run_quantized<1, true>, run_quantized<2, true>, run_quantized<3, true>,
                           run_quantized<4, true>};
constexpr Run kExact[] = {run_exact<1>, run_exact<2>, run_exact<3>, run_exact<4>};

KVD_INLINE void store_row(const float* sums, std::uint32_t valid, bool add, float* out) {
  if (valid < kPanelRows) {
    for (std::uint32_t r = 0; r < valid; ++r) out[r] = add ? out[r] + sums[r] : sums[r];
    return;
  }
  for (int h = 0; h < 16; h += 8) {
    __m256 sum = _mm256_load_ps(sums + h);
    if (add) sum = _mm256_add_ps(_mm256_loadu_ps(out + h), sum);
    _mm256_storeu_ps(out + h, sum);
  }
}

Form form_of(PanelType type, std::uint32_t rows) {
  switch (type) {
    case PanelType::kQ4:
      return rows > kDirectRows ? Form::kUnpacked : Form::kQ4;
    case PanelType::kQ4K:
      return rows > kDirectRows ? Form::kUnpacked : Form::kQ4K;
    case PanelType::kQ8:
      return Form::kQ8;
    case PanelType::kF16:
      return Form::kF16;
    case PanelType::kBF16:
      return Form::kBf16;
    case PanelType::kF32:
    case PanelType::kQ5:  // linear_wide() has them
    case PanelType::kQ6:
      break;
  }
  return Form::kF32;
}

}  // namespace

void linear(const Matrix& matrix, std::uint32_t begin, std::uint32_t end, const Activations& x,
            std::uint32_t rows, float* out, std::size_t out_stride, bool add, std::byte* scratch) {
  if (is_wide(matrix.type)) {
    return linear_wide(matrix, begin, end, x, rows, out, out_stride, add);
  }
  const Run* runs = !is_quantized(matrix.type) ? kExact : x.offsets ? kOffset : kPlain;
  alignas(32) float sums[kTile * kPanelRows];
  Tile tile{form_of(matrix.type, rows), nullptr, matrix.columns, &x};
  for (std::uint32_t panel = begin; panel < end; ++panel) {
    tile.panel = reinterpret_cast<const std::uint8_t*>(matrix.data + panel_at(matrix, panel));
    if (tile.form == Form::kUnpacked) {
      auto* unpacked = reinterpret_cast<std::uint8_t*>(scratch);
      const bool q4 = matrix.type == PanelType::kQ4;
      (q4 ? unpack<PanelType::kQ4> : unpack<PanelType::kQ4K>)(tile.panel, matrix.columns / kBlock,
                                                              unpacked);
      tile.panel = unpacked;
    }
    const std::uint32_t left = matrix.rows - panel * kPanelRows;
    const std::uint32_t valid = left < kPanelRows ? left : kPanelRows;
    for (std::uint32_t row = 0; row < rows; row += kTile) {
      const std::uint32_t count = rows - row < kTile ? rows - row : kTile;
      runs[count - 1](tile, row, sums);
      for (std::uint32_t t = 0; t < count; ++t) {
        store_row(sums + t * 16, valid, add,
                  out + (row + t) * out_stride + std::size_t{panel} * kPanelRows);
      }
    }
  }
}

}  // namespace kvd::engine::cpu::avx2
