// Cuts the pages of a room into writes: pure arithmetic, so that "no destination byte is written
// twice" and "never above 1 MiB" can be tested without a fabric.
//
// Streaming: a piece is one layer group of one page. Whole pages: neighbours on both sides are one
// piece, up to the largest write. Pieces under 64 KiB go several to a write, as far as the provider
// takes them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/write_pipeline.h"
#include "kv/layout.h"
#include "kv/page_pool.h"

namespace kvd::transfer {

constexpr std::uint64_t kMaxWriteBytes = 1u << 20;
constexpr std::uint64_t kBatchBelowBytes = 64u << 10;

// Where a room's pages come from and go to, by ordinal in the prompt. Refers to the caller's data.
struct PageMap {
  const kv::PagePool* pool = nullptr;
  std::span<const PageIndex> source;
  std::span<const PageIndex> destination;  // same length
  fabric::RemoteRegion region;             // page i of the peer at base + i * page_bytes
};

// Layers of pages [first, last) of the prompt. All layers: `group` covers the layout.
std::vector<fabric::QueuedWrite> plan_writes(const PageMap& map, kv::LayerGroup group,
                                             std::uint32_t first, std::uint32_t last,
                                             const fabric::Capabilities& capabilities);

}  // namespace kvd::transfer
