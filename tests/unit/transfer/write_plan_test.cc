// How pages are cut into writes.
#include "transfer/write_plan.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <map>
#include <numeric>
#include <utility>

#include "test_pool.h"

namespace kvd::transfer {
namespace {

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

TEST_CASE("write plan: units of whole pages are neighbours of the others together") {
  for (const kv::KvLayout& layout :
       {layout_of(30, 3, 64), layout_of(32, 8, 128), layout_of(3, 24, 512), layout_of(1, 1, 8)}) {
    const std::vector<PageUnit> units = page_units(layout), whole = whole_page_units(layout);
    CHECK(whole.size() <= units.size());
    std::uint64_t at = 0;
    for (const PageUnit& unit : whole) {
      CHECK(unit.begin == at);
      CHECK(unit.end - unit.begin <= kMaxWholeUnitBytes);
      CHECK(std::any_of(units.begin(), units.end(),
                        [&](const PageUnit& other) { return other.end == unit.end; }));
      at = unit.end;
    }
    CHECK(at == layout.page_bytes());
  }
  CHECK(whole_page_units(layout_of(30, 3, 64)).size() == 1);   // 720 KiB
  CHECK(whole_page_units(layout_of(32, 8, 128)).size() == 6);  // 4 MiB
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
  // Layers of 256 KiB: three of them are a unit, and one.
  CHECK(most == 768 << 10);
  CHECK(writes.size() == 4);
}

TEST_CASE(
    "write plan: where packets are paced, no write ends with a short one if it can be helped") {
  struct Case {
    kv::KvLayout layout;
    kv::LayerGroup group;
    std::uint64_t packet_bytes;
    std::vector<std::uint64_t> bytes;  // of the writes
  };
  const kv::KvLayout smol = layout_of(30, 3, 64);  // 24 KiB a layer
  constexpr std::uint64_t kPacket = 65'483;
  const auto given = GENERATE_COPY(
      // Four pieces of 144 KiB are nine packets and 589 bytes.
      Case{smol, {0, 6}, 0, {589'824, 589'824, 442'368}},
      Case{smol, {0, 6}, kPacket, {589'056, 443'136, 589'824}},
      // Four and a half packets.
      Case{smol, {24, 27}, kPacket, {261'632, 254'464, 294'912}},
      Case{smol, {0, 30}, kPacket, {2'946'432, 2'214'528, 2'949'120}},
      Case{layout_of(8, 8, 128), {0, 1}, kPacket, {523'584, 392'640, 392'640, 132'928}},
      // A packet and a half: a whole page and a part of one go with the next write.
      Case{layout_of(1, 3, 64), {0, 1}, kPacket, {65'216, 65'216, 65'216, 74'688}},
      Case{layout_of(1, 5, 32), {0, 1}, kPacket, {65'216, 65'216, 65'216, 29'632}},
      // Less than one packet.
      Case{layout_of(2, 1, 64), {0, 2}, 256 << 10, {65'536, 65'536, 49'152}},
      // Four packets, but for the header.
      Case{layout_of(2, 8, 64), {0, 2}, (128 << 10) + 60, {524'224, 393'088, 393'088, 131'392}},
      // Each alone.
      Case{layout_of(10, 16, 128),
           {0, 10},
           kPacket,
           std::vector<std::uint64_t>(11, std::uint64_t{2560} << 10)});
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
  std::vector<std::uint64_t> bytes;
  for (const fabric::QueuedWrite& write : writes) {
    bytes.push_back(0);
    for (const fabric::LocalPiece& piece : write.local) bytes.back() += piece.bytes;
  }
  CHECK(bytes == given.bytes);
  for (const fabric::QueuedWrite& write : writes) {
    // Where a unit ends.
    const fabric::RemotePiece& last = write.remote.back();
    CHECK((last.address + last.bytes) % given.layout.page_bytes() ==
          given.group.end * given.layout.layer_bytes() % given.layout.page_bytes());
  }
  std::uint64_t most = 0;
  const std::uint64_t lines =
      11 * (given.group.end - given.group.begin) * given.layout.layer_bytes() / 64;
  const auto hits = bytes_written(writes, &most);
  CHECK(hits.size() == lines);
  CHECK(std::all_of(hits.begin(), hits.end(), [](const auto& hit) { return hit.second == 1; }));
}

TEST_CASE(
    "write plan: a write that is cut for packets, or the nearest one, ends with a long packet") {
  constexpr std::uint64_t kPacket = 65'483;
  for (std::uint64_t bytes = 64; bytes <= 4u << 20; bytes += 64) {
    const std::uint64_t less = too_many_for_packets(bytes, kPacket);
    const std::uint64_t nearest = nearest_for_packets(bytes, kPacket);
    REQUIRE(less < bytes);
    REQUIRE(too_many_for_packets(bytes - less, kPacket) == 0);
    REQUIRE(too_many_for_packets(nearest, kPacket) == 0);
    REQUIRE((less == 0) == (nearest == bytes));
    REQUIRE(std::max(nearest, bytes) - std::min(nearest, bytes) <=
            kLongPacket / 2 + kHeaderBytes + 1);
    // With its header, whatever that is.
    for (const std::uint64_t header : {std::uint64_t{40}, kHeaderBytes}) {
      const std::uint64_t last = (nearest + header) % kPacket;
      REQUIRE((nearest + header <= kPacket || last >= kLongPacket));
      const std::uint64_t cut = (bytes - less + header) % kPacket;
      REQUIRE((bytes + header <= kPacket || cut >= kLongPacket));
      REQUIRE((less == 0 || cut + kHeaderBytes + 64 >= kPacket));
    }
  }
  CHECK(too_many_for_packets(65'536, 0) == 0);
  CHECK(nearest_for_packets(65'536, 0) == 65'536);
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
  CHECK(cut[0].local[0].bytes == 768 << 10);  // a unit, as two are more than a write takes
  CHECK(cut[1].remote[0].address == 768 << 10);
}

}  // namespace
}  // namespace kvd::transfer
