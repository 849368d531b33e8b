// Attention over pages in bf16 dot products (vdpbf16ps), which take a pair of neighbours at a time.
// K of a block is brought into [pair of dims][64 tokens], V into [pair of tokens][dim]: for many
// query rows once, into scratch memory, for a tile of them in registers. A score or an output is
// then a lane, and a query's pair or a weight's is broadcast. Queries become bf16 when they are
// rotated, weights when they are made: a relative 2^-9 each, a tenth of what int8 activations cost.
//
// A score is one running sum along the head, an output one along the tokens. Neither depends on how
// many rows a tile has.
#include <utility>

#include "engine/cpu/avx512.h"

namespace kvd::engine::cpu::avx512 {
namespace {

constexpr std::uint32_t kTile = 6;                // query rows
constexpr std::uint32_t kScores = kKvBlock / 16;  // registers of a row's scores

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

// What is asked for meanwhile, while a block's keys are read its values, and then the next keys: a
// few lines at a time, evenly among the arithmetic. Counted over both runs, line l is of the first
// where l is even. (Zen 5, from memory, two threads that share no cache: 0.79 us a block; 0.93 in
// the order of memory and 32 tokens ahead.)
KVD_INLINE void ask_for(const KvRuns& from, std::uint32_t line) {
  const std::byte* run = line % 2 == 0 ? from.first : from.second;
  _mm_prefetch(reinterpret_cast<const char*>(run + std::size_t{line / 2} * 64), _MM_HINT_T0);
}
// From an even line on.
KVD_INLINE KvRuns lines_from(const KvRuns& runs, std::size_t line) {
  return {runs.first + line * 32, runs.second + line * 32};
}

// Of the next keys' 2 * head_dim lines: those asked for with the weights, then those with each pair
// of tokens and 16 N dims of their values.
KVD_INLINE std::size_t lines_with_weights(std::uint32_t head_dim) { return head_dim / 64 * 32; }
constexpr std::uint32_t lines_with_values(std::uint32_t n) { return n == 4 ? 3 : n; }

// Dims [2p, 2p + 32) of the keys of 16 tokens: pair p + i of each token to r[i]. Zero beyond the
// first `tokens` and beyond the head.
KVD_INLINE void load_keys(const std::byte* from, const KvRuns& ahead, std::uint32_t tokens,
                          std::uint32_t pairs, std::uint32_t p, __m512i (&r)[16]) {
  const __mmask16 lanes = first_lanes(pairs - p);
  const KvRuns lines = lines_from(ahead, p);
#pragma GCC unroll 16
  for (std::uint32_t i = 0; i < 16; ++i) {
    const __mmask16 there = i < tokens ? lanes : __mmask16{0};
    if (p + i < pairs) ask_for(lines, i);
    r[i] = _mm512_maskz_loadu_epi32(there, from + (std::size_t{i} * pairs + p) * 4);
  }
  transpose(r);
}

// 16 dims of two neighbouring tokens' values, in pairs; without the second one its half is zero.
KVD_INLINE __m512i load_values(const std::byte* even, std::uint32_t head_dim, bool both) {
  const std::byte* odd = even + std::size_t{head_dim} * 2;
  const __mmask16 there = both ? __mmask16{0xFFFF} : __mmask16{0};
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even));
  const __m256i b = _mm256_maskz_loadu_epi16(there, odd);
  return _mm512_permutex2var_epi16(_mm512_castsi256_si512(a), order, _mm512_castsi256_si512(b));
}

KVD_INLINE __m512 dot(__m512 sum, __m512i pairs, __m512i with) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(pairs), reinterpret_cast<__m512bh>(with));
}

// Keys and values of a block's `count` tokens where they lie, and the keys that are read then.
struct InPages {
  KvRuns block_keys, block_values, next;
  std::uint32_t head_dim, count;

  InPages(const KvView& kv, std::uint32_t first, std::uint32_t tokens)
      : block_keys(runs_from(kv, kv.key_offset, first)),
        block_values(read_after_keys(kv, first)),
        next(read_after_values(kv, first)),
        head_dim(kv.head_dim),
        count(tokens) {}
  // Tokens from the block's `at` on: a run has kKvTogether of them.
  KVD_MEMBER const std::byte* token(const KvRuns& runs, std::uint32_t at) const {
    const std::byte* from = at < kKvTogether ? runs.first : runs.second;
    return from + std::size_t{at % kKvTogether} * head_dim * 2;
  }
  // Of the 16 tokens from the block's `at` on.
  KVD_MEMBER void load(std::uint32_t at, std::uint32_t p, __m512i (&r)[16]) const {
    const std::uint32_t pairs = head_dim / 2;
    load_keys(token(block_keys, at), lines_from(block_values, std::size_t{at} / 16 * pairs),
              least(16, count - at), pairs, p, r);
  }
  // While the weights of row `t` of so many are made.
  KVD_MEMBER void ask_with_weights(std::uint32_t t, std::uint32_t rows) const {
    const std::size_t twos = lines_with_weights(head_dim) / 2;
    for (std::size_t i = twos * t / rows; i < twos * (t + 1) / rows; ++i) {
      const KvRuns lines = lines_from(next, 2 * i);
      ask_for(lines, 0), ask_for(lines, 1);
    }
  }
  // While 16 N dims of a pair's values are read, from `dim` on.
  template <std::uint32_t N>
  KVD_MEMBER void ask_with_values(std::uint32_t pair, std::uint32_t dim) const {
    constexpr std::uint32_t kLines = lines_with_values(N);
    const std::size_t before =
        lines_with_weights(head_dim) + std::size_t{dim} / 64 * 96 + dim % 64 * 2;
    const KvRuns lines = lines_from(next, before + std::size_t{pair / 2} * 2 * kLines);
    if (pair % 2 == 0) {
      for (std::uint32_t i = 0; i < kLines; ++i) ask_for(lines, i);
    } else {
      for (std::uint32_t i = kLines; i < 2 * kLines; ++i) ask_for(lines, i);
    }
  }
  template <std::uint32_t T>
  KVD_MEMBER void score(const std::uint32_t* const (&query)[T],
                        __m512 (&scores)[T][kScores]) const {
    const std::uint32_t pairs = head_dim / 2;
    for (std::uint32_t j = 0; j < count; j += 16) {
      __m512 sums[T];
      for (std::uint32_t t = 0; t < T; ++t) sums[t] = _mm512_setzero_ps();
      for (std::uint32_t p = 0; p < pairs; p += 16) {
        __m512i r[16];
        load(j, p, r);
#pragma GCC unroll 16
        for (std::uint32_t i = 0; i < 16; ++i) {
          if (p + i >= pairs) break;
          for (std::uint32_t t = 0; t < T; ++t) {
            sums[t] = dot(sums[t], r[i], _mm512_set1_epi32(static_cast<int>(query[t][p + i])));
          }
        }
      }
      for (std::uint32_t t = 0; t < T; ++t) scores[t][j / 16] = sums[t];
    }
  }
  struct Values {
    const std::byte* from;
    std::uint32_t head_dim, tokens;
    KVD_MEMBER __m512i operator()(std::uint32_t pair, std::uint32_t dim) const {
      const std::size_t offset = (std::size_t{pair} * 2 * head_dim + dim) * 2;
      return load_values(from + offset, head_dim, 2 * pair + 1 < tokens);
    }
  };
  // Of the eight pairs of tokens from `pair` on.
  KVD_MEMBER Values values(std::uint32_t pair) const {
    const std::uint32_t at = 2 * pair;
    return {token(block_values, at), head_dim, count - at};
  }
};

// The same, brought into order in scratch memory.
struct Arranged {
  std::uint32_t* keys;          // [pair of dims][64]
  std::uint32_t* block_values;  // [pair of tokens][head_dim]
  std::uint32_t head_dim;

  Arranged(const InPages& block, std::byte* scratch)
      : keys(reinterpret_cast<std::uint32_t*>(scratch)),
        block_values(keys + std::size_t{kKvBlock} * block.head_dim / 2),
        head_dim(block.head_dim) {
    const std::uint32_t pairs = head_dim / 2;
    for (std::uint32_t j = 0; j < block.count; j += 16) {
      for (std::uint32_t p = 0; p < pairs; p += 16) {
        __m512i r[16];
        block.load(j, p, r);
        std::uint32_t* to = keys + std::size_t{p} * kKvBlock + j;
#pragma GCC unroll 16
        for (std::uint32_t i = 0; i < 16; ++i) {
          if (p + i < pairs) _mm512_store_si512(to + std::size_t{i} * kKvBlock, r[i]);
        }
      }
    }
    std::uint32_t* to = block_values;
    for (std::uint32_t j = 0; j < block.count; j += 16) {
      const InPages::Values values = block.values(j / 2);
      for (std::uint32_t pair = 0; pair < 8 && j + 2 * pair < block.count; ++pair, to += head_dim) {
        for (std::uint32_t i = 0; i < head_dim; i += 16) {
          _mm512_store_si512(to + i, values(pair, i));
          ask_for(block.next, (j / 2 + pair) * (head_dim / 16) + i / 16);
        }
      }
    }
  }
  template <std::uint32_t T>
  KVD_MEMBER void score(const std::uint32_t* const (&query)[T],
                        __m512 (&scores)[T][kScores]) const {
    for (std::uint32_t t = 0; t < T; ++t) {
      for (std::uint32_t v = 0; v < kScores; ++v) scores[t][v] = _mm512_setzero_ps();
    }
    const std::uint32_t* at = keys;
    for (std::uint32_t p = 0; p < head_dim / 2; ++p, at += kKvBlock) {
      __m512i k[kScores];
      for (std::uint32_t v = 0; v < kScores; ++v) k[v] = _mm512_load_si512(at + 16 * v);
#pragma GCC unroll 6
      for (std::uint32_t t = 0; t < T; ++t) {
        const __m512i q = _mm512_set1_epi32(static_cast<int>(query[t][p]));
        for (std::uint32_t v = 0; v < kScores; ++v) scores[t][v] = dot(scores[t][v], k[v], q);
      }
    }
  }
  // All has been asked for.
  KVD_MEMBER void ask_with_weights(std::uint32_t, std::uint32_t) const {}
  template <std::uint32_t N>
  KVD_MEMBER void ask_with_values(std::uint32_t, std::uint32_t) const {}
  struct Values {
    const std::uint32_t* from;
    std::uint32_t head_dim;
    KVD_MEMBER __m512i operator()(std::uint32_t pair, std::uint32_t dim) const {
      return _mm512_load_si512(from + std::size_t{pair} * head_dim + dim);
    }
  };
  KVD_MEMBER Values values(std::uint32_t pair) const {
    return {block_values + std::size_t{pair} * head_dim, head_dim};
  }
};

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

// Dims [dim, dim + 16 N) of the outputs, of T rows.
template <std::uint32_t T, std::uint32_t N, typename Source>
KVD_INLINE void weigh(const std::uint32_t (*weights)[kKvBlock / 2], const Source& block,
                      std::uint32_t pairs, std::uint32_t dim, float* const* out) {
  __m512 acc[T][N];
  for (std::uint32_t t = 0; t < T; ++t) {
    for (std::uint32_t n = 0; n < N; ++n) acc[t][n] = _mm512_setzero_ps();
  }
  for (std::uint32_t run = 0; run < pairs; run += 8) {
    const auto values = block.values(run);
    const std::uint32_t count = least(8, pairs - run);
    for (std::uint32_t j = 0; j < count; ++j) {
      __m512i v[N];
      for (std::uint32_t n = 0; n < N; ++n) v[n] = values(j, dim + 16 * n);
      block.template ask_with_values<N>(run + j, dim);
#pragma GCC unroll 6
      for (std::uint32_t t = 0; t < T; ++t) {
        const __m512i w = _mm512_set1_epi32(static_cast<int>(weights[t][run + j]));
        for (std::uint32_t n = 0; n < N; ++n) acc[t][n] = dot(acc[t][n], v[n], w);
      }
    }
  }
  for (std::uint32_t t = 0; t < T; ++t) {
    for (std::uint32_t n = 0; n < N; ++n) _mm512_storeu_ps(out[t] + dim + 16 * n, acc[t][n]);
  }
}

template <typename Source, std::uint32_t T>
void attend_tile(const Source& block, std::uint32_t first, std::uint32_t head_dim,
                 const Queries& queries, std::uint32_t row, float* partials) {
  const std::uint32_t* query[T];
  float* out[T];
  std::uint32_t counts[T], most = 0;
  for (std::uint32_t t = 0; t < T; ++t) {
    const std::uint32_t token = (row + t) / queries.group;
    query[t] = reinterpret_cast<const std::uint32_t*>(
        queries.data + token * queries.stride + std::size_t{(row + t) % queries.group} * head_dim);
    out[t] = partials + (row + t) * partial_stride(head_dim);
    counts[t] = least(kKvBlock, queries.position + token - first + 1);
    most = counts[t] > most ? counts[t] : most;
  }
  __m512 scores[T][kScores];
  block.score(query, scores);
  alignas(64) std::uint32_t weights[T][kKvBlock / 2];
  for (std::uint32_t t = 0; t < T; ++t) {
    block.ask_with_weights(t, T);
    soften(scores[t], counts[t], weights[t], out[t] + head_dim, out[t] + head_dim + 1);
  }
  const std::uint32_t pairs = (most + 1) / 2;
  std::uint32_t i = 0;
  for (; i + 64 <= head_dim; i += 64) weigh<T, 4>(weights, block, pairs, i, out);
  for (; i + 32 <= head_dim; i += 32) weigh<T, 2>(weights, block, pairs, i, out);
  if (i < head_dim) weigh<T, 1>(weights, block, pairs, i, out);
}

template <typename Source>
using TileFunction = void (*)(const Source&, std::uint32_t, std::uint32_t, const Queries&,
                              std::uint32_t, float*);
template <typename Source, std::uint32_t... T>
constexpr TileFunction<Source> tile_of(std::uint32_t rows,
                                       std::integer_sequence<std::uint32_t, T...>) {
  constexpr TileFunction<Source> kTiles[] = {attend_tile<Source, T + 1>...};
  return kTiles[rows - 1];
}
constexpr std::make_integer_sequence<std::uint32_t, kTile> kWidths;

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
  const InPages there(kv, first, least(kKvBlock, last - first + 1));
  const std::uint32_t rows = queries.rows - first_row;
  if (rows <= kTile) {
    return tile_of<InPages>(rows, kWidths)(there, first, kv.head_dim, queries, first_row, partials);
  }
  const Arranged arranged(there, scratch);
  for (std::uint32_t row = first_row; row < queries.rows; row += kTile) {
    const std::uint32_t count = least(kTile, queries.rows - row);
    tile_of<Arranged>(count, kWidths)(arranged, first, kv.head_dim, queries, row, partials);
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
