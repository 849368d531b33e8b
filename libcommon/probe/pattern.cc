#include "probe/pattern.h"

#include <cstring>

#include "base/rng.h"

namespace kvd::probe {
namespace {

std::uint64_t word_at(std::uint64_t key, std::uint64_t at) {
  const std::uint64_t word = (key + at) * 0x9e3779b97f4a7c15ULL;
  return word ^ (word >> 29);
}

std::uint64_t key_of(std::uint64_t stream, std::uint64_t index) {
  return counter_random(stream, 0x70616765ULL, index);
}

}  // namespace

void fill_pattern(std::byte* page, std::uint64_t bytes, std::uint64_t stream, std::uint64_t index) {
  const std::uint64_t key = key_of(stream, index);
  for (std::uint64_t at = 0; at + 8 <= bytes; at += 8) {
    const std::uint64_t word = word_at(key, at);
    std::memcpy(page + at, &word, sizeof word);
  }
}

std::optional<std::uint64_t> find_wrong(const std::byte* page, std::uint64_t bytes,
                                        std::uint64_t stream, std::uint64_t index) {
  const std::uint64_t key = key_of(stream, index);
  // The whole page at the speed of memory first; where it went wrong is asked for rarely.
  std::uint64_t wrong = 0;
  for (std::uint64_t at = 0; at + 8 <= bytes; at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, page + at, sizeof word);
    wrong |= word ^ word_at(key, at);
  }
  if (wrong == 0) return std::nullopt;
  for (std::uint64_t at = 0; at + 8 <= bytes; at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, page + at, sizeof word);
    if (word != word_at(key, at)) return at;
  }
  return std::nullopt;
}

}  // namespace kvd::probe
