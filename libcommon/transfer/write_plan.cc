#include "transfer/write_plan.h"

#include <algorithm>

#include "base/check.h"

namespace kvd::transfer {
namespace {

struct Piece {
  const std::byte* from;
  std::uint64_t to;
  std::uint64_t bytes;
};

// Neighbouring pieces become one when both sides are contiguous; only whole pages ever are.
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

}  // namespace

std::vector<fabric::QueuedWrite> plan_writes(const PageMap& map, kv::LayerGroup group,
                                             std::uint32_t first, std::uint32_t last,
                                             const fabric::Capabilities& capabilities) {
  KVD_CHECK(first <= last && last <= map.source.size() &&
            map.source.size() == map.destination.size());
  const kv::KvLayout& layout = map.pool->layout();
  KVD_CHECK(group.begin < group.end && group.end <= layout.layers);
  const std::uint64_t most =
      std::max<std::uint64_t>(1, std::min(capabilities.max_write_bytes, kMaxWriteBytes));
  const std::size_t most_pieces =
      std::max<std::uint32_t>(1, std::min(capabilities.iov_limit, capabilities.rma_iov_limit));
  const std::uint64_t offset = group.begin * layout.layer_bytes();
  const std::uint64_t bytes = (group.end - group.begin) * layout.layer_bytes();

  std::vector<Piece> pieces;
  pieces.reserve(last - first);
  for (std::uint32_t i = first; i < last; ++i) {
    append(&pieces,
           {map.pool->page(map.source[i]) + offset,
            map.region.base + map.destination[i] * layout.page_bytes() + offset, bytes},
           most);
  }

  std::vector<fabric::QueuedWrite> writes;
  writes.reserve(pieces.size());
  std::uint64_t open_bytes = 0;  // of the last write, while it may take more small pieces
  for (const Piece& piece : pieces) {
    const bool small = piece.bytes < kBatchBelowBytes;
    const bool joins = small && open_bytes != 0 && writes.back().local.size() < most_pieces &&
                       open_bytes + piece.bytes <= most;
    if (!joins) {
      writes.emplace_back();
      open_bytes = 0;
    }
    writes.back().local.push_back({piece.from, piece.bytes});
    writes.back().remote.push_back({piece.to, piece.bytes, map.region.key});
    if (small) open_bytes += piece.bytes;
  }
  return writes;
}

}  // namespace kvd::transfer
