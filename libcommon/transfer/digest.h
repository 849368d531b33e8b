// The digest of a room's pages, equal on both ends however the bytes were merged, split or
// streamed.
//
// Units are (page ordinal in the prompt, layer group of kv::layer_groups), in this order. `sample`
// hashes one 64-byte line of each unit, its place drawn from the room id and the unit's number: it
// catches what never landed or landed elsewhere. `full` hashes all bytes of all prompt pages. `off`
// is 0.
//
// Reads the pages: call it only when they are final (sender) or committed (receiver).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/ids.h"
#include "kv/page_pool.h"
#include "transfer/options.h"

namespace kvd::transfer {

// `pages` are the prompt's, in order. The result is keyed by the room.
std::uint64_t digest_pages(Digest mode, const kv::PagePool& pool, std::span<const PageIndex> pages,
                           RoomId room);

// Byte offset within a unit of `unit_bytes` of the line that `sample` reads; a multiple of 64.
std::uint64_t sample_line(RoomId room, std::uint64_t unit, std::uint64_t unit_bytes);

std::string_view to_string(Digest mode);
std::optional<Digest> parse_digest(std::string_view text);

}  // namespace kvd::transfer
