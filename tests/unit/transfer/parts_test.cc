// The pieces of transfer/ that need no fabric: slots, digest, write plan, sequence, comparison.
#include <catch2/catch.hpp>
#include <cstring>
#include <map>
#include <numeric>

#include "transfer/digest.h"
#include "transfer/slot_table.h"
#include "transfer/wire.h"
#include "transfer/write_plan.h"

namespace kvd::transfer {
namespace {

kv::KvLayout layout_of(std::uint32_t layers, std::uint32_t heads, std::uint32_t dim) {
  kv::KvLayout layout;
  layout.layers = layers;
  layout.kv_heads = heads;
  layout.head_dim = dim;
  return layout;
}

struct TestPool {
  TestPool(kv::KvLayout layout, std::uint32_t pages)
      : memory(pages * layout.page_bytes()), pool(layout, memory.data(), pages) {
    for (std::size_t i = 0; i < memory.size(); ++i) {
      memory[i] = static_cast<std::byte>((i * 2654435761u) >> 13);
    }
  }
  std::vector<std::byte> memory;
  kv::PagePool pool;
};

fabric::Capabilities capabilities_of(std::uint32_t pieces, std::uint64_t most = 1u << 20) {
  fabric::Capabilities capabilities;
  capabilities.max_write_bytes = most;
  capabilities.iov_limit = capabilities.rma_iov_limit = pieces;
  return capabilities;
}

// Plays the writes on a copy of the target; how often each byte was written.
std::map<std::uint64_t, int> bytes_written(const std::vector<fabric::QueuedWrite>& writes,
                                           std::uint64_t* most) {
  std::map<std::uint64_t, int> hits;  // by 64-byte line
  for (const auto& write : writes) {
    std::uint64_t bytes = 0;
    REQUIRE(write.local.size() == write.remote.size());
    for (std::size_t i = 0; i < write.remote.size(); ++i) {
      REQUIRE(write.local[i].bytes == write.remote[i].bytes);
      bytes += write.remote[i].bytes;
      for (std::uint64_t at = 0; at < write.remote[i].bytes; at += 64) {
        ++hits[write.remote[i].address + at];
      }
    }
    *most = std::max(*most, bytes);
  }
  return hits;
}

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
  TestPool a(layout_of(8, 8, 64), 4);
  TestPool b(layout_of(8, 8, 64), 4);
  const std::vector<PageIndex> from = {0, 1, 2}, to = {3, 0, 1};
  for (int i = 0; i < 3; ++i)
    std::memcpy(b.pool.page(to[i]), a.pool.page(from[i]), a.pool.layout().page_bytes());
  const RoomId room{77};
  const std::uint64_t want = digest_pages(mode, a.pool, from, from.size() * 32, room);
  CHECK(digest_pages(mode, b.pool, to, to.size() * 32, room) == want);
  CHECK(digest_pages(mode, a.pool, from, from.size() * 32, RoomId{78}) != want);
  const std::vector<PageIndex> swapped = {1, 0, 2};
  CHECK(digest_pages(mode, a.pool, swapped, swapped.size() * 32, room) != want);
  // A group that never landed.
  std::memset(b.pool.page(to[1]), 0, 2 * b.pool.layout().layer_bytes());
  CHECK(digest_pages(mode, b.pool, to, to.size() * 32, room) != want);
}

TEST_CASE("digest: however the pages are taken in, it is the same") {
  const auto mode = GENERATE(Digest::kSample, Digest::kFull, Digest::kOff);
  const auto head_dim = GENERATE(64u, 504u);  // two lines a unit, one line a unit
  TestPool a(layout_of(head_dim == 64 ? 8 : 1, head_dim == 64 ? 8 : 1, head_dim), 9);
  const std::vector<PageIndex> pages = {4, 5, 6, 0, 8, 1, 2};
  const std::uint64_t tokens = pages.size() * 32 - 5;
  const RoomId room{77};
  const std::uint64_t want = digest_pages(mode, a.pool, pages, tokens, room);
  for (std::size_t first = 0; first <= pages.size() + 1; ++first) {
    for (std::size_t second = 0; second <= pages.size() + 1; ++second) {
      Digester digester(mode, &a.pool, pages, tokens, room);
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
      digest_pages(Digest::kFull, a.pool, pages, pages.size() * 32, RoomId{5});
  a.pool.page(1)[12345] ^= std::byte{1};
  CHECK(digest_pages(Digest::kFull, a.pool, pages, pages.size() * 32, RoomId{5}) != before);
  CHECK(digest_pages(Digest::kOff, a.pool, pages, pages.size() * 32, RoomId{5}) == 0);
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

TEST_CASE("digest: of a unit below 64 KiB the last line alone is sampled, of others one more") {
  // One unit a page: 32 tokens of K and V in 1,024 or 1,008 bytes each.
  const auto head_dim = GENERATE(512u, 504u);
  const kv::KvLayout layout = layout_of(1, 1, head_dim);
  const std::uint64_t bytes = layout.page_bytes();
  REQUIRE(page_units(layout).size() == 1);
  const bool small = head_dim == 504;
  REQUIRE((bytes < 64 << 10) == small);
  TestPool pool(layout, 1);
  const std::vector<PageIndex> pages = {0};
  const RoomId room{77};
  const std::uint64_t before = digest_pages(Digest::kSample, pool.pool, pages, 32, room);
  std::vector<std::uint64_t> seen;  // lines whose change changes the digest
  for (std::uint64_t line = 0; line < bytes; line += 64) {
    pool.pool.page(0)[line] ^= std::byte{1};
    if (digest_pages(Digest::kSample, pool.pool, pages, 32, room) != before) seen.push_back(line);
    pool.pool.page(0)[line] ^= std::byte{1};
  }
  const std::uint64_t last = bytes - 64, drawn = sample_line(room, 0, bytes);
  REQUIRE(drawn != last);
  CHECK(seen == (small ? std::vector{last} : std::vector{drawn, last}));
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
  const std::uint64_t want = digest_pages(Digest::kSample, source.pool, pages, tokens, room);
  const PageMap map{&source.pool, pages, pages, {0, 1 << 30, 42}};
  const bool whole = GENERATE(true, false);
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
    REQUIRE(digest_pages(Digest::kSample, landed.pool, pages, tokens, room) == want);
    const fabric::RemotePiece& last = write.remote.back();
    const std::uint64_t page = (last.address + last.bytes - 1) / bytes;
    const std::uint64_t end = last.address + last.bytes - page * bytes;
    const std::uint64_t used = std::min<std::uint64_t>(32, tokens - 32 * page);
    const std::uint64_t from = last_line(layout, {end - std::min(end, last.bytes), end}, used) + 63;
    std::memset(landed.pool.page(static_cast<PageIndex>(page)) + from, 0x5a, end - from);
    CHECK(digest_pages(Digest::kSample, landed.pool, pages, tokens, room) != want);
  }
}

TEST_CASE("digest: who marks many units is let go in between, who marks few is not") {
  const auto layout = layout_of(2, 2, 8);
  const std::uint32_t units = static_cast<std::uint32_t>(page_units(layout).size());
  const std::uint32_t few = static_cast<std::uint32_t>((kMarksAtOnce - 1) / units);
  for (const auto& [count, want] : {std::pair{few, 0U}, {few + 1, 1U}, {2 * (few + 1) + 1, 3U}}) {
    TestPool pool(layout, count);
    std::vector<PageIndex> pages(count);
    std::iota(pages.begin(), pages.end(), PageIndex{0});
    std::uint32_t let_go = 0;
    mark_pages(pool.pool, pages, std::uint64_t{count} * layout.page_size, 5, [&] { ++let_go; });
    CAPTURE(count, units);
    CHECK(let_go == want);
  }
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
  const std::uint64_t want = digest_pages(Digest::kSample, source.pool, pages, tokens, room);
  REQUIRE(digest_pages(Digest::kSample, decode.pool, pages, tokens, room) == want);
  mark_pages(decode.pool, pages, tokens, 99, [] {});
  for (const PageIndex page : pages) {
    for (const PageUnit& unit : page_units(layout)) {
      // All units land but this one.
      TestPool landed(layout, 2);
      for (PageIndex each : pages) {
        std::memcpy(landed.pool.page(each), source.pool.page(each), layout.page_bytes());
      }
      std::memcpy(landed.pool.page(page) + unit.begin, decode.pool.page(page) + unit.begin,
                  unit.end - unit.begin);
      CHECK(digest_pages(Digest::kSample, landed.pool, pages, tokens, room) != want);
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

TEST_CASE("write plan: a run of small pages is cut where a write is full, and where a run ends") {
  const kv::KvLayout layout = layout_of(1, 1, 504);  // one unit of 63 KiB a page
  TestPool pool(layout, 41);
  std::vector<PageIndex> source(40), destination(40);
  std::iota(source.begin(), source.end(), 0);
  std::iota(destination.begin(), destination.end(), 0);
  std::iota(destination.begin() + 20, destination.end(), 21);  // one page is left out
  const PageMap map{&pool.pool, source, destination, {0x1000, 1 << 30, 42}};
  std::vector<std::uint64_t> pages;
  std::uint64_t next = 0;
  for (const auto& write : plan_writes(map, {0, 1}, 0, 40, capabilities_of(1, 1u << 20))) {
    REQUIRE(write.local.size() == 1);
    CHECK(write.local[0].address == pool.pool.page(static_cast<PageIndex>(next)));
    CHECK(write.remote[0].address == 0x1000 + destination[next] * layout.page_bytes());
    CHECK(write.local[0].bytes == write.remote[0].bytes);
    pages.push_back(write.local[0].bytes / layout.page_bytes());
    next += pages.back();
  }
  CHECK(pages == std::vector<std::uint64_t>{16, 4, 16, 4});
}

TEST_CASE("write plan: each destination byte once, whatever the groups and chunks") {
  const auto pieces = GENERATE(1u, 4u);
  const auto largest = GENERATE(1u << 20, 4u << 20);
  const auto packet_bytes = GENERATE(0u, 65'483u);
  const auto layout = GENERATE(layout_of(8, 8, 64), layout_of(30, 3, 64), layout_of(2, 1, 8));
  TestPool pool(layout, 24);
  const std::vector<PageIndex> source = {0, 1, 2, 5, 6, 9, 10, 12, 14, 16, 18, 20},
                               destination = {3, 4, 5, 6, 0, 1, 9, 11, 13, 15, 17, 19};
  const PageMap map{&pool.pool, source, destination, {0x1000, 1 << 30, 42}};
  std::vector<fabric::QueuedWrite> all;
  for (const kv::LayerGroup& group : kv::layer_groups(layout)) {
    for (const auto& [first, last] : {std::pair{0u, 2u}, std::pair{2u, 3u}, std::pair{3u, 12u}}) {
      fabric::Capabilities capabilities = capabilities_of(pieces, largest);
      capabilities.packet_bytes = packet_bytes;
      for (auto& write : plan_writes(map, group, first, last, capabilities)) {
        all.push_back(std::move(write));
      }
    }
  }
  std::uint64_t most = 0;
  const auto hits = bytes_written(all, &most);
  CHECK(hits.size() * 64 == 12 * layout.page_bytes());
  CHECK(std::all_of(hits.begin(), hits.end(), [](const auto& hit) { return hit.second == 1; }));
  CHECK(most <= largest);
  for (const auto& write : all) {
    CHECK(write.remote.size() <= pieces);
    CHECK(write.remote[0].key == 42);
    CHECK(write.remote[0].address >= 0x1000);
    // Each ends where a unit does.
    const std::uint64_t end =
        (write.remote.back().address + write.remote.back().bytes - 0x1000 - 1) %
        layout.page_bytes();
    const std::vector<PageUnit> units = page_units(layout);
    CHECK(std::any_of(units.begin(), units.end(),
                      [&](const PageUnit& unit) { return unit.end == end + 1; }));
  }
}

TEST_CASE(
    "write plan: whole pages merge where both sides are neighbours, up to the largest write") {
  const kv::KvLayout layout = layout_of(8, 4, 64);  // 256 KiB pages
  TestPool pool(layout, 12);
  const std::vector<PageIndex> source = {0, 1, 2, 3, 4, 5}, destination = {6, 7, 8, 9, 10, 0};
  const PageMap map{&pool.pool, source, destination, {0, 1 << 30, 1}};
  fabric::Capabilities nic = capabilities_of(4);
  nic.rdma = true;
  const auto writes = plan_writes(map, {0, 8}, 0, 6, nic);
  REQUIRE(writes.size() == 3);
  CHECK(writes[0].local[0].bytes == 1 << 20);  // four pages
  CHECK(writes[1].local[0].bytes == 256 << 10);
  CHECK(writes[2].local[0].bytes == 256 << 10);  // the destination jumps
  // On TCP the last two, which fit twice into a write, share one.
  const auto streamed = plan_writes(map, {0, 8}, 0, 6, capabilities_of(4));
  REQUIRE(streamed.size() == 2);
  REQUIRE(streamed[1].local.size() == 2);
  CHECK(streamed[1].local[1].bytes == 256 << 10);
}

TEST_CASE("write plan: sixteen pages of 64 KiB share a write on local") {
  const kv::KvLayout layout = layout_of(2, 4, 64);
  REQUIRE(layout.page_bytes() == 64 << 10);
  TestPool pool(layout, 40);
  std::vector<PageIndex> source, destination;
  for (PageIndex i = 0; i < 20; ++i) {
    source.push_back(2 * i);
    destination.push_back(39 - 2 * i);
  }
  fabric::Capabilities local = capabilities_of(16);
  local.target_copies = true;
  const PageMap map{&pool.pool, source, destination, {0, 1 << 30, 1}};
  const auto writes = plan_writes(map, {0, 2}, 0, 20, local);
  REQUIRE(writes.size() == 2);
  CHECK(writes[0].local.size() == 16);
  CHECK(writes[1].local.size() == 4);
  std::uint64_t most = 0;
  CHECK(bytes_written(writes, &most).size() * 64 == 20 * layout.page_bytes());
  CHECK(most == 1 << 20);
}

TEST_CASE("write plan: pieces of up to half of the largest write share one on TCP") {
  const auto heads = GENERATE(16u, 18u, 20u);  // pages of 512, 576 and 640 KiB
  const kv::KvLayout layout = layout_of(4, heads, 64);
  TestPool pool(layout, 10);
  const std::vector<PageIndex> source = {0, 2, 4, 6}, destination = {1, 3, 5, 7};
  const PageMap map{&pool.pool, source, destination, {0, 1 << 30, 1}};
  const auto writes = plan_writes(map, {0, 4}, 0, 4, capabilities_of(4));
  CHECK(writes.size() == (heads == 16 ? 2 : 4));
  std::uint64_t most = 0;
  CHECK(bytes_written(writes, &most).size() * 64 == 4 * layout.page_bytes());
  CHECK(most <= 1 << 20);
}

TEST_CASE("write plan: no write is longer than what moves best") {
  const kv::KvLayout layout = layout_of(4, 32, 64);  // pages of 1 MiB
  TestPool pool(layout, 4);
  const std::vector<PageIndex> source = {0, 2}, destination = {1, 3};
  const PageMap map{&pool.pool, source, destination, {0, 1 << 30, 1}};
  fabric::Capabilities capabilities = capabilities_of(4);
  capabilities.best_write_bytes = 768 << 10;
  const auto writes = plan_writes(map, {0, 4}, 0, 2, capabilities);
  std::uint64_t most = 0;
  CHECK(bytes_written(writes, &most).size() * 64 == 2 * layout.page_bytes());
  // Layers of 256 KiB, each a unit: three of them, and one.
  CHECK(most == 768 << 10);
  CHECK(writes.size() == 4);
}

TEST_CASE(
    "write plan: where packets are paced, no write ends with a short one if it can be helped") {
  struct Case {
    kv::KvLayout layout;
    kv::LayerGroup group;
    std::uint64_t packet_bytes;
    std::vector<std::uint64_t> kib;  // of the writes
  };
  const kv::KvLayout smol = layout_of(30, 3, 64);  // 24 KiB a layer
  constexpr std::uint64_t kPacket = 65'483;
  const auto given = GENERATE_COPY(
      // Four pieces of 144 KiB are nine packets and 589 bytes.
      Case{smol, {0, 6}, 0, {576, 576, 432}},                        //
      Case{smol, {0, 6}, kPacket, {548, 420, 472, 144}},             //
      Case{smol, {24, 27}, kPacket, {288, 288, 216}},                // four and a half packets
      Case{smol, {0, 30}, kPacket, {2852, 2148, 2200, 720}},         //
      Case{layout_of(8, 8, 128), {0, 1}, kPacket, {484, 412, 512}},  //
      Case{layout_of(1, 3, 64), {0, 1}, kPacket, {96, 96, 72}},      // a packet and a half
      Case{layout_of(1, 5, 32), {0, 1}, kPacket, {80, 80, 60}},      // too small to be cut
      Case{layout_of(2, 1, 64), {0, 2}, 256 << 10, {64, 64, 48}},    // less than one packet
      // Four packets, but for the header.
      Case{layout_of(2, 8, 64), {0, 2}, (128 << 10) + 60, {484, 412, 512}},
      // Each alone.
      Case{layout_of(10, 16, 128), {0, 10}, kPacket, std::vector<std::uint64_t>(11, 2560)});
  TestPool pool(given.layout, 22);
  std::vector<PageIndex> source, destination;
  for (PageIndex i = 0; i < 11; ++i) {
    source.push_back(2 * i);
    destination.push_back(21 - 2 * i);
  }
  fabric::Capabilities capabilities = capabilities_of(4, 4u << 20);
  capabilities.packet_bytes = given.packet_bytes;
  const PageMap map{&pool.pool, source, destination, {0, 1 << 30, 1}};
  const auto writes = plan_writes(map, given.group, 0, 11, capabilities);
  std::vector<std::uint64_t> kib;
  for (const fabric::QueuedWrite& write : writes) {
    kib.push_back(0);
    for (const fabric::LocalPiece& piece : write.local) kib.back() += piece.bytes >> 10;
  }
  CHECK(kib == given.kib);
  for (const fabric::QueuedWrite& write : writes) {
    // Where a unit ends.
    const fabric::RemotePiece& last = write.remote.back();
    CHECK((last.address + last.bytes) % given.layout.page_bytes() ==
          given.group.end * given.layout.layer_bytes() % given.layout.page_bytes());
  }
  std::uint64_t most = 0;
  const std::uint64_t lines =
      11 * (given.group.end - given.group.begin) * given.layout.layer_bytes() / 64;
  CHECK(bytes_written(writes, &most).size() == lines);
}

TEST_CASE("write plan: small pieces share a write, large ones do not, too large ones are cut") {
  TestPool small(layout_of(2, 1, 8), 12);  // 2 KiB pages
  const std::vector<PageIndex> source = {0, 2, 4, 6, 8}, destination = {1, 3, 5, 7, 9};
  const PageMap map{&small.pool, source, destination, {0, 1 << 30, 1}};
  const auto writes = plan_writes(map, {0, 2}, 0, 5, capabilities_of(4));
  REQUIRE(writes.size() == 2);
  CHECK(writes[0].local.size() == 4);
  CHECK(writes[1].local.size() == 1);

  TestPool large(layout_of(10, 8, 128), 2);  // 1.25 MiB pages
  const std::vector<PageIndex> one = {1}, zero = {0};
  const PageMap big{&large.pool, one, zero, {0, 1 << 30, 1}};
  const auto cut = plan_writes(big, {0, 10}, 0, 1, capabilities_of(4));
  REQUIRE(cut.size() == 2);
  CHECK(cut[0].local[0].bytes == 1 << 20);
  CHECK(cut[1].remote[0].address == 1 << 20);
}

}  // namespace
}  // namespace kvd::transfer
