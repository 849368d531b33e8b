// The pieces of transfer/ that need no fabric: slots, digest, sequence, comparison.
#include <catch2/catch.hpp>
#include <cstring>
#include <map>
#include <numeric>

#include "test_pool.h"
#include "transfer/digest.h"
#include "transfer/slot_table.h"
#include "transfer/wire.h"
#include "transfer/write_plan.h"

namespace kvd::transfer {
namespace {

TEST_CASE("slot table: a slot is known only by the generation of its lease") {
  std::vector<std::byte> memory(2 * proto::kSlotBytes, std::byte{0xff});
  SlotTable slots(memory.data(), 2);
  const auto a = slots.lease(10);
  const auto b = slots.lease(11);
  REQUIRE((a && b));
  CHECK_FALSE(slots.lease(12));
  CHECK(slots.owner(a->slot, a->generation) == 10);
  CHECK(slots.owner(a->slot, a->generation + 1) == 0);
  CHECK(slots.owner(77, 1) == 0);
  CHECK(memory[a->slot * proto::kSlotBytes] == std::byte{0});
  slots.free(*a);
  CHECK(slots.owner(a->slot, a->generation) == 0);
  const auto c = slots.lease(13);
  REQUIRE(c);
  CHECK(c->slot == a->slot);
  CHECK(c->generation != a->generation);
  CHECK(slots.owner(a->slot, a->generation) == 0);
}

TEST_CASE("slot table: generations wrap after twelve bits and stay within them") {
  std::vector<std::byte> memory(proto::kSlotBytes);
  SlotTable slots(memory.data(), 1);
  for (int i = 0; i < 5000; ++i) {
    const auto lease = slots.lease(1);
    REQUIRE(lease);
    REQUIRE(lease->generation < 4096);
    slots.free(*lease);
  }
}

TEST_CASE("link sequence: next is taken, a repeat is dropped, a gap is seen") {
  LinkSequence sequence;
  using Arrival = LinkSequence::Arrival;
  CHECK(sequence.arrived(1) == Arrival::kNext);
  CHECK(sequence.arrived(1) == Arrival::kRepeat);
  CHECK(sequence.arrived(0) == Arrival::kRepeat);
  CHECK(sequence.arrived(3) == Arrival::kGap);
  CHECK(sequence.arrived(2) == Arrival::kNext);
  CHECK(sequence.next_out() == 1);
  sequence.sent();
  CHECK(sequence.next_out() == 2);
}

TEST_CASE("comparison: each field that differs is named, here and there") {
  const kv::KvLayout here = layout_of(30, 3, 64);
  kv::KvLayout other = here;
  other.page_size = 64;
  other.dtype = "f16";
  CHECK(compare_models(here, "a", to_info(here), "a").empty());
  const std::string diff = compare_models(here, "aa", to_info(other), "bb");
  CHECK(diff ==
        "page_size: 32 here, 64 there; dtype: bf16 here, f16 there; model: aa here, bb there");
  proto::LayoutInfo strange = to_info(here);
  strange.layer_stride += 64;
  CHECK(compare_models(here, "a", strange, "a").find("layer_stride") != std::string::npos);
}

TEST_CASE("digest: equal pages at other places give the same, in every mode") {
  const auto mode = GENERATE(Digest::kSample, Digest::kFull);
  const std::uint32_t streamed = GENERATE(0, 2, 3);
  TestPool a(layout_of(8, 8, 64), 4);
  TestPool b(layout_of(8, 8, 64), 4);
  const std::vector<PageIndex> from = {0, 1, 2}, to = {3, 0, 1};
  for (int i = 0; i < 3; ++i)
    std::memcpy(b.pool.page(to[i]), a.pool.page(from[i]), a.pool.layout().page_bytes());
  const RoomId room{77};
  const std::uint64_t want = digest_pages(mode, a.pool, from, from.size() * 32, streamed, room);
  CHECK(digest_pages(mode, b.pool, to, to.size() * 32, streamed, room) == want);
  CHECK(digest_pages(mode, a.pool, from, from.size() * 32, streamed, RoomId{78}) != want);
  const std::vector<PageIndex> swapped = {1, 0, 2};
  CHECK(digest_pages(mode, a.pool, swapped, swapped.size() * 32, streamed, room) != want);
  // A group that never landed.
  std::memset(b.pool.page(to[1]), 0, 2 * b.pool.layout().layer_bytes());
  CHECK(digest_pages(mode, b.pool, to, to.size() * 32, streamed, room) != want);
}

TEST_CASE("digest: however the pages are taken in, it is the same") {
  const auto mode = GENERATE(Digest::kSample, Digest::kFull, Digest::kOff);
  const auto head_dim = GENERATE(64u, 504u);  // whole units with a drawn line, most without
  TestPool a(layout_of(head_dim == 64 ? 8 : 1, head_dim == 64 ? 8 : 1, head_dim), 9);
  const std::vector<PageIndex> pages = {4, 5, 6, 0, 8, 1, 2};
  const std::uint64_t tokens = pages.size() * 32 - 5;
  const RoomId room{77};
  const std::uint32_t streamed = GENERATE(0, 4, 7);
  const std::uint64_t want = digest_pages(mode, a.pool, pages, tokens, streamed, room);
  for (std::size_t first = 0; first <= pages.size() + 1; ++first) {
    for (std::size_t second = 0; second <= pages.size() + 1; ++second) {
      Digester digester(mode, &a.pool, pages, tokens, streamed, room);
      digester.take(first);
      digester.take(second);
      REQUIRE(digester.finish() == want);
    }
  }
}

TEST_CASE("digest: full sees a single flipped bit, off sees nothing") {
  TestPool a(layout_of(8, 8, 64), 2);
  const std::vector<PageIndex> pages = {0, 1};
  const std::uint64_t before =
      digest_pages(Digest::kFull, a.pool, pages, pages.size() * 32, 0, RoomId{5});
  a.pool.page(1)[12345] ^= std::byte{1};
  CHECK(digest_pages(Digest::kFull, a.pool, pages, pages.size() * 32, 0, RoomId{5}) != before);
  CHECK(digest_pages(Digest::kOff, a.pool, pages, pages.size() * 32, 0, RoomId{5}) == 0);
}

TEST_CASE("digest: sample draws another line for each unit, inside the unit") {
  std::map<std::uint64_t, int> places;
  for (std::uint64_t unit = 0; unit < 200; ++unit) {
    const std::uint64_t at = sample_line(RoomId{9}, unit, 128 << 10);
    CHECK(at % 64 == 0);
    CHECK(at + 64 <= 128 << 10);
    ++places[at];
  }
  CHECK(places.size() > 150);
  CHECK(sample_line(RoomId{9}, 3, 64) == 0);
}

TEST_CASE("digest: sample has the last line of each unit, and a drawn one of half a MiB or more") {
  // One unit a page: 32 tokens of K and V in so many bytes each.
  const auto [row_bytes, every] = GENERATE(table<std::uint32_t, std::size_t>(
      {{1'024, 8}, {1'008, 8}, {4'080, 2}, {4'096, 2}, {8'176, 1}, {8'192, 1}}));
  const kv::KvLayout layout = layout_of(1, 1, row_bytes / 2);
  const std::uint64_t bytes = layout.page_bytes();
  REQUIRE(page_units(layout).size() == 1);
  REQUIRE(bytes == 64 * row_bytes);
  constexpr PageIndex kPages = 9;
  TestPool pool(layout, kPages);
  std::vector<PageIndex> pages(kPages);
  std::iota(pages.begin(), pages.end(), PageIndex{0});
  const RoomId room{77};
  const auto digest = [&] {
    return digest_pages(Digest::kSample, pool.pool, pages, 32 * kPages, 0, room);
  };
  const std::uint64_t before = digest();
  for (const PageIndex page : pages) {
    std::vector<std::uint64_t> seen;  // lines whose change changes the digest
    for (std::uint64_t line = 0; line < bytes; line += 64) {
      pool.pool.page(page)[line] ^= std::byte{1};
      if (digest() != before) seen.push_back(line);
      pool.pool.page(page)[line] ^= std::byte{1};
    }
    const std::uint64_t last = bytes - 64, drawn = sample_line(room, page, bytes);
    REQUIRE(drawn != last);
    CAPTURE(bytes, page);
    CHECK(seen == (page % every == 0 ? std::vector{drawn, last} : std::vector{last}));
  }
}

TEST_CASE("digest: sample sees every stream that was cut, wherever it was cut") {
  const auto layout = GENERATE(layout_of(8, 8, 64), layout_of(5, 1, 80), layout_of(3, 24, 512));
  const auto tokens = GENERATE(96u, 65u, 94u);
  const RoomId room{31};
  const std::vector<PageIndex> pages = {0, 1, 2};
  TestPool source(layout, 3), landed(layout, 3);
  const std::uint64_t bytes = layout.page_bytes();
  // Unused rows of the last page are zero; the destination holds what was there before.
  for (std::uint64_t row = 0; row < bytes / (2 * layout.head_dim); ++row) {
    if (64 + row % 32 < tokens) continue;
    std::memset(source.pool.page(2) + row * 2 * layout.head_dim, 0, 2 * layout.head_dim);
  }
  const bool whole = GENERATE(true, false);
  const std::uint32_t streamed = whole ? 0 : 3;
  const std::uint64_t want =
      digest_pages(Digest::kSample, source.pool, pages, tokens, streamed, room);
  const PageMap map{&source.pool, pages, pages, {0, 1 << 30, 42}};
  fabric::Capabilities capabilities = capabilities_of(4, GENERATE(1u << 20, 4u << 20));
  capabilities.best_write_bytes = GENERATE(768u << 10, 4u << 20);
  capabilities.packet_bytes = GENERATE(0, 65'483);
  std::vector<fabric::QueuedWrite> writes;
  const std::vector<kv::LayerGroup> groups =
      whole ? std::vector{kv::LayerGroup{0, layout.layers}} : kv::layer_groups(layout);
  for (const kv::LayerGroup& group : groups) {
    for (auto& write : plan_writes(map, group, 0, 3, capabilities)) {
      writes.push_back(std::move(write));
    }
  }
  for (const fabric::QueuedWrite& write : writes) {
    // All landed but the end of this write, from its last used line on.
    for (PageIndex page : pages) {
      std::memcpy(landed.pool.page(page), source.pool.page(page), bytes);
    }
    REQUIRE(digest_pages(Digest::kSample, landed.pool, pages, tokens, streamed, room) == want);
    const fabric::RemotePiece& last = write.remote.back();
    const std::uint64_t page = (last.address + last.bytes - 1) / bytes;
    const std::uint64_t end = last.address + last.bytes - page * bytes;
    const std::uint64_t used = std::min<std::uint64_t>(32, tokens - 32 * page);
    const std::uint64_t from = last_line(layout, {end - std::min(end, last.bytes), end}, used) + 63;
    std::memset(landed.pool.page(static_cast<PageIndex>(page)) + from, 0x5a, end - from);
    CHECK(digest_pages(Digest::kSample, landed.pool, pages, tokens, streamed, room) != want);
  }
}

TEST_CASE("digest: of whole pages, which go in longer writes, fewer lines are sampled") {
  const kv::KvLayout layout = layout_of(16, 8, 64);  // groups of 128 KiB, the last two of 64
  TestPool pool(layout, 1);
  const std::vector<PageIndex> pages = {0};
  const auto lines = [&](std::uint32_t streamed) {
    const std::uint64_t before =
        digest_pages(Digest::kSample, pool.pool, pages, 32, streamed, RoomId{7});
    int seen = 0;
    for (std::uint64_t line = 0; line < layout.page_bytes(); line += 64) {
      pool.pool.page(0)[line] ^= std::byte{1};
      seen += digest_pages(Digest::kSample, pool.pool, pages, 32, streamed, RoomId{7}) != before;
      pool.pool.page(0)[line] ^= std::byte{1};
    }
    return seen;
  };
  REQUIRE(layout.page_bytes() == 1 << 20);
  REQUIRE(page_units(layout).size() == 9);
  CHECK(lines(1) == 9 + 3);  // drawn: 0, 4 and 8
  CHECK(lines(0) == 2 + 1);  // 768 KiB, 256 KiB
}

TEST_CASE("digest: who marks or checks much is let go in between, who does little is not") {
  std::size_t let_go = 0;
  const LetGo between = [&] { ++let_go; };
  const auto check = [&](const kv::KvLayout& layout, Digest mode, std::size_t count,
                         std::size_t marks, std::size_t lines) {
    TestPool pool(layout, static_cast<std::uint32_t>(count));
    std::vector<PageIndex> pages(count);
    std::iota(pages.begin(), pages.end(), PageIndex{0});
    const std::uint64_t tokens = std::uint64_t{count} * layout.page_size;
    CAPTURE(count);
    let_go = 0;
    mark_pages(pool.pool, pages, tokens, 5, between);
    CHECK(let_go == marks);
    let_go = 0;
    const std::uint64_t digest =
        digest_pages(mode, pool.pool, pages, tokens, 0, RoomId{7}, between);
    CHECK(let_go == lines);
    CHECK(digest == digest_pages(mode, pool.pool, pages, tokens, 0, RoomId{7}));
  };
  const kv::KvLayout small = layout_of(2, 2, 8);  // one unit a page; one drawn line in 128
  REQUIRE(page_units(small).size() == 1);
  REQUIRE(512 * 1024 / small.page_bytes() == 128);
  check(small, Digest::kSample, kUnitsAtOnce - 2, 0, 0);
  check(small, Digest::kSample, kUnitsAtOnce - 1, 0, 1);
  check(small, Digest::kSample, kUnitsAtOnce, 0, 1);
  check(small, Digest::kSample, kUnitsAtOnce + 1, 1, 1);
  check(small, Digest::kSample, 3 * kUnitsAtOnce, 2, 3);
  check(small, Digest::kOff, 3 * kUnitsAtOnce, 2, 0);
  check(layout_of(8, 8, 64), Digest::kFull, 3, 0, 3 * (512 * 1024 / kBytesAtOnce));
}

TEST_CASE("digest: a write that is lost is seen even where the page held the same bytes before") {
  const auto layout = GENERATE(layout_of(8, 8, 64), layout_of(2, 2, 8));
  const auto tokens = GENERATE(64u, 40u);
  TestPool source(layout, 2), decode(layout, 2);
  const std::vector<PageIndex> pages = {0, 1};
  for (PageIndex page : pages) {
    std::memcpy(decode.pool.page(page), source.pool.page(page), layout.page_bytes());
  }
  const RoomId room{3};
  const std::uint32_t streamed = GENERATE(0, 1, 2);
  const std::uint64_t want =
      digest_pages(Digest::kSample, source.pool, pages, tokens, streamed, room);
  REQUIRE(digest_pages(Digest::kSample, decode.pool, pages, tokens, streamed, room) == want);
  mark_pages(decode.pool, pages, tokens, 99, [] {});
  for (const PageIndex page : pages) {
    for (const PageUnit& unit : page < streamed ? page_units(layout) : whole_page_units(layout)) {
      // All units land but this one.
      TestPool landed(layout, 2);
      for (PageIndex each : pages) {
        std::memcpy(landed.pool.page(each), source.pool.page(each), layout.page_bytes());
      }
      std::memcpy(landed.pool.page(page) + unit.begin, decode.pool.page(page) + unit.begin,
                  unit.end - unit.begin);
      CHECK(digest_pages(Digest::kSample, landed.pool, pages, tokens, streamed, room) != want);
    }
  }
}

TEST_CASE("digest: the last line is the last one that a token fills") {
  const kv::KvLayout layout = layout_of(2, 2, 64);  // rows of 128 bytes, heads of 4 KiB
  const PageUnit page{0, layout.page_bytes()};
  CHECK(last_line(layout, page, 32) == layout.page_bytes() - 64);
  CHECK(last_line(layout, page, 40) == layout.page_bytes() - 64);
  CHECK(last_line(layout, page, 1) == layout.offset(1, true, 1, 0) + 64);
  CHECK(last_line(layout, page, 31) == layout.offset(1, true, 1, 30) + 64);
  // A unit that is a cut of a head's unused rows has only zeros: its own end then.
  CHECK(last_line(layout, {page.end - 256, page.end}, 5) == page.end - 64);
}

}  // namespace
}  // namespace kvd::transfer
