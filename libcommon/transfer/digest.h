// The digest of a room's pages, equal on both ends however the bytes were merged, split or
// streamed.
//
// Units are (page ordinal in the prompt, unit of page_units; of whole_page_units where the sender
// sent whole pages, which its record says), in this order. `sample` hashes 64-byte lines: of each
// unit the last one that a token uses, which the receiver marks beforehand (mark_pages), and of one
// unit in some kDrawnLineBytes one at a place drawn from the room id and the unit's number. More
// would cost: scattered lines are in no cache, and each takes both sides 0.1 us or more.
// Every write ends where a unit ends, and a stream of writes that is cut loses everything from the
// cut to the end of a write (libfabric's net connects anew by itself and says nothing of what its
// sockets held): so the last line shows every cut. `full` hashes all bytes of all prompt pages.
// `off` is 0, and no protection where the provider connects anew by itself.
//
// Reads the pages: call it only when they are final (sender) or committed (receiver).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/ids.h"
#include "kv/page_pool.h"
#include "transfer/options.h"
#include "transfer/write_plan.h"

namespace kvd::transfer {

constexpr std::uint64_t kDrawnLineBytes = 512u << 10;

// What a side that is being written to does between parts of a long job, each of which takes some
// 10 us: under bbr a sender is slowed down by 3 % where 256 lines are read at once for each room of
// 16 MiB, and by as much where they are marked at once.
using LetGo = std::function<void()>;
// Units of a part, marked or sampled; bytes of a part that is hashed in full.
constexpr std::uint64_t kUnitsAtOnce = 64, kBytesAtOnce = 128u << 10;

// Takes pages in as they go: those that were just sent are still in the caches.
class Digester {
 public:
  // `pages` are the prompt's, in order; `tokens` is its length. The first `streamed` pages went
  // group by group. The result is keyed by the room. Refers to the pool, and to `pages` until it is
  // done.
  Digester(Digest mode, const kv::PagePool* pool, std::span<const PageIndex> pages,
           std::uint64_t tokens, std::uint32_t streamed, RoomId room, LetGo between = {});
  ~Digester();
  // The pages before `until` that it has not taken yet.
  void take(std::size_t until);
  // Takes the rest.
  std::uint64_t finish();

 private:
  struct State;
  std::unique_ptr<State> state_;  // null: off
};

// All of them.
std::uint64_t digest_pages(Digest mode, const kv::PagePool& pool, std::span<const PageIndex> pages,
                           std::uint64_t tokens, std::uint32_t streamed, RoomId room,
                           LetGo between = {});

// Whether a unit has a drawn line: all of kDrawnLineBytes or more, of shorter ones each n-th, n of
// which have no more than that. `unit` is its number in the room.
bool has_drawn_line(std::uint64_t unit, std::uint64_t unit_bytes);
// Byte offset within a unit of `unit_bytes` of the drawn line that `sample` reads; a multiple
// of 64.
std::uint64_t sample_line(RoomId room, std::uint64_t unit, std::uint64_t unit_bytes);
// Byte offset within the page of the last 64 bytes of `unit` that its first `used` tokens fill; the
// unit's last 64 bytes where they fill none of the last head's rows in it.
std::uint64_t last_line(const kv::KvLayout& layout, const PageUnit& unit, std::uint64_t used);

// Marks `pages` before a peer may write them: fills the last line of each unit of page_units, and
// so of each of whole_page_units, with bytes drawn from `nonce`, so that a write that is lost is
// seen even where the page held the very bytes before (V of the first layer depends on its token
// alone).
void mark_pages(const kv::PagePool& pool, std::span<const PageIndex> pages, std::uint64_t tokens,
                std::uint64_t nonce, const LetGo& between);

std::string_view to_string(Digest mode);
std::optional<Digest> parse_digest(std::string_view text);

}  // namespace kvd::transfer
