// Weights as the kernels read them: a matrix in panels of 16 rows, still quantized, packed once at
// load. One layout for every instruction set.
//
// A panel of a block-quantized matrix is a run of 32-column blocks, or of super-blocks of eight:
//   kQ4 (Q4_0, Q4_1), 320 bytes: 4 units of 16 rows x 4 bytes; unit i holds columns 8i..8i+3 of
//   each row
//     in the low nibbles and 8i+4..8i+7 in the high ones; then 16 f16 d, 16 f16 m; w = d * q + m.
//     Q4_0's w = d * (q - 8) is stored with m = -8 d, which f16 holds exactly.
//   kQ4K (Q4_K), super-blocks of eight blocks, 2304 bytes, the file's 4.5 bits a weight: 16 f16 d,
//     16 f16 dmin; three times 16 u32 of scales, one for each row; 256 bytes of units, as kQ4's,
//     for each block. A block's scales are 12 bits: the scale, and above it the minimum. Word i of
//     a row has blocks 2i and 2i + 1 in its lower three bytes; the fourth bytes of the three have
//     blocks 6 and 7 in the same order. w = (d * scale) * q - (dmin * minimum) in f32, which holds
//     the products exactly. Where weights become floats (scalar, AMX) only the difference is
//     rounded, alike on both; int8 paths use the same two products.
//   kQ8 (Q8_0, Q5_0), 544 bytes: 8 units of 16 rows x 4 bytes, signed; then 16 f16 d; w = d * q.
//   kQ5 (Q5_1, Q5_K), 576 bytes: 8 units of bytes 0 to 31; then 16 f16 d, 16 f16 m; w = d * q + m.
//   kQ6 (Q6_K), 576 bytes: 8 units of bytes -32 to 31; then 16 f16 d of the first 16 columns and 16
//     of the others; w = d * q.
//   The scales of Q5_K and Q6_K are products, rounded here to f16.
// A panel of a float matrix:
//   kF32, kF16: [column][16 rows]
//   kBF16: [column / 2][16 rows][2], the operand order of bf16 dot products
// Rows beyond the matrix in the last panel are zero.
//
// Plain data without owning: the memory belongs to the model. Kept free of library types, because
// kernel files compiled for newer processors include it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvd::engine::cpu {

enum class PanelType : std::uint8_t { kQ4, kQ8, kF32, kF16, kBF16, kQ5, kQ6, kQ4K };

constexpr std::uint32_t kPanelRows = 16;
constexpr std::uint32_t kBlock = 32;  // columns a quantized block
constexpr std::uint32_t kQ4BlockBytes = 320;
constexpr std::uint32_t kQ8BlockBytes = 544;
constexpr std::uint32_t kWideBlockBytes = 576;                              // kQ5, kQ6
constexpr std::uint32_t kQ4KBlocks = 8;                                     // in a super-block
constexpr std::uint32_t kQ4KHalves = 64, kQ4KWords = 192, kQ4KUnits = 256;  // bytes
constexpr std::uint32_t kQ4KBytes = kQ4KHalves + kQ4KWords + kQ4KBlocks * kQ4KUnits;
static_assert(kQ4KBytes == 2304);

struct Matrix {
  PanelType type = PanelType::kF32;
  std::uint32_t rows = 0;
  std::uint32_t columns = 0;
  std::uint32_t panels = 0;
  std::size_t panel_bytes = 0;
  // From two panels to the next two: 2 * panel_bytes, or more where another matrix's lie between.
  std::size_t pair_stride = 0;
  const std::byte* data = nullptr;  // 64-byte aligned
};

// Where a panel begins, in bytes from `data`.
static inline std::size_t panel_at(const Matrix& matrix, std::uint32_t panel) {
  return panel / 2 * matrix.pair_stride + panel % 2 * matrix.panel_bytes;
}

static constexpr bool is_wide(PanelType type) {
  return type == PanelType::kQ5 || type == PanelType::kQ6;
}
static constexpr bool is_quantized(PanelType type) {
  return type == PanelType::kQ4 || type == PanelType::kQ4K || type == PanelType::kQ8 ||
         is_wide(type);
}
// Bytes of 32 columns in a panel of a quantized type. Of kQ4K in the mean: where its blocks are is
// units_at()'s to say.
static constexpr std::uint32_t block_bytes(PanelType type) {
  return type == PanelType::kQ4    ? kQ4BlockBytes
         : type == PanelType::kQ4K ? kQ4KBytes / kQ4KBlocks
         : type == PanelType::kQ8  ? kQ8BlockBytes
                                   : kWideBlockBytes;
}
// Where in a panel of kQ4K the super-block of block b is.
static constexpr std::size_t q4k_super_at(std::size_t b) { return b / kQ4KBlocks * kQ4KBytes; }
// Where in a panel of a quantized type the units of block b are.
static constexpr std::size_t units_at(PanelType type, std::size_t b) {
  if (type != PanelType::kQ4K) return b * block_bytes(type);
  return q4k_super_at(b) + kQ4KHalves + kQ4KWords + b % kQ4KBlocks * kQ4KUnits;
}

// A panel comes from memory, and with one token or a few it is used once. Asks for a whole block
// before its first line is waited for, so that more lines are on their way at a time; and for as
// much two pages of 4 KiB later, in the second-level cache: a processor's own reading ahead ends
// with each page. (Zen 5, one token: 1.1 to 1.3 x as fast as with a page's first lines alone; one
// page ahead up to a tenth slower.) Past a panel lies the next, past a matrix mostly what is read
// next. The tiles of a prompt ask too, for what is near already after the first: it costs them up
// to 2 %.
constexpr std::size_t kAskedAhead = 8192;
[[gnu::always_inline]] static inline void ask_for(const std::uint8_t* block, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(block + i);
    __builtin_prefetch(block + i + kAskedAhead, 0, 2);
  }
}

// The same of block b of a panel of a quantized type. Of kQ4K, whose blocks' parts do not lie
// together, of as many bytes in the order of memory: they end 64 to 288 bytes after the block. (One
// thread, 36 MiB, Zen 5: 35 GB/s; 288 bytes earlier 33; of a block's own parts, or of nothing, 23.)
template <PanelType kType>
[[gnu::always_inline]] static inline void ask_for_block(const std::uint8_t* panel, std::size_t b) {
  constexpr std::size_t kLater = kType == PanelType::kQ4K ? 1 : 0;
  ask_for(panel + (b + kLater) * block_bytes(kType), block_bytes(kType));
}

// Fills out[columns][16] with the panel's weights as floats.
void dequantize_panel(const Matrix& matrix, std::uint32_t panel, float* out);
// Fills out[columns] with one row (embedding lookup).
void dequantize_row(const Matrix& matrix, std::uint32_t row, float* out);

}  // namespace kvd::engine::cpu
