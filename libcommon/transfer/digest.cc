#include "transfer/digest.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>

#include "base/check.h"
#include "base/rng.h"

namespace kvd::transfer {
namespace {
constexpr std::uint64_t kLineBytes = 64;
constexpr std::uint64_t kLineStream = 0x6469676573740000;  // keeps these draws apart from others
}  // namespace

std::uint64_t sample_line(RoomId room, std::uint64_t unit, std::uint64_t unit_bytes) {
  const std::uint64_t lines = unit_bytes / kLineBytes;
  if (lines <= 1) return 0;
  return counter_random(room.value, kLineStream, unit) % lines * kLineBytes;
}

std::uint64_t digest_pages(Digest mode, const kv::PagePool& pool, std::span<const PageIndex> pages,
                           RoomId room) {
  if (mode == Digest::kOff) return 0;
  const kv::KvLayout& layout = pool.layout();
  XXH3_state_t state;
  XXH3_INITSTATE(&state);  // the reset reads fields of the state
  KVD_CHECK(XXH3_64bits_reset_withSeed(&state, room.value) == XXH_OK);
  if (mode == Digest::kFull) {
    for (PageIndex page : pages) XXH3_64bits_update(&state, pool.page(page), layout.page_bytes());
    return XXH3_64bits_digest(&state);
  }
  const auto groups = kv::layer_groups(layout);
  std::uint64_t unit = 0;
  for (PageIndex page : pages) {
    for (const kv::LayerGroup& group : groups) {
      const std::uint64_t bytes = (group.end - group.begin) * layout.layer_bytes();
      const std::byte* at = pool.page(page) + group.begin * layout.layer_bytes();
      XXH3_64bits_update(&state, at + sample_line(room, unit, bytes), std::min(bytes, kLineBytes));
      ++unit;
    }
  }
  return XXH3_64bits_digest(&state);
}

std::string_view to_string(Digest mode) {
  switch (mode) {
    case Digest::kSample:
      return "sample";
    case Digest::kFull:
      return "full";
    case Digest::kOff:
      return "off";
  }
  return "?";
}

std::optional<Digest> parse_digest(std::string_view text) {
  for (Digest mode : {Digest::kSample, Digest::kFull, Digest::kOff}) {
    if (text == to_string(mode)) return mode;
  }
  return std::nullopt;
}

}  // namespace kvd::transfer
