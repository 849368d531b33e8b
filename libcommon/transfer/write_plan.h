// Cuts the pages of a room into writes: pure arithmetic, so that "no destination byte is written
// twice" and "never above the provider's largest" can be tested without a fabric.
//
// The units are those of the digest. Neighbouring units are one piece where they are contiguous on
// both sides, up to the largest write, so every write ends where a unit ends. (Only where the
// largest write is smaller than a unit does one end inside it.) Small pieces go several to a write,
// as far as the provider takes them. Where no NIC writes, all that fit twice into a write are
// small: each write costs a look and an answer, on TCP a header too (measured in one cache: TCP
// writes of 64 KiB 3.5 GB/s, of 120 KiB 4.7, of 256 KiB 5.9, of 1 MiB 7.4, of 4 MiB 7.8; pages of
// 64 KiB on `local` one by one 14.1, sixteen to a write 15.3).
//
// Where packets are paced (Capabilities::packet_bytes) a write does not end with a short one, if it
// can be helped: whole pieces of its end, or the beginning of its last one, go with the next write.
// So it still ends where a unit ends, whose last line is in the digest.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/write_pipeline.h"
#include "kv/layout.h"
#include "kv/page_pool.h"

namespace kvd::transfer {

constexpr std::uint64_t kMaxUnitBytes = 512u << 10;
// Not above any Capabilities::best_write_bytes.
constexpr std::uint64_t kMaxWholeUnitBytes = 768u << 10;
// Pieces below it share a write where a NIC writes.
constexpr std::uint64_t kSmallBytes = 64u << 10;
// A packet that nearly always takes longer to fill than pacing keeps it back, and what a provider's
// header may add to a write.
constexpr std::uint64_t kLongPacket = 40u << 10, kHeaderBytes = 256;

// Bytes [begin, end) of a page.
struct PageUnit {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};
// A page in order, sent group by group: a unit is a layer group of kv::layer_groups, cut at
// kMaxUnitBytes where it is larger. Both ends compute the same.
std::vector<PageUnit> page_units(const kv::KvLayout& layout);
// And sent whole: neighbours of these together, up to kMaxWholeUnitBytes. Each ends where one of
// them does.
std::vector<PageUnit> whole_page_units(const kv::KvLayout& layout);

// Where a room's pages come from and go to, by ordinal in the prompt. Refers to the caller's data.
struct PageMap {
  const kv::PagePool* pool = nullptr;
  std::span<const PageIndex> source;
  std::span<const PageIndex> destination;  // same length
  fabric::RemoteRegion region;             // page i of the peer at base + i * page_bytes
};

// How many bytes to take from a write of `bytes` so that its last packet is full but for some 300:
// 0 if it has kLongPacket already or is the only one, or nothing is paced. And the nearest length
// whose last packet has kLongPacket.
std::uint64_t too_many_for_packets(std::uint64_t bytes, std::uint64_t packet_bytes);
std::uint64_t nearest_for_packets(std::uint64_t bytes, std::uint64_t packet_bytes);

// Layers of pages [first, last) of the prompt. All layers: `group` covers the layout, and the pages
// are sent whole.
std::vector<fabric::QueuedWrite> plan_writes(const PageMap& map, kv::LayerGroup group,
                                             std::uint32_t first, std::uint32_t last,
                                             const fabric::Capabilities& capabilities);

}  // namespace kvd::transfer
