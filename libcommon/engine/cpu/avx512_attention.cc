// Attention over pages in bf16 dot products (vdpbf16ps), which take a pair of neighbours at a time.
// K of a block is brought into [pair of dims][64 tokens], V into [pair of tokens][dim], once for
// all query rows; a score or an output is then a lane, and a query's pair or a weight's is
// broadcast. Queries become bf16 when they are rotated, weights when they are made: a relative
// 2^-9 each, a tenth of what int8 activations cost.
//
// A score is one running sum along the head, an output one along the tokens. Neither depends on how
// many rows a tile has.
#include <utility>

#include "engine/cpu/avx512.h"

namespace kvd::engine::cpu::avx512 {
namespace {

constexpr std::uint32_t kTile = 6;                // query rows
constexpr std::uint32_t kScores = kKvBlock / 16;  // registers of a row's scores

KVD_INLINE std::uint32_t least(std::uint32_t a, std::uint32_t b) { return a < b ? a : b; }

KVD_INLINE const std::byte* token_at(const KvView& kv, std::size_t offset, std::uint32_t token) {
  return kv.pool + kv.pages[token / kv.page_size] * kv.page_bytes + offset +
         std::size_t{token % kv.page_size} * kv.head_dim * 2;
}

// 16 x 16 words: column i of the rows becomes r[i].
KVD_INLINE void transpose(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

// Asks for tokens [first, first + 16) of a later block, so that a decode step does not wait for its
// pages.
KVD_INLINE void prefetch(const KvView& kv, std::size_t offset, std::uint32_t first) {
  const auto* at = reinterpret_cast<const char*>(token_at(kv, offset, first));
  for (std::size_t i = 0; i < std::size_t{16} * kv.head_dim * 2; i += 64) {
    _mm_prefetch(at + i, _MM_HINT_T1);
  }
}

// Keys of tokens [first, first + count) to out[pair of dims][64]; what is beyond them in the last
// 16 is zero, what is beyond those stays.
void arrange_keys(const KvView& kv, std::uint32_t first, std::uint32_t count, std::uint32_t last,
                  std::uint32_t* out) {
  const std::uint32_t pairs = kv.head_dim / 2;
  for (std::uint32_t j = 0; j < count; j += 16) {
    if (first + j + kKvBlock <= last) prefetch(kv, kv.key_offset, first + j + kKvBlock);
    const std::byte* from = token_at(kv, kv.key_offset, first + j);
    const std::uint32_t rows = least(16, count - j);
    for (std::uint32_t p = 0; p < pairs; p += 16) {
      const __mmask16 lanes = first_lanes(pairs - p);
      __m512i r[16];
#pragma GCC unroll 16
      for (std::uint32_t i = 0; i < 16; ++i) {
        const __mmask16 there = i < rows ? lanes : __mmask16{0};
        r[i] = _mm512_maskz_loadu_epi32(there, from + (std::size_t{i} * pairs + p) * 4);
      }
      transpose(r);
      std::uint32_t* to = out + p * kKvBlock + j;
#pragma GCC unroll 16
      for (std::uint32_t i = 0; i < 16; ++i) {
        if (p + i < pairs) _mm512_store_si512(to + std::size_t{i} * kKvBlock, r[i]);
      }
    }
  }
}

// Values of the tokens to out[pair of tokens][head_dim]; an odd last one is paired with zeros.
void arrange_values(const KvView& kv, std::uint32_t first, std::uint32_t count, std::uint32_t last,
                    std::uint32_t* out) {
  for (std::uint32_t run = 0; run < count; run += 16) {
    if (first + run + kKvBlock <= last) prefetch(kv, kv.value_offset, first + run + kKvBlock);
    const std::byte* from = token_at(kv, kv.value_offset, first + run);
    const std::uint32_t tokens = least(16, count - run);
    for (std::uint32_t j = 0; j < tokens; j += 2, out += kv.head_dim) {
      const std::byte* even = from + std::size_t{j} * kv.head_dim * 2;
      const std::byte* odd = even + std::size_t{kv.head_dim} * 2;
      const __mmask16 there = j + 1 < tokens ? __mmask16{0xFFFF} : __mmask16{0};
      for (std::uint32_t i = 0; i < kv.head_dim; i += 16) {
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + 2 * i));
        const __m256i b = _mm256_maskz_loadu_epi16(there, odd + 2 * i);
        _mm512_store_si512(out + i,
                           _mm512_or_si512(_mm512_cvtepu16_epi32(a),
                                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16)));
      }
    }
  }
}

KVD_INLINE __m512 dot(__m512 sum, __m512i pairs, __m512i with) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(pairs), reinterpret_cast<__m512bh>(with));
}

// A row's scores become weights relative to the highest, as bf16 for the values and their sum.
KVD_INLINE void soften(__m512 (&scores)[kScores], std::uint32_t count, std::uint32_t* weights,
                       float* highest, float* sum) {
  const __m512 nothing = _mm512_set1_ps(-__builtin_inff());
  __mmask16 lanes[kScores];
  for (std::uint32_t v = 0; v < kScores; ++v) {
    lanes[v] = count > v * 16 ? first_lanes(count - v * 16) : __mmask16{0};
    scores[v] = _mm512_mask_mov_ps(nothing, lanes[v], scores[v]);
  }
  *highest = _mm512_reduce_max_ps(
      _mm512_max_ps(_mm512_max_ps(scores[0], scores[1]), _mm512_max_ps(scores[2], scores[3])));
  const __m512 base = _mm512_set1_ps(*highest);
  for (std::uint32_t v = 0; v < kScores; ++v) {
    scores[v] = _mm512_maskz_mov_ps(lanes[v], exp_ps(_mm512_sub_ps(scores[v], base)));
  }
  *sum = _mm512_reduce_add_ps(
      _mm512_add_ps(_mm512_add_ps(scores[0], scores[1]), _mm512_add_ps(scores[2], scores[3])));
  for (std::uint32_t v = 0; v < kScores; v += 2) {
    const __m512bh pair = _mm512_cvtne2ps_pbh(scores[v + 1], scores[v]);
    _mm512_store_si512(weights + v * 8, reinterpret_cast<__m512i>(pair));
  }
}

struct Block {
  const std::uint32_t* keys;
  const std::uint32_t* values;
  std::uint32_t first;  // token
  std::uint32_t head_dim;
};

// 16 N of the outputs, of T rows.
template <std::uint32_t T, std::uint32_t N>
KVD_INLINE void weigh(const std::uint32_t (*weights)[kKvBlock / 2], const std::uint32_t* values,
                      std::uint32_t pairs, std::uint32_t head_dim, float* const* out) {
  __m512 acc[T][N];
  for (std::uint32_t t = 0; t < T; ++t) {
    for (std::uint32_t n = 0; n < N; ++n) acc[t][n] = _mm512_setzero_ps();
  }
  for (std::uint32_t j = 0; j < pairs; ++j, values += head_dim) {
    __m512i v[N];
    for (std::uint32_t n = 0; n < N; ++n) v[n] = _mm512_load_si512(values + 16 * n);
#pragma GCC unroll 6
    for (std::uint32_t t = 0; t < T; ++t) {
      const __m512i w = _mm512_set1_epi32(static_cast<int>(weights[t][j]));
      for (std::uint32_t n = 0; n < N; ++n) acc[t][n] = dot(acc[t][n], v[n], w);
    }
  }
  for (std::uint32_t t = 0; t < T; ++t) {
    for (std::uint32_t n = 0; n < N; ++n) _mm512_storeu_ps(out[t] + 16 * n, acc[t][n]);
  }
}

template <std::uint32_t T>
void attend_tile(const Block& block, const Queries& queries, std::uint32_t row, float* partials) {
  const std::uint32_t* query[T];
  float* out[T];
  std::uint32_t counts[T], most = 0;
  for (std::uint32_t t = 0; t < T; ++t) {
    const std::uint32_t token = (row + t) / queries.group;
    query[t] = reinterpret_cast<const std::uint32_t*>(queries.data + token * queries.stride +
                                                      std::size_t{(row + t) % queries.group} *
                                                          block.head_dim);
    out[t] = partials + (row + t) * partial_stride(block.head_dim);
    counts[t] = least(kKvBlock, queries.position + token - block.first + 1);
    most = counts[t] > most ? counts[t] : most;
  }
  __m512 scores[T][kScores];
  for (std::uint32_t t = 0; t < T; ++t) {
    for (std::uint32_t v = 0; v < kScores; ++v) scores[t][v] = _mm512_setzero_ps();
  }
  const std::uint32_t* keys = block.keys;
  for (std::uint32_t p = 0; p < block.head_dim / 2; ++p, keys += kKvBlock) {
    __m512i k[kScores];
    for (std::uint32_t v = 0; v < kScores; ++v) k[v] = _mm512_load_si512(keys + 16 * v);
#pragma GCC unroll 6
    for (std::uint32_t t = 0; t < T; ++t) {
      const __m512i q = _mm512_set1_epi32(static_cast<int>(query[t][p]));
      for (std::uint32_t v = 0; v < kScores; ++v) scores[t][v] = dot(scores[t][v], k[v], q);
    }
  }
  alignas(64) std::uint32_t weights[T][kKvBlock / 2];
  for (std::uint32_t t = 0; t < T; ++t) {
    soften(scores[t], counts[t], weights[t], out[t] + block.head_dim, out[t] + block.head_dim + 1);
  }
  const std::uint32_t pairs = (most + 1) / 2;
  std::uint32_t i = 0;
  const auto advance = [&](std::uint32_t dims) {
    i += dims;
    for (std::uint32_t t = 0; t < T; ++t) out[t] += dims;
  };
  for (; i + 64 <= block.head_dim; advance(64)) {
    weigh<T, 4>(weights, block.values + i, pairs, block.head_dim, out);
  }
  for (; i + 32 <= block.head_dim; advance(32)) {
    weigh<T, 2>(weights, block.values + i, pairs, block.head_dim, out);
  }
  if (i < block.head_dim) weigh<T, 1>(weights, block.values + i, pairs, block.head_dim, out);
}

using TileFunction = void (*)(const Block&, const Queries&, std::uint32_t, float*);
template <std::uint32_t... T>
constexpr TileFunction tile_of(std::uint32_t rows, std::integer_sequence<std::uint32_t, T...>) {
  constexpr TileFunction kTiles[] = {attend_tile<T + 1>...};
  return kTiles[rows - 1];
}

}  // namespace

// In place: bf16 pairs in the first half of the head's memory.
void prepare_query(float* head, std::uint32_t head_dim, float scale) {
  const __m512 factor = _mm512_set1_ps(scale);
  auto* to = reinterpret_cast<std::byte*>(head);
  for (std::uint32_t i = 0; i < head_dim; i += 16, to += 32) {
    const __m256bh pairs = _mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_loadu_ps(head + i), factor));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(pairs));
  }
}

void attend_block(const KvView& kv, std::uint32_t block, const Queries& queries,
                  std::uint32_t first_row, float* partials, std::byte* scratch) {
  const std::uint32_t first = block * kKvBlock;
  const std::uint32_t last = queries.position + (queries.rows - 1) / queries.group;
  const std::uint32_t count = least(kKvBlock, last - first + 1);
  auto* keys = reinterpret_cast<std::uint32_t*>(scratch);
  std::uint32_t* values = keys + std::size_t{kKvBlock} * kv.head_dim / 2;
  arrange_keys(kv, first, count, last, keys);
  arrange_values(kv, first, count, last, values);
  const Block arranged{keys, values, first, kv.head_dim};
  constexpr std::make_integer_sequence<std::uint32_t, kTile> kWidths;
  for (std::uint32_t row = first_row; row < queries.rows; row += kTile) {
    tile_of(least(kTile, queries.rows - row), kWidths)(arranged, queries, row, partials);
  }
}

void merge(float* state, const float* partial, std::uint32_t head_dim) {
  const float old_highest = state[head_dim], new_highest = partial[head_dim];
  const float highest = old_highest > new_highest ? old_highest : new_highest;
  // One exponential for both: of the lower one's distance. The other's is 1.
  const __m512 lower = exp_ps(_mm512_set1_ps(
      old_highest < new_highest ? old_highest - new_highest : new_highest - old_highest));
  const __m512 one = _mm512_set1_ps(1.0F);
  const __m512 a = old_highest < new_highest ? lower : one;
  const __m512 b = old_highest < new_highest ? one : lower;
  for (std::uint32_t i = 0; i < head_dim; i += 16) {
    const __m512 sum = _mm512_mul_ps(_mm512_loadu_ps(state + i), a);
    _mm512_storeu_ps(state + i, _mm512_fmadd_ps(_mm512_loadu_ps(partial + i), b, sum));
  }
  state[head_dim] = highest;
  state[head_dim + 1] =
      state[head_dim + 1] * _mm512_cvtss_f32(a) + partial[head_dim + 1] * _mm512_cvtss_f32(b);
}

void finish(const float* state, std::uint32_t head_dim, float* out) {
  const __m512 inverse = _mm512_set1_ps(1.0F / state[head_dim + 1]);
  for (std::uint32_t i = 0; i < head_dim; i += 16) {
    _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_loadu_ps(state + i), inverse));
  }
}

}  // namespace kvd::engine::cpu::avx512
