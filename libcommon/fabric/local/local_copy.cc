#include "fabric/local/local_copy.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace kvd::fabric::local {
namespace {

constexpr std::size_t kStreamFrom =
    2048;  // below, the stores' final fence costs more than it saves
constexpr std::size_t kBlock = 128;
constexpr std::size_t kLine = 64;
constexpr std::size_t kPrefetch = 512;

// `to` lies on a cache line, `bytes` is a multiple of kBlock.
__attribute__((target("avx2"))) void stream_avx2(std::byte* to, const std::byte* from,
                                                 std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += kBlock) {
    const auto* source = reinterpret_cast<const __m256i*>(from + i);
    auto* target = reinterpret_cast<__m256i*>(to + i);
    const __m256i a = _mm256_loadu_si256(source), b = _mm256_loadu_si256(source + 1);
    const __m256i c = _mm256_loadu_si256(source + 2), d = _mm256_loadu_si256(source + 3);
    _mm256_stream_si256(target, a);
    _mm256_stream_si256(target + 1, b);
    _mm256_stream_si256(target + 2, c);
    _mm256_stream_si256(target + 3, d);
  }
}

void stream_sse2(std::byte* to, const std::byte* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += kBlock) {
    const auto* source = reinterpret_cast<const __m128i*>(from + i);
    auto* target = reinterpret_cast<__m128i*>(to + i);
    __m128i block[kBlock / 16];
    for (std::size_t k = 0; k < kBlock / 16; ++k) block[k] = _mm_loadu_si128(source + k);
    for (std::size_t k = 0; k < kBlock / 16; ++k) _mm_stream_si128(target + k, block[k]);
  }
}

}  // namespace

void copy_bytes(std::byte* to, const std::byte* from, std::size_t bytes) {
  static const bool avx2 = __builtin_cpu_supports("avx2");
  if (bytes < kStreamFrom) {
    std::memcpy(to, from, bytes);
    return;
  }
  const std::size_t head = (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine;
  const std::size_t body = (bytes - head) / kBlock * kBlock;
  std::memcpy(to, from, head);
  (avx2 ? stream_avx2 : stream_sse2)(to + head, from + head, body);
  std::memcpy(to + head + body, from + head + body, bytes - head - body);
  _mm_sfence();
}

void prefetch(const std::byte* from, std::size_t bytes) {
  for (std::size_t i = 0; i < std::min(bytes, kPrefetch); i += kLine) {
    __builtin_prefetch(from + i, 0, 0);
  }
}

}  // namespace kvd::fabric::local
