// Attention over pages. K and V of a block are widened once into scratch, bf16's even and odd
// elements apart: a 32-bit word holds two, the lower one becomes a float by a shift, the upper one
// by a mask. Queries are brought into the same order when they are rotated, results back into plain
// order at the end.
//
// A score is 8 lanes of running sums along the head, added in one fixed order; weighted values are
// added token after token. Neither depends on how many rows a tile has.
#include "engine/cpu/avx2.h"

namespace kvd::engine::cpu::avx2 {
namespace {

constexpr std::uint32_t kTileRows = 3;
constexpr std::uint32_t kTileKeys = 4;
constexpr float kNothing = -__builtin_inff();

KVD_INLINE std::uint32_t least(std::uint32_t a, std::uint32_t b) { return a < b ? a : b; }

// `count` token rows of a block to floats, even elements of each 16 first. Asks for the same rows
// of the next block, in the first-level cache (in the second, batch 8 at 2048 is a quarter slower
// on Zen 5).
void widen(const KvView& kv, std::size_t offset, std::uint32_t first, std::uint32_t count,
           float* out) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000U));
  for (std::uint32_t j = 0; j < count; ++j) {
    const std::uint32_t token = first + j;
    const std::byte* row = token_at(kv, offset, token);
    if (token + kKvBlock < kv.end) {
      const auto* next = reinterpret_cast<const char*>(token_at(kv, offset, token + kKvBlock));
      for (std::uint32_t i = 0; i < kv.head_dim * 2; i += 64) _mm_prefetch(next + i, _MM_HINT_T0);
    }
    for (std::uint32_t i = 0; i < kv.head_dim; i += 16) {
      const __m256i pair = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 2 * i));
      _mm256_store_ps(out + i, _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)));
      _mm256_store_ps(out + i + 8, _mm256_castsi256_ps(_mm256_and_si256(pair, upper)));
    }
    out += kv.head_dim;
  }
}

// scores[t][j] of keys [0, count), count a multiple of 4.
template <int T>
KVD_INLINE void score(const float* const* queries, const float* keys, std::uint32_t count,
                      std::uint32_t head_dim, float (*scores)[kKvBlock]) {
  for (std::uint32_t j = 0; j < count; j += kTileKeys) {
    const float* key = keys + std::size_t{j} * head_dim;
    __m256 acc[T][kTileKeys];
    for (int t = 0; t < T; ++t) {
      for (std::uint32_t k = 0; k < kTileKeys; ++k) acc[t][k] = _mm256_setzero_ps();
    }
    for (std::uint32_t i = 0; i < head_dim; i += 8) {
      __m256 q[T];
      for (int t = 0; t < T; ++t) q[t] = _mm256_loadu_ps(queries[t] + i);
      for (std::uint32_t k = 0; k < kTileKeys; ++k) {
        const __m256 v = _mm256_load_ps(key + std::size_t{k} * head_dim + i);
        for (int t = 0; t < T; ++t) acc[t][k] = _mm256_fmadd_ps(q[t], v, acc[t][k]);
      }
    }
    for (int t = 0; t < T; ++t) {
      const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(acc[t][0], acc[t][1]),
                                          _mm256_hadd_ps(acc[t][2], acc[t][3]));
      _mm_store_ps(scores[t] + j,
                   _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
    }
  }
}

// Scores [0, count) become weights relative to the highest; the rest of the block becomes 0.
void soften(float* scores, std::uint32_t count, float* highest, float* sum) {
  for (std::uint32_t j = count; j < kKvBlock; ++j) scores[j] = kNothing;
  __m256 most = _mm256_load_ps(scores);
  for (std::uint32_t j = 8; j < count; j += 8)
    most = _mm256_max_ps(most, _mm256_load_ps(scores + j));
  *highest = max_lanes(most);
  const __m256 base = _mm256_set1_ps(*highest);
  const __m256 nothing = _mm256_set1_ps(kNothing);
  __m256 total = _mm256_setzero_ps();
  for (std::uint32_t j = 0; j < kKvBlock; j += 8) {
    const __m256 s = _mm256_load_ps(scores + j);
    const __m256 weight =
        _mm256_and_ps(exp_ps(_mm256_sub_ps(s, base)), _mm256_cmp_ps(s, nothing, _CMP_NEQ_UQ));
    _mm256_store_ps(scores + j, weight);
    total = _mm256_add_ps(total, weight);
  }
  *sum = sum_lanes(total);
}

// N vectors of 8 of the weighted sums of values, for T rows.
template <int T, int N>
KVD_INLINE void weigh(const float (*weights)[kKvBlock], const float* values, std::uint32_t count,
                      std::uint32_t head_dim, float* const* out) {
  __m256 acc[T][N];
  for (int t = 0; t < T; ++t) {
    for (int n = 0; n < N; ++n) acc[t][n] = _mm256_setzero_ps();
  }
  for (std::uint32_t j = 0; j < count; ++j, values += head_dim) {
    __m256 w[T];
    for (int t = 0; t < T; ++t) w[t] = _mm256_broadcast_ss(weights[t] + j);
    for (int n = 0; n < N; ++n) {
      const __m256 v = _mm256_load_ps(values + 8 * n);
      for (int t = 0; t < T; ++t) acc[t][n] = _mm256_fmadd_ps(w[t], v, acc[t][n]);
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int n = 0; n < N; ++n) _mm256_storeu_ps(out[t] + 8 * n, acc[t][n]);
  }
}

struct Block {
  const float* keys;
  const float* values;
  std::uint32_t first;  // token
  std::uint32_t head_dim;
};

template <int T>
void attend_tile(const Block& block, const Queries& queries, std::uint32_t row, float* partials) {
  alignas(32) float scores[T][kKvBlock];
  const float* query[T];
  float* out[T];
  std::uint32_t counts[T], most = 0;
  for (std::uint32_t t = 0; t < T; ++t) {
    const std::uint32_t token = (row + t) / queries.group;
    query[t] = queries.data + token * queries.stride +
               std::size_t{(row + t) % queries.group} * block.head_dim;
    out[t] = partials + (row + t) * partial_stride(block.head_dim);
    counts[t] = least(kKvBlock, queries.position + token - block.first + 1);
    most = counts[t] > most ? counts[t] : most;
  }
  score<T>(query, block.keys, (most + kTileKeys - 1) / kTileKeys * kTileKeys, block.head_dim,
           scores);
  for (int t = 0; t < T; ++t) {
    soften(scores[t], counts[t], out[t] + block.head_dim, out[t] + block.head_dim + 1);
  }
  std::uint32_t i = 0;
  for (; i + 32 <= block.head_dim; i += 32) {
    weigh<T, 4>(scores, block.values + i, most, block.head_dim, out);
    for (int t = 0; t < T; ++t) out[t] += 32;
  }
  if (i < block.head_dim) weigh<T, 2>(scores, block.values + i, most, block.head_dim, out);
}

}  // namespace

void rotate(float* head, const float* angles, std::uint32_t dims) {
  std::uint32_t i = 0;
  for (; i + 8 <= dims; i += 8) {
    const __m256 v = _mm256_loadu_ps(head + i), at = _mm256_loadu_ps(angles + i);
    const __m256 swapped = _mm256_mul_ps(_mm256_permute_ps(v, 0xB1), _mm256_movehdup_ps(at));
    _mm256_storeu_ps(head + i, _mm256_fmaddsub_ps(v, _mm256_moveldup_ps(at), swapped));
  }
  for (; i < dims; i += 2) {
    const float x = head[i], y = head[i + 1], c = angles[i], s = angles[i + 1];
    head[i] = x * c - y * s;
    head[i + 1] = x * s + y * c;
  }
}

// As float_to_bf16() (float16.h).
void to_bf16(const float* from, std::uint32_t count, std::uint16_t* to) {
  const __m256i one = _mm256_set1_epi32(1), half = _mm256_set1_epi32(0x7FFF);
  for (std::uint32_t i = 0; i < count; i += 8) {
    const __m256 v = _mm256_loadu_ps(from + i);
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(half, even));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i words = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), packed);
  }
}

void prepare_query(float* head, std::uint32_t head_dim, float scale) {
  const __m256 factor = _mm256_set1_ps(scale);
  for (std::uint32_t i = 0; i < head_dim; i += 16) {
    const __m256 a = _mm256_loadu_ps(head + i), b = _mm256_loadu_ps(head + i + 8);
    const __m256 even = _mm256_shuffle_ps(a, b, 0x88), odd = _mm256_shuffle_ps(a, b, 0xDD);
    // The shuffles work within 128-bit halves: a's and b's quarters still alternate.
    const auto fix = [](__m256 v) {
      return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xD8));
    };
    _mm256_storeu_ps(head + i, _mm256_mul_ps(fix(even), factor));
    _mm256_storeu_ps(head + i + 8, _mm256_mul_ps(fix(odd), factor));
  }
}

void attend_block(const KvView& kv, std::uint32_t block, const Queries& queries,
                  std::uint32_t first_row, float* partials, std::byte* scratch) {
  const std::uint32_t first = block * kKvBlock;
  const std::uint32_t last = queries.position + (queries.rows - 1) / queries.group;
  const std::uint32_t count = least(kKvBlock, last - first + 1);
  auto* keys = reinterpret_cast<float*>(scratch);
  float* values = keys + std::size_t{kKvBlock} * kv.head_dim;
  widen(kv, kv.key_offset, first, count, keys);
  widen(kv, kv.value_offset, first, count, values);
  // Keys are taken four at a time: what pads the last four must be numbers.
  float* const end = keys + std::size_t{(count + 3) / 4 * 4} * kv.head_dim;
  for (float* k = keys + std::size_t{count} * kv.head_dim; k < end; ++k) *k = 0;
  const Block widened{keys, values, first, kv.head_dim};
  std::uint32_t row = first_row;
  for (; row + kTileRows <= queries.rows; row += kTileRows) {
    attend_tile<kTileRows>(widened, queries, row, partials);
  }
  if (row + 2 == queries.rows) attend_tile<2>(widened, queries, row, partials);
  if (row + 1 == queries.rows) attend_tile<1>(widened, queries, row, partials);
}

void merge(float* state, const float* partial, std::uint32_t head_dim) {
  const float old_highest = state[head_dim], new_highest = partial[head_dim];
  const float highest = old_highest > new_highest ? old_highest : new_highest;
  const __m256 scales =
      exp_ps(_mm256_setr_ps(old_highest - highest, new_highest - highest, 0, 0, 0, 0, 0, 0));
  const __m128 pair = _mm256_castps256_ps128(scales);
  const float old_scale = _mm_cvtss_f32(pair), new_scale = _mm_cvtss_f32(_mm_movehdup_ps(pair));
  const __m256 a = _mm256_set1_ps(old_scale), b = _mm256_set1_ps(new_scale);
  for (std::uint32_t i = 0; i < head_dim; i += 8) {
    const __m256 sum = _mm256_mul_ps(_mm256_loadu_ps(state + i), a);
    _mm256_storeu_ps(state + i, _mm256_fmadd_ps(_mm256_loadu_ps(partial + i), b, sum));
  }
  state[head_dim] = highest;
  state[head_dim + 1] = state[head_dim + 1] * old_scale + partial[head_dim + 1] * new_scale;
}

void finish(const float* state, std::uint32_t head_dim, float* out) {
  const __m256 inverse = _mm256_set1_ps(1.0F / state[head_dim + 1]);
  for (std::uint32_t i = 0; i < head_dim; i += 16) {
    const __m256 even = _mm256_mul_ps(_mm256_loadu_ps(state + i), inverse);
    const __m256 odd = _mm256_mul_ps(_mm256_loadu_ps(state + i + 8), inverse);
    const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    _mm256_storeu_ps(out + i, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(out + i + 8, _mm256_permute2f128_ps(low, high, 0x31));
  }
}

}  // namespace kvd::engine::cpu::avx2
