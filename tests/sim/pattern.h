// What pages hold in the simulation: a pattern of the request, row and word; free pages a canary.
#pragma once

#include <cstdint>
#include <vector>

#include "kv/page_pool.h"

namespace kvd::sim {

constexpr std::byte kCanary{0xC5};

inline std::uint64_t key_of(const std::vector<TokenId>& prompt) {
  return static_cast<std::uint64_t>(prompt[0]) * 0x9E3779B97F4A7C15ull;
}

inline std::uint64_t word(std::uint64_t key, std::uint64_t row, std::uint64_t at) {
  std::uint64_t x = key ^ (row * 0xBF58476D1CE4E5B9ull) ^ (at * 0x94D049BB133111EBull);
  x ^= x >> 31;
  return (x * 0xD6E8FEB86659FD93ull) | 1;
}

inline std::uint64_t row_number(std::uint32_t layer, bool value, std::uint32_t head,
                                std::uint32_t token) {
  return ((std::uint64_t{layer} * 2 + (value ? 1 : 0)) * 64 + head) * 65536 + token;
}

// Calls `visit(bytes of the row, its number, its token)` for tokens [begin, end) of layers of
// `group`.
template <typename Visit>
void for_rows(const kv::PagePool& pool, const std::vector<PageIndex>& pages, kv::LayerGroup group,
              std::uint32_t begin, std::uint32_t end, Visit visit) {
  const kv::KvLayout& layout = pool.layout();
  for (std::uint32_t token = begin; token < end; ++token) {
    std::byte* page = pool.page(pages[token / layout.page_size]);
    for (std::uint32_t layer = group.begin; layer < group.end; ++layer) {
      for (bool value : {false, true}) {
        for (std::uint32_t head = 0; head < layout.kv_heads; ++head) {
          visit(page + layout.offset(layer, value, head, token % layout.page_size),
                row_number(layer, value, head, token), token);
        }
      }
    }
  }
}

}  // namespace kvd::sim
