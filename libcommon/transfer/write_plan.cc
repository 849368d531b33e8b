#include "transfer/write_plan.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace kvd::transfer {
namespace {

constexpr std::uint64_t kAligned = 64;
// Of shorter packets a cut might leave a write nothing but what the one before left to it.
constexpr std::uint64_t kLeastPacket = kLongPacket + 2 * kHeaderBytes + kAligned;
constexpr std::uint64_t kAnyPacket = std::numeric_limits<std::uint64_t>::max();

struct Piece {
  const std::byte* from;
  std::uint64_t to;
  std::uint64_t bytes;
};

// Neighbouring pieces become one when both sides are contiguous.
void append(std::vector<Piece>* pieces, Piece piece, std::uint64_t most) {
  if (!pieces->empty()) {
    Piece& back = pieces->back();
    if (back.from + back.bytes == piece.from && back.to + back.bytes == piece.to &&
        back.bytes + piece.bytes <= most) {
      back.bytes += piece.bytes;
      return;
    }
  }
  while (piece.bytes > most) {
    pieces->push_back({piece.from, piece.to, most});
    piece.from += most;
    piece.to += most;
    piece.bytes -= most;
  }
  pieces->push_back(piece);
}

// Pages of one unit: as many neighbours as fill a piece are taken at once.
std::vector<Piece> cut_small_pages(const PageMap& map, std::uint32_t first, std::uint32_t last,
                                   std::uint64_t most) {
  const std::uint64_t page_bytes = map.pool->layout().page_bytes();
  std::vector<Piece> pieces;
  pieces.reserve(last - first);
  while (first < last) {
    const PageIndex from = map.source[first], to = map.destination[first];
    const std::uint64_t in_piece = std::min<std::uint64_t>(most / page_bytes, last - first);
    std::uint32_t count = 1;
    while (count < in_piece && map.source[first + count] == from + count &&
           map.destination[first + count] == to + count) {
      ++count;
    }
    pieces.push_back({map.pool->page(from), map.region.base + to * page_bytes, count * page_bytes});
    first += count;
  }
  return pieces;
}

std::vector<Piece> cut_pages(const PageMap& map, kv::LayerGroup group, std::uint32_t first,
                             std::uint32_t last, std::uint64_t most) {
  const kv::KvLayout& layout = map.pool->layout();
  const std::uint64_t begin = group.begin * layout.layer_bytes();
  const std::uint64_t end = group.end * layout.layer_bytes();
  const bool whole = end - begin == layout.page_bytes();
  std::vector<PageUnit> units = whole ? whole_page_units(layout) : page_units(layout);
  if (units.size() == 1 && whole && end - begin <= most) {
    return cut_small_pages(map, first, last, most);
  }
  std::erase_if(units,
                [&](const PageUnit& unit) { return unit.end <= begin || unit.begin >= end; });
  std::vector<Piece> pieces;
  pieces.reserve(last - first);
  for (std::uint32_t i = first; i < last; ++i) {
    const std::byte* from = map.pool->page(map.source[i]);
    const std::uint64_t to = map.region.base + map.destination[i] * layout.page_bytes();
    for (const PageUnit& unit : units) {
      const std::uint64_t at = std::max(unit.begin, begin);
      append(&pieces, {from + at, to + at, std::min(unit.end, end) - at}, most);
    }
  }
  return pieces;
}

// How many of the next pieces share a write, all small or one alone.
std::size_t pieces_of_write(std::span<const Piece> pieces, std::uint64_t small_below,
                            std::uint64_t most, std::size_t most_pieces) {
  std::uint64_t bytes = pieces[0].bytes;
  std::size_t count = 1;
  for (; count < std::min(most_pieces, pieces.size()); ++count) {
    const Piece& piece = pieces[count];
    bytes += piece.bytes;
    if (pieces[0].bytes >= small_below || piece.bytes >= small_below || bytes > most) break;
  }
  return count;
}

// Of a write of `bytes` with the longest header, which may make one packet more; all that it could
// have where it is the only one, or nothing is paced.
std::uint64_t last_packet(std::uint64_t bytes, std::uint64_t packet_bytes) {
  if (packet_bytes == 0 || bytes + kHeaderBytes <= packet_bytes) return kAnyPacket;
  return (bytes + kHeaderBytes) % packet_bytes;
}

}  // namespace

std::vector<PageUnit> page_units(const kv::KvLayout& layout) {
  std::vector<PageUnit> units;
  for (const kv::LayerGroup& group : kv::layer_groups(layout)) {
    const std::uint64_t end = group.end * layout.layer_bytes();
    for (std::uint64_t at = group.begin * layout.layer_bytes(); at < end;) {
      const std::uint64_t bytes = std::min(kMaxUnitBytes, end - at);
      units.push_back({at, at + bytes});
      at += bytes;
    }
  }
  return units;
}

std::vector<PageUnit> whole_page_units(const kv::KvLayout& layout) {
  std::vector<PageUnit> units;
  for (const PageUnit& unit : page_units(layout)) {
    if (!units.empty() && unit.end - units.back().begin <= kMaxWholeUnitBytes) {
      units.back().end = unit.end;
    } else {
      units.push_back(unit);
    }
  }
  return units;
}

std::uint64_t too_many_for_packets(std::uint64_t bytes, std::uint64_t packet_bytes) {
  const std::uint64_t last = last_packet(bytes, packet_bytes);
  if (last >= kLongPacket + kHeaderBytes) return 0;
  return (last + kAligned) / kAligned * kAligned;
}

std::uint64_t nearest_for_packets(std::uint64_t bytes, std::uint64_t packet_bytes) {
  if (too_many_for_packets(bytes, packet_bytes) == 0) return bytes;
  const std::uint64_t last = last_packet(bytes, packet_bytes);
  const std::uint64_t more = kLongPacket + 2 * kHeaderBytes - last;
  return last < more ? bytes - last - 1 : bytes + more;
}

std::vector<fabric::QueuedWrite> plan_writes(const PageMap& map, kv::LayerGroup group,
                                             std::uint32_t first, std::uint32_t last,
                                             const fabric::Capabilities& capabilities) {
  KVD_CHECK(first <= last && last <= map.source.size() &&
            map.source.size() == map.destination.size());
  KVD_CHECK(group.begin < group.end && group.end <= map.pool->layout().layers);
  KVD_CHECK(capabilities.best_write_bytes >= kMaxWholeUnitBytes);
  KVD_CHECK(capabilities.packet_bytes == 0 || capabilities.packet_bytes > kLeastPacket);
  const std::uint64_t most = std::max<std::uint64_t>(
      1, std::min(capabilities.max_write_bytes, capabilities.best_write_bytes));
  const std::size_t most_pieces =
      std::max<std::uint32_t>(1, std::min(capabilities.iov_limit, capabilities.rma_iov_limit));
  std::vector<Piece> pieces = cut_pages(map, group, first, last, most);

  const std::uint64_t small_below = capabilities.rdma ? kSmallBytes : most / 2 + 1;
  std::vector<fabric::QueuedWrite> writes;
  for (std::size_t next = 0; next < pieces.size();) {
    const std::size_t count = pieces_of_write({pieces.data() + next, pieces.size() - next},
                                              small_below, most, most_pieces);
    if (writes.empty()) writes.reserve(pieces.size() / count + 1);
    fabric::QueuedWrite& write = writes.emplace_back();
    write.local.reserve(count);
    write.remote.reserve(count);
    std::uint64_t bytes = 0;
    for (const std::size_t end = next + count; next < end; ++next) {
      const Piece& piece = pieces[next];
      write.local.push_back({piece.from, piece.bytes});
      write.remote.push_back({piece.to, piece.bytes, map.region.key});
      bytes += piece.bytes;
    }
    std::uint64_t less = too_many_for_packets(bytes, capabilities.packet_bytes);
    // The next write must not be what it begins with.
    const bool joins = most_pieces > 1 && next < pieces.size() &&
                       std::max(pieces[next - 1].bytes, pieces[next].bytes) < small_below;
    if (less == 0 || !joins) continue;
    // What is too much goes with the next write: whole pieces, and the beginning of the last one
    // that stays, so that this write still ends with a unit.
    for (; less >= pieces[next - 1].bytes; --next) {
      less -= pieces[next - 1].bytes;
      write.local.pop_back();
      write.remote.pop_back();
    }
    Piece& back = pieces[next - 1];
    if (less == 0) continue;
    write.local.back() = {back.from + less, back.bytes - less};
    write.remote.back() = {back.to + less, back.bytes - less, map.region.key};
    back.bytes = less;
    --next;
  }
  return writes;
}

}  // namespace kvd::transfer
