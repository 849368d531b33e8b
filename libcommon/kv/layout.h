// The shape of KV in memory, and the arithmetic on it. One place for each formula.
//
//   pool[page][layer][K|V][kv_head][page_size][head_dim], bf16, page-major
//
// so that a whole page is contiguous, and a group of layers within a page is contiguous.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"

namespace kvd::kv {

struct KvLayout {
  std::uint32_t layers = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t head_dim = 0;
  std::uint32_t page_size = 32;  // tokens a page, a multiple of 32
  std::uint32_t element_bytes = 2;
  std::string dtype = "bf16";

  bool operator==(const KvLayout&) const = default;

  std::uint64_t head_bytes() const { return std::uint64_t{page_size} * head_dim * element_bytes; }
  // K or V of one layer in one page.
  std::uint64_t half_bytes() const { return head_bytes() * kv_heads; }
  // K and V of one layer in one page: the smallest piece that is ever sent.
  std::uint64_t layer_bytes() const { return 2 * half_bytes(); }
  std::uint64_t page_bytes() const { return layer_bytes() * layers; }
  std::uint32_t pages_for(std::uint64_t tokens) const {
    return static_cast<std::uint32_t>((tokens + page_size - 1) / page_size);
  }
  // Byte offset within a page of element 0 of `token` (0..page_size-1).
  std::uint64_t offset(std::uint32_t layer, bool value, std::uint32_t kv_head,
                       std::uint32_t token) const {
    return layer * layer_bytes() + (value ? half_bytes() : 0) + kv_head * head_bytes() +
           std::uint64_t{token} * head_dim * element_bytes;
  }
  // Rejects zeros, a page size that is no multiple of 32, and anything whose page exceeds 1 GiB.
  Status validate() const;
};

// "page_size: 64 here, 32 there; dtype: ..." Empty when equal.
std::string diff(const KvLayout& here, const KvLayout& there);

// Layers [begin, end).
struct LayerGroup {
  std::uint32_t begin = 0;
  std::uint32_t end = 0;
  bool operator==(const LayerGroup&) const = default;
};

// How layers are grouped while they are streamed: a group is the fewest layers whose slice of a
// page makes 128 KiB, the last group half of that in whole layers, at least one (DESIGN 6). The
// groups cover all layers in order, each once. The units of the digest are made of them
// (transfer/write_plan.h).
std::vector<LayerGroup> layer_groups(const KvLayout& layout);

}  // namespace kvd::kv
