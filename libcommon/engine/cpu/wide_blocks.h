// Blocks of the GGUF formats beyond Q4_0, Q4_1 and Q8_0, 32 columns at a time; of Q4_K as the file
// has them.
//
// Formats: ggml's block_q5_0, block_q5_1, block_q4_K, block_q5_K and block_q6_K (ggml-common.h) and
// their dequantize_row functions (ggml-quants.c).
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/gguf.h"

namespace kvd::engine::cpu {

// 32 columns of a row: w[i] = d[i / 16] * q[i] + m.
struct WideBlock {
  std::int8_t q[32];
  float d[2];
  float m;
};

// Reads columns [32 block, 32 block + 32) of the row that starts at `row`.
using ReadWideBlock = void (*)(const std::byte* row, std::uint64_t block, WideBlock* out);
// Null for the other types, Q4_K among them.
ReadWideBlock wide_block_reader(TensorType type);

// 32 columns of a row of Q4_K: w[i] = d * scale * q[i] - dmin * minimum.
struct Q4KColumns {
  std::uint8_t q[32];
  unsigned scale, minimum;  // 6 bits
};
Q4KColumns read_q4_k(const std::byte* row, std::uint64_t block);

}  // namespace kvd::engine::cpu
