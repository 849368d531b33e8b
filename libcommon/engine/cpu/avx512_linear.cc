// Matrix products on panels (panels.h) with AVX-512: one register is a unit of 16 weight rows by 4
// columns, and vpdpbusd multiplies it with 4 activations of a token. Decoding a block costs little
// beside up to 16 tokens, so nothing is unpacked beforehand, for one token or for many.
//
// vpdpbusd takes unsigned by signed bytes. 4-bit weights are unsigned; 8-bit ones become so by
// adding 128, which a sum makes up for by starting at -128 * (sum of activations): exact, as
// integers are.
//
// A tile's arithmetic for a token does not depend on the tile's width: integer sums are exact, and
// per block there are the same fused additions.
#include <utility>

#include "engine/cpu/avx512.h"

namespace kvd::engine::cpu::avx512 {
namespace {

constexpr std::uint32_t kTile = 16;            // tokens at once
constexpr std::uint32_t kFloatTile = 8;        // the same for float panels
constexpr std::size_t kAtOnce = 4;             // tokens whose products alternate
constexpr std::size_t kNearBytes = 384 << 10;  // of activations: stay in L2 while panels pass by

// Every other block of kQ8 begins in the middle of a line.
KVD_INLINE __m512i load(const std::uint8_t* at) { return _mm512_loadu_si512(at); }
// acc += w * the four activations at `x`, for each row. As assembly for its broadcasting operand,
// which GCC 12 does not find.
KVD_INLINE void multiply_add(__m512i& acc, __m512i w, const std::uint8_t* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(acc)
      : "v"(w), "m"(*reinterpret_cast<const std::uint8_t(*)[4]>(x)));
}
KVD_INLINE __m512i broadcast_int(const std::uint8_t* at) {
  std::int32_t word;
  __builtin_memcpy(&word, at, sizeof word);
  return _mm512_set1_epi32(word);
}
KVD_INLINE __m512 broadcast_float(const std::uint8_t* at) {
  float value;
  __builtin_memcpy(&value, at, sizeof value);
  return _mm512_set1_ps(value);
}

// sum + dot * d * (the scale at `scale`)
KVD_INLINE __m512 add_scaled(__m512 sum, __m512i dot, __m512 d, const std::uint8_t* scale) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(d, broadcast_float(scale)), sum);
}

// Where the parts of one block are within a row of int8 activations (kernels.h).
struct BlockPlaces {
  std::size_t values, scale, sum, offset, start, half_start;

  KVD_MEMBER explicit BlockPlaces(std::size_t columns)
      : values(0),
        scale(columns),
        sum(scale + columns / kBlock * 4),
        offset(sum + columns / kBlock * 4),
        start(offset + columns / kBlock * 4),
        half_start(start + columns / kBlock * 4) {}
  KVD_MEMBER void next() {
    values += kBlock;
    scale += 4, sum += 4, offset += 4, start += 4, half_start += 4;
  }
};

// What blocks that are taken together share (Q4KPair): nothing, one by one.
struct Alone {
  static constexpr std::size_t kBlocks = 1;
  KVD_MEMBER Alone(const std::uint8_t*, std::size_t) {}
};

// A block of a panel is eight units of unsigned bytes. Of each token it makes kDots integer sums,
// the first of the first 8 / kDots units and so on: start() says where they start, add() makes
// floats of them and adds these to `sum`. `row` is the token's row; `total` is what its offset is
// multiplied with, the sum of d * q of each weight row.

// w = d * q + m with q from 0 to 31.
template <bool kOffsets>
struct UnsignedBlock {
  static constexpr std::size_t kDots = 1;
  __m512i w[8];
  __m512 d, m, total;

  KVD_MEMBER void set_nibbles(const std::uint8_t* units) {
    const __m512i low = _mm512_set1_epi8(15);
    for (std::size_t i = 0; i < 4; ++i) {
      const __m512i unit = load(units + i * 64);
      w[2 * i] = _mm512_and_si512(unit, low);
      w[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(unit, 4), low);
    }
  }
  KVD_MEMBER void set_scales(__m512 scale, __m512 minimum) {
    d = scale;
    m = minimum;
    if constexpr (!kOffsets) return;
    __m512i bytes = w[0];  // eight of them: at most 248
    for (std::size_t i = 1; i < 8; ++i) bytes = _mm512_add_epi8(bytes, w[i]);
    const __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), bytes, _mm512_set1_epi8(1));
    total = _mm512_mul_ps(d, _mm512_cvtepi32_ps(sums));
  }
  KVD_MEMBER static void start(__m512i (&dots)[1], const std::uint8_t*, const BlockPlaces&) {
    dots[0] = _mm512_setzero_si512();
  }
  KVD_MEMBER __m512 add(__m512 sum, const __m512i (&dots)[1], const std::uint8_t* row,
                        const BlockPlaces& at) const {
    sum = add_scaled(sum, dots[0], d, row + at.scale);
    if constexpr (kOffsets) {
      sum = _mm512_fmadd_ps(total, broadcast_float(row + at.offset), sum);
    }
    return _mm512_fmadd_ps(m, broadcast_float(row + at.sum), sum);
  }
};

template <bool kOffsets>
struct Q4Block : UnsignedBlock<kOffsets> {
  static constexpr PanelType kType = PanelType::kQ4;
  using Together = Alone;
  KVD_MEMBER Q4Block(const std::uint8_t* panel, std::size_t b, const Alone&) {
    const std::uint8_t* block = panel + units_at(kType, b);
    this->set_nibbles(block);
    this->set_scales(half16(block + 256), half16(block + 288));
  }
};

template <bool kOffsets>
struct Q4KBlock : UnsignedBlock<kOffsets> {
  static constexpr PanelType kType = PanelType::kQ4K;
  using Together = Q4KPair;
  KVD_MEMBER Q4KBlock(const std::uint8_t* panel, std::size_t b, const Q4KPair& pair) {
    this->set_nibbles(panel + units_at(kType, b));
    const Q4KScales scales = q4k_scales(pair, b % 2 != 0);
    this->set_scales(scales.d, scales.m);
  }
};

template <bool kOffsets>
struct Q5Block : UnsignedBlock<kOffsets> {
  using UnsignedBlock<kOffsets>::w;
  static constexpr PanelType kType = PanelType::kQ5;
  using Together = Alone;
  KVD_MEMBER Q5Block(const std::uint8_t* panel, std::size_t b, const Alone&) {
    const std::uint8_t* block = panel + units_at(kType, b);
    for (std::size_t i = 0; i < 8; ++i) w[i] = load(block + i * 64);
    this->set_scales(half16(block + 512), half16(block + 544));
  }
};

// Units [4 half, 4 half + 4) of signed bytes as unsigned ones, 128 more; returns the sums of the
// signed ones.
KVD_INLINE __m512i load_signed(const std::uint8_t* block, std::size_t half, __m512i (&w)[8]) {
  __m512i sums = _mm512_set1_epi32(-128 * 16);
  for (std::size_t i = 4 * half; i < 4 * half + 4; ++i) {
    w[i] = _mm512_xor_si512(load(block + i * 64), _mm512_set1_epi8(-128));
    sums = _mm512_dpbusd_epi32(sums, w[i], _mm512_set1_epi8(1));
  }
  return sums;
}

template <bool kOffsets>
struct Q8Block {
  static constexpr PanelType kType = PanelType::kQ8;
  static constexpr std::size_t kDots = 1;
  __m512i w[8];
  __m512 d, total;

  using Together = Alone;
  KVD_MEMBER Q8Block(const std::uint8_t* panel, std::size_t b, const Alone&) {
    const std::uint8_t* block = panel + units_at(kType, b);
    const __m512i first = load_signed(block, 0, w), second = load_signed(block, 1, w);
    d = half16(block + 512);
    total = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_add_epi32(first, second)));
  }
  KVD_MEMBER static void start(__m512i (&dots)[1], const std::uint8_t* row, const BlockPlaces& at) {
    dots[0] = broadcast_int(row + at.start);
  }
  KVD_MEMBER __m512 add(__m512 sum, const __m512i (&dots)[1], const std::uint8_t* row,
                        const BlockPlaces& at) const {
    sum = add_scaled(sum, dots[0], d, row + at.scale);
    if constexpr (!kOffsets) return sum;
    return _mm512_fmadd_ps(total, broadcast_float(row + at.offset), sum);
  }
};

// Each half of its columns has scales of its own.
template <bool kOffsets>
struct Q6Block {
  static constexpr PanelType kType = PanelType::kQ6;
  static constexpr std::size_t kDots = 2;
  __m512i w[8];
  __m512 d[2], total;

  using Together = Alone;
  KVD_MEMBER Q6Block(const std::uint8_t* panel, std::size_t b, const Alone&) {
    const std::uint8_t* block = panel + units_at(kType, b);
    total = _mm512_setzero_ps();
    for (std::size_t half = 0; half < 2; ++half) {
      d[half] = half16(block + 512 + 32 * half);
      const __m512i sums = load_signed(block, half, w);
      total = _mm512_fmadd_ps(d[half], _mm512_cvtepi32_ps(sums), total);
    }
  }
  KVD_MEMBER static void start(__m512i (&dots)[2], const std::uint8_t* row, const BlockPlaces& at) {
    dots[0] = broadcast_int(row + at.half_start);
    dots[1] = _mm512_sub_epi32(broadcast_int(row + at.start), dots[0]);
  }
  KVD_MEMBER __m512 add(__m512 sum, const __m512i (&dots)[2], const std::uint8_t* row,
                        const BlockPlaces& at) const {
    sum = add_scaled(sum, dots[0], d[0], row + at.scale);
    sum = add_scaled(sum, dots[1], d[1], row + at.scale);
    if constexpr (!kOffsets) return sum;
    return _mm512_fmadd_ps(total, broadcast_float(row + at.offset), sum);
  }
};

// What all tiles of a call share, and where this one is.
struct Tile {
  const std::uint8_t* panel;
  std::size_t columns;
  const std::uint8_t* x;  // its first token's row
  std::size_t stride;     // bytes
};

// Some tokens at once: the products of one token wait for each other, and a processor looks ahead
// no further than a few tokens. (A token alone gains nothing from sums in parts: it waits for
// memory.)
template <std::size_t kCount, typename Block>
KVD_INLINE void add_tokens(const Block& block, const std::uint8_t* const* row,
                           const BlockPlaces& at, __m512* sums) {
  __m512i dots[kCount][Block::kDots];
#pragma GCC unroll 4
  for (std::size_t n = 0; n < kCount; ++n) Block::start(dots[n], row[n], at);
#pragma GCC unroll 8
  for (std::size_t i = 0; i < 8; ++i) {
#pragma GCC unroll 4
    for (std::size_t n = 0; n < kCount; ++n) {
      multiply_add(dots[n][i * Block::kDots / 8], block.w[i], row[n] + at.values + 4 * i);
    }
  }
#pragma GCC unroll 4
  for (std::size_t n = 0; n < kCount; ++n) sums[n] = block.add(sums[n], dots[n], row[n], at);
}

template <typename Block, std::size_t T>
void tile_quantized(const Tile& tile, __m512* out) {
  const std::size_t blocks = tile.columns / kBlock;
  const std::uint8_t* row[T];
  __m512 sums[T];
  for (std::size_t t = 0; t < T; ++t) {
    row[t] = tile.x + t * tile.stride;
    sums[t] = _mm512_setzero_ps();
  }
  BlockPlaces at(tile.columns);
  using Together = typename Block::Together;
  for (std::size_t first = 0; first < blocks; first += Together::kBlocks) {
    const Together together(tile.panel, first);
#pragma GCC unroll 2
    for (std::size_t i = 0; i < Together::kBlocks; ++i) {
      // Both of a pair asked for before its scales are read: 6 % slower.
      ask_for_block<Block::kType>(tile.panel, first + i);
      const Block block(tile.panel, first + i, together);
      constexpr std::size_t kWhole = T / kAtOnce * kAtOnce;
#pragma GCC unroll 16
      for (std::size_t t = 0; t < kWhole; t += kAtOnce) {
        add_tokens<kAtOnce>(block, row + t, at, sums + t);
      }
      if constexpr (T > kWhole) add_tokens<T - kWhole>(block, row + kWhole, at, sums + kWhole);
      at.next();
    }
  }
  for (std::size_t t = 0; t < T; ++t) out[t] = sums[t];
}

// Columns k (even) and k + 1 of float panels.
struct F32Columns {
  __m512 w[2];
  KVD_MEMBER F32Columns(const std::uint8_t* panel, std::size_t k) {
    w[0] = _mm512_load_ps(panel + k * 64);
    w[1] = _mm512_load_ps(panel + k * 64 + 64);
  }
};
struct F16Columns {
  __m512 w[2];
  KVD_MEMBER F16Columns(const std::uint8_t* panel, std::size_t k) {
    w[0] = half16(panel + k * 32);
    w[1] = half16(panel + k * 32 + 32);
  }
};
struct Bf16Columns {
  __m512 w[2];
  KVD_MEMBER Bf16Columns(const std::uint8_t* panel, std::size_t k) {
    const __m512i pair = load(panel + k * 32);
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000U));
    w[0] = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
    w[1] = _mm512_castsi512_ps(_mm512_and_si512(pair, upper));
  }
};

// The exact path: float activations. Even and odd columns have sums of their own, so that one token
// does not wait for each addition.
template <typename Columns, std::size_t T>
void tile_float(const Tile& tile, __m512* out) {
  const std::uint8_t* row[T];
  __m512 sums[T][2];
  for (std::size_t t = 0; t < T; ++t) {
    row[t] = tile.x + t * tile.stride;
    sums[t][0] = sums[t][1] = _mm512_setzero_ps();
  }
  for (std::size_t k = 0; k < tile.columns; k += 2) {
    const Columns columns(tile.panel, k);
#pragma GCC unroll 8
    for (std::size_t t = 0; t < T; ++t) {
      sums[t][0] = _mm512_fmadd_ps(columns.w[0], broadcast_float(row[t] + k * 4), sums[t][0]);
      sums[t][1] = _mm512_fmadd_ps(columns.w[1], broadcast_float(row[t] + k * 4 + 4), sums[t][1]);
    }
  }
  for (std::size_t t = 0; t < T; ++t) out[t] = _mm512_add_ps(sums[t][0], sums[t][1]);
}

// The tile functions of a panel type, by number of tokens less one.
using TileFunction = void (*)(const Tile&, __m512*);
struct TileFunctions {
  TileFunction of[kTile];
  std::uint32_t most;
};
// Without offsets, and with them.
struct QuantizedTiles {
  TileFunctions plain, offsets;
};
template <template <bool> typename Block, std::size_t... T>
constexpr QuantizedTiles quantized_tiles(std::index_sequence<T...>) {
  return {{{tile_quantized<Block<false>, T + 1>...}, kTile},
          {{tile_quantized<Block<true>, T + 1>...}, kTile}};
}
template <typename Columns, std::size_t... T>
constexpr TileFunctions float_tiles(std::index_sequence<T...>) {
  return {{tile_float<Columns, T + 1>...}, kFloatTile};
}
constexpr std::make_index_sequence<kTile> kWidths;
constexpr std::make_index_sequence<kFloatTile> kFloatWidths;
constexpr QuantizedTiles kQ4 = quantized_tiles<Q4Block>(kWidths);
constexpr QuantizedTiles kQ4K = quantized_tiles<Q4KBlock>(kWidths);
constexpr QuantizedTiles kQ5 = quantized_tiles<Q5Block>(kWidths);
constexpr QuantizedTiles kQ6 = quantized_tiles<Q6Block>(kWidths);
constexpr QuantizedTiles kQ8 = quantized_tiles<Q8Block>(kWidths);
constexpr TileFunctions kF32 = float_tiles<F32Columns>(kFloatWidths);
constexpr TileFunctions kF16 = float_tiles<F16Columns>(kFloatWidths);
constexpr TileFunctions kBf16 = float_tiles<Bf16Columns>(kFloatWidths);

const TileFunctions& tiles_of(PanelType type, bool offsets) {
  switch (type) {
    case PanelType::kQ4:
      return offsets ? kQ4.offsets : kQ4.plain;
    case PanelType::kQ4K:
      return offsets ? kQ4K.offsets : kQ4K.plain;
    case PanelType::kQ5:
      return offsets ? kQ5.offsets : kQ5.plain;
    case PanelType::kQ6:
      return offsets ? kQ6.offsets : kQ6.plain;
    case PanelType::kQ8:
      return offsets ? kQ8.offsets : kQ8.plain;
    case PanelType::kF16:
      return kF16;
    case PanelType::kBF16:
      return kBf16;
    case PanelType::kF32:
      break;
  }
  return kF32;
}

}  // namespace

void linear(const Matrix& matrix, std::uint32_t begin, std::uint32_t end, const Activations& x,
            std::uint32_t rows, float* out, std::size_t out_stride, bool add, std::byte*) {
  const TileFunctions& tiles = tiles_of(matrix.type, x.offsets);
  const bool quantized = is_quantized(matrix.type);
  const auto* first = quantized ? reinterpret_cast<const std::uint8_t*>(x.quantized)
                                : reinterpret_cast<const std::uint8_t*>(x.floats);
  Tile tile{nullptr, matrix.columns, nullptr,
            quantized ? x.quantized_stride : x.float_stride * sizeof(float)};
  const auto near_rows = static_cast<std::uint32_t>(kNearBytes / tile.stride / kTile + 1) * kTile;
  __m512 sums[kTile];
  for (std::uint32_t near = 0; near < rows; near += near_rows) {
    const std::uint32_t near_end = least(rows, near + near_rows);
    for (std::uint32_t panel = begin; panel < end; ++panel) {
      tile.panel = reinterpret_cast<const std::uint8_t*>(matrix.data + panel_at(matrix, panel));
      const __mmask16 valid = first_lanes(matrix.rows - panel * kPanelRows);
      for (std::uint32_t row = near; row < near_end; row += tiles.most) {
        const std::uint32_t count = least(tiles.most, near_end - row);
        tile.x = first + row * tile.stride;
        tiles.of[count - 1](tile, sums);
        float* to = out + row * out_stride + std::size_t{panel} * kPanelRows;
        for (std::uint32_t t = 0; t < count; ++t, to += out_stride) {
          if (add) sums[t] = _mm512_add_ps(_mm512_maskz_loadu_ps(valid, to), sums[t]);
          _mm512_mask_storeu_ps(to, valid, sums[t]);
        }
      }
    }
  }
}

}  // namespace kvd::engine::cpu::avx512
