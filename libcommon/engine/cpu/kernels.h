// The inner loops of the forward pass, once for each instruction set. Everything else is in
// llama_model.cc, which reads the same for all.
//
// Invariant of every implementation: what comes out for one row (one token; one query head) depends
// on that row's inputs alone, never on how many rows are computed together, in which chunk, or on
// which thread. So batched and alone, chunked and whole, one thread and many give the same bits.
// Only where steps of few rows and of many have implementations of their own (few_rows below) does
// it matter how many there are; `deterministic` uses one of them for all.
//
// Attention works on blocks of 64 tokens at absolute positions: a block gives a partial result
// (maximum, sum, weighted values). Those of a run of four blocks are merged in order of position,
// then what the runs gave, in prefill as in decode: threads share a row by runs.
//
// Plain functions and plain data only: files compiled for newer processors include this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/cpu/panels.h"

namespace kvd::engine::cpu {

// Rows of activations in the forms that linear() reads. `quantized` rows are what quantize() makes;
// unused forms are null.
struct Activations {
  const float* floats = nullptr;
  std::size_t float_stride = 0;  // floats
  const std::byte* quantized = nullptr;
  std::size_t quantized_stride = 0;  // bytes
  bool offsets = false;              // what quantize() was told
};

// A row of int8 activations: columns values q from -127 to 127, then, for each block of 32, its
// scale s, the sum of its numbers, and its offset z (f32 each), a number being s * q + z; then,
// only for AVX-512, for each block -128 * sum of values, then the same of its first 16 (i32).
//
// With `offsets` z is the middle between a block's least and largest number, else 0. It halves what
// a number that stands far out costs the others of its block: the divergence (KL) of the logits
// that a product causes falls to 0.4 x. It costs a tenth of the product's time.
static inline std::size_t int8_row_bytes(std::uint32_t columns) {
  return (columns + columns / kBlock * std::size_t{20} + 63) / 64 * 64;
}

// Keys, or values, of a block, as AVX-512 reads them, and asks for them: a line of one run and a
// line of the other by turns. The second begins with the 33rd token, as one page has that many; of
// fewer it is a half.
struct KvRuns {
  const std::byte* first = nullptr;
  const std::byte* second = nullptr;
};

// K and V of one layer and KV head of one sequence, where they lie in its pages.
struct KvView {
  const std::byte* pool = nullptr;
  const std::uint32_t* pages = nullptr;
  std::size_t page_bytes = 0;
  std::size_t key_offset = 0;    // within a page, of its first token
  std::size_t value_offset = 0;  // the same
  std::uint32_t page_size = 0;   // tokens, a multiple of 32
  std::uint32_t head_dim = 0;
  std::uint32_t end = 0;  // of the tokens that are read; AVX-512 finds a block's places by it
  KvRuns after = {};      // then another view's first keys, if known
};

constexpr std::uint32_t kKvBlock = 64;
constexpr std::uint32_t kRunBlocks = 4;
constexpr std::uint32_t kKvTogether = 32;  // tokens, of one page at least
constexpr std::uint32_t kKvFew = 16;       // next tokens not worth asking for a whole block

// The keys or values of a token; those of the tokens after it follow, up to its page's end.
[[gnu::always_inline]] static inline const std::byte* token_at(const KvView& kv, std::size_t offset,
                                                               std::uint32_t token) {
  return kv.pool + kv.pages[token / kv.page_size] * kv.page_bytes + offset +
         std::size_t{token % kv.page_size} * kv.head_dim * 2;
}

// Of the block that begins with `token`, which is before kv.end.
[[gnu::always_inline]] static inline KvRuns runs_from(const KvView& kv, std::size_t offset,
                                                      std::uint32_t token) {
  const std::byte* at = token_at(kv, offset, token);
  const std::uint32_t tokens = kv.end - token;
  if (tokens <= kKvTogether) return {at, at + std::size_t{tokens} * kv.head_dim};
  return {at, token_at(kv, offset, token + kKvTogether)};
}

// What to ask for while a block's keys are read, `token` being its first, and while its values are:
// its values, then the next keys; the values again where none are known.
[[gnu::always_inline]] static inline KvRuns read_after_keys(const KvView& kv, std::uint32_t token) {
  return runs_from(kv, kv.value_offset, token);
}
[[gnu::always_inline]] static inline KvRuns read_after_values(const KvView& kv,
                                                              std::uint32_t token) {
  if (kv.end > token + kKvBlock + kKvFew) return runs_from(kv, kv.key_offset, token + kKvBlock);
  return kv.after.first != nullptr ? kv.after : read_after_keys(kv, token);
}

// Query rows of one sequence that share a KV head: row r is query head r % group of the token at
// position + r / group.
struct Queries {
  const float* data = nullptr;  // of row 0; heads of a token are head_dim apart
  std::size_t stride = 0;       // floats between tokens
  std::uint32_t group = 0;
  std::uint32_t position = 0;
  std::uint32_t rows = 0;
};

// A partial result of a row: head_dim weighted values, the maximum score, the sum of weights,
// padding.
static inline std::size_t partial_stride(std::size_t head_dim) { return head_dim + 8; }

struct Attention {
  // Rotates a head's first `dims` numbers in place, in pairs of neighbours; `angles` alternate
  // between cosine and sine.
  void (*rotate)(float* head, const float* angles, std::uint32_t dims);
  // K and V as they are stored.
  void (*to_bf16)(const float* from, std::uint32_t count, std::uint16_t* to);
  // Brings a rotated query head into the order that attend_block reads, times `scale`.
  void (*prepare_query)(float* head, std::uint32_t head_dim, float scale);
  // Partial results of rows [first_row, rows) against tokens [64 block, 64 block + 64), up to each
  // row's own position, which must not be before the block. `scratch`:
  // attend_scratch_bytes(head_dim).
  void (*attend_block)(const KvView& kv, std::uint32_t block, const Queries& queries,
                       std::uint32_t first_row, float* partials, std::byte* scratch);
  // state = state merged with the partial of the next block or run.
  void (*merge)(float* state, const float* partial, std::uint32_t head_dim);
  // The row's attention output, in plain order.
  void (*finish)(const float* state, std::uint32_t head_dim, float* out);
};

struct Kernels {
  const char* name;
  // Bytes of a row of Activations::quantized, which linear() reads for block-quantized matrices
  // (AMX for all). Null: it reads floats alone.
  std::size_t (*quantized_row_bytes)(std::uint32_t columns);

  // Blocks [begin, end) of one row.
  void (*quantize)(const float* row, std::uint32_t columns, std::uint32_t begin, std::uint32_t end,
                   bool offsets, std::byte* out);
  // out[row][16 p ..] = (or += when `add`) weights of panels p in [begin, end) times each row.
  // `scratch`: linear_scratch_bytes(columns), 64-byte aligned.
  void (*linear)(const Matrix& matrix, std::uint32_t begin, std::uint32_t end, const Activations& x,
                 std::uint32_t rows, float* out, std::size_t out_stride, bool add,
                 std::byte* scratch);
  void (*rms_norm)(const float* x, const float* weight, float epsilon, std::uint32_t count,
                   float* out);
  // gate = silu(gate) * up
  void (*swiglu)(float* gate, const float* up, std::uint32_t count);

  Attention attention;
  // For models whose weights are plain floats, so that nothing in them is coarser than these.
  Attention exact_attention;

  // What steps of up to kFewRows rows use instead; null: these. Attention is the same.
  const Kernels* few_rows = nullptr;
};

constexpr std::uint32_t kFewRows = 8;

// Two panels as floats.
static inline std::size_t linear_scratch_bytes(std::size_t columns) {
  return 2 * columns * kPanelRows * sizeof(float);
}
static inline std::size_t attend_scratch_bytes(std::size_t head_dim) {
  return 2 * kKvBlock * head_dim * sizeof(float);
}

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
// For head dims that are multiples of 16; only to be called where the processor has AVX2, FMA and
// F16C.
extern const Kernels kAvx2Kernels;
// Both are "avx512": only where it has AVX-512 F, BW, DQ, VL and VNNI as well, and the first where
// it also has BF16.
extern const Kernels kAvx512Kernels;
extern const Kernels kAvx512FloatKernels;
// Where it has AMX as well (amx.h).
extern const Kernels kAmxKernels;
#endif

}  // namespace kvd::engine::cpu
