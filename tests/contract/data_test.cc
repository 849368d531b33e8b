// What lands, where, in which order, and what a completion proves.
#include <algorithm>
#include <cstring>

#include "base/rng.h"
#include "contract/world.h"

namespace kvd::fabric::contract {
namespace {

// Cuts `total` into at most `limit` pieces of random length.
std::vector<std::uint64_t> cut(std::uint64_t total, std::uint32_t limit, Rng& rng) {
  std::vector<std::uint64_t> lengths;
  while (total > 0 && lengths.size() + 1 < limit) {
    lengths.push_back(1 + rng.below(total));
    total -= lengths.back();
  }
  if (total > 0) lengths.push_back(total);
  return lengths;
}

}  // namespace

TEST_CASE("contract: scattered pieces land where they were sent, and nowhere else") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  constexpr std::uint64_t kSlot = 256 * 1024;
  constexpr std::size_t kWrites = 24;
  Link link(world.get(), kWrites * kSlot);
  const Bytes source = pattern(kSlot, 7);
  link.source_region = link.sender_domain
                           ->register_memory(const_cast<std::byte*>(source.data()), source.size(),
                                             false, link.sender.get())
                           .value();
  Bytes expected(link.memory.size());
  Rng rng(3);
  for (std::size_t i = 0; i < kWrites; ++i) {
    const std::uint64_t total = 1 + rng.below(kSlot / 2);
    std::vector<LocalPiece> local;
    std::vector<RemotePiece> remote;
    Bytes flat;
    for (const std::uint64_t bytes : cut(total, link.capabilities().iov_limit, rng)) {
      const std::uint64_t from = rng.below(kSlot - bytes + 1);
      local.push_back({source.data() + from, bytes});
      flat.insert(flat.end(), source.data() + from, source.data() + from + bytes);
    }
    std::uint64_t used = 0, at = i * kSlot;
    for (const std::uint64_t bytes : cut(total, link.capabilities().rma_iov_limit, rng)) {
      at += 1 + rng.below(1000);  // a gap that must stay as it is
      remote.push_back(link.at(at, bytes));
      std::memcpy(expected.data() + at, flat.data() + used, bytes);
      used += bytes;
      at += bytes;
    }
    REQUIRE(
        link.post({.local = local, .remote = remote, .context = i + 1, .delivery_complete = true})
            .ok());
  }
  REQUIRE(link.until([&] { return link.done.size() == kWrites; }));
  CHECK(link.failed() == 0);
  CHECK(link.memory == expected);
  CHECK(link.seen.empty());
}

TEST_CASE("contract: remote data is seen only after every byte written before it") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  constexpr std::size_t kPage = 192 * 1024;
  constexpr std::size_t kPages = 20;
  Link link(world.get(), kPages * kPage + 64);
  if (!link.capabilities().write_after_write || !link.capabilities().remote_cq_data) {
    WARN("skipped: " + provider + " has no ordered commit");
    return;
  }
  for (std::uint64_t round = 1; round <= 10; ++round) {
    const Bytes page = pattern(kPage, round), record = pattern(64, round);
    for (std::size_t i = 0; i < kPages; ++i) REQUIRE(link.post(page, i * kPage, 1000 + i).ok());
    const std::uint64_t data = 0x80000000ULL | (round << 20) | round;
    REQUIRE(link.post(record, kPages * kPage, round, true, data).ok());
    REQUIRE(link.until([&] { return link.seen.size() == round; }));
    // Checked at the very moment of the signal, without another poll.
    CHECK(link.seen.back().kind == CompletionKind::kRemoteData);
    CHECK(link.seen.back().data == data);
    for (std::size_t i = 0; i < kPages; ++i) {
      REQUIRE(std::memcmp(link.memory.data() + i * kPage, page.data(), kPage) == 0);
    }
    REQUIRE(std::memcmp(link.memory.data() + kPages * kPage, record.data(), 64) == 0);
    REQUIRE(link.until([&] { return link.completed(round); }));
  }
  REQUIRE(link.until([&] { return link.done.size() == 10 * (kPages + 1); }));
  CHECK(link.failed() == 0);
}

TEST_CASE("contract: a delivery-complete write is in the target's memory when it completes") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  Link link(world.get(), 4u << 20);
  if (!link.capabilities().delivery_complete) {
    WARN("skipped: " + provider + " proves no delivery");
    return;
  }
  for (std::uint64_t round = 1; round <= 30; ++round) {
    const Bytes bytes = pattern(round % 2 == 0 ? link.capabilities().max_write_bytes : 5000, round);
    REQUIRE(link.post(bytes, 0, round, true).ok());
    REQUIRE(link.until([&] { return link.done.size() == round; }));
    REQUIRE(link.done.back().status.ok());
    CHECK(link.done.back().context == round);
    REQUIRE(std::memcmp(link.memory.data(), bytes.data(), bytes.size()) == 0);
  }
}

TEST_CASE("contract: a write with a foreign key or out of bounds lands nowhere and is an error") {
  const std::string provider = GENERATE(from_range(present()));
  const std::string what =
      GENERATE(as<std::string>{}, "wrong key", "behind the end", "before the base", "wraps around",
               "second piece out of bounds");
  INFO(provider << ", " << what);
  auto world = make_world(provider);
  Link link(world.get(), 64 * 1024);
  const Bytes source = pattern(8192, 1);
  REQUIRE(link.post(pattern(16, 9), 0, 1, true).ok());  // the connection is up
  REQUIRE(link.until([&] { return link.succeeded() == 1; }));
  const Bytes before = link.memory;

  std::vector<LocalPiece> local{{source.data(), 8192}};
  std::vector<RemotePiece> remote{link.at(4096, 8192)};
  if (what == "wrong key") remote[0].key ^= 1;
  if (what == "behind the end") remote[0].address += 64 * 1024 - 4096 - 8191;
  if (what == "before the base") remote[0].address = link.remote.base - 1;
  if (what == "wraps around") remote[0].address = ~std::uint64_t{0} - 100;
  if (what == "second piece out of bounds") {
    if (link.capabilities().rma_iov_limit < 2) return;
    remote = {link.at(4096, 4096), link.at(64 * 1024 - 4095, 4096)};
  }
  REQUIRE(
      link.post({.local = local, .remote = remote, .context = 2, .delivery_complete = true}).ok());
  REQUIRE(link.until([&] { return link.completed(2); }));
  CHECK(link.failed() == 1);
  CHECK_FALSE(link.done.back().status.message().empty());
  run_for(
      *world, [&] { link.poll(); }, std::chrono::milliseconds(50));
  CHECK(link.memory == before);
}

TEST_CASE("contract: a key opens only the endpoint it was made for") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  Link first(world.get(), 4096);
  if (!first.capabilities().endpoint_per_peer) {
    WARN("skipped: " + provider + " shares its endpoint");
    return;
  }
  Link second(world.get(), 4096, first.sender_domain, first.receiver_domain);
  CHECK(first.remote.key != second.remote.key);
  const Bytes source = pattern(512, 1);
  const LocalPiece local{source.data(), 512};
  const RemotePiece foreign = second.at(0, 512);
  REQUIRE(first
              .post({.local = {&local, 1},
                     .remote = {&foreign, 1},
                     .context = 1,
                     .delivery_complete = true})
              .ok());
  REQUIRE(first.until([&] {
    second.poll();
    return first.completed(1);
  }));
  CHECK(first.failed() == 1);
  CHECK(second.memory == Bytes(4096));
  CHECK_FALSE(first.receiver_domain->register_memory(first.memory.data(), 64, true, nullptr).ok());
}

TEST_CASE("contract: what cannot be posted is refused at once and nothing is in flight") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  Link link(world.get(), 8u << 20);
  const std::uint64_t too_many = link.capabilities().max_write_bytes + 1;
  const Bytes source = pattern(too_many, 1);
  const LocalPiece small{source.data(), 64}, big{source.data(), too_many};
  const RemotePiece to_small = link.at(0, 64), to_big = link.at(0, too_many);
  std::vector<LocalPiece> many(link.capabilities().iov_limit + 1, LocalPiece{source.data(), 1});
  const RemotePiece to_many = link.at(0, many.size());
  const auto refused = [&](const WriteRequest& request) {
    return link.sender->write(link.peer, request).code() == StatusCode::kInvalidArgument;
  };
  CHECK(refused({.local = {}, .remote = {&to_small, 1}, .context = 1}));
  CHECK(refused({.local = {&small, 1}, .remote = {}, .context = 1}));
  CHECK(refused({.local = {&small, 1}, .remote = {&to_big, 1}, .context = 1}));
  CHECK(refused({.local = {&big, 1}, .remote = {&to_big, 1}, .context = 1}));
  CHECK(refused({.local = many, .remote = {&to_many, 1}, .context = 1}));
  REQUIRE(link.post(pattern(64, 2), 0, 5, true).ok());
  REQUIRE(link.until([&] { return !link.done.empty(); }));
  CHECK(link.done.size() == 1);
}

TEST_CASE("contract: addresses that are not a peer's are refused") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  Link link(world.get(), 4096);
  const FabricAddress good = link.receiver->address();
  CHECK(good.size() <= 256);
  for (const FabricAddress& bad :
       {FabricAddress(), good.substr(0, good.size() - 1), good + "x", FabricAddress(300, 'x')}) {
    const auto result = link.sender->insert(bad);
    REQUIRE_FALSE(result.ok());
    CHECK(result.status().code() == StatusCode::kInvalidArgument);
  }
}

TEST_CASE("contract: a read brings the peer's bytes") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  Link link(world.get(), 256 * 1024);
  if (!link.capabilities().remote_read) {
    std::byte byte{};
    const Status refused = link.sender->read(link.peer, &byte, link.at(0, 1), 1);
    CHECK(refused.code() == StatusCode::kNoProvider);
    CHECK(refused.message().find(provider.substr(0, provider.find(';'))) == 0);
    return;
  }
  link.memory = pattern(link.memory.size(), 5);  // same storage size: the registration stays valid
  link.region =
      link.receiver_domain
          ->register_memory(link.memory.data(), link.memory.size(), true, link.receiver.get())
          .value();
  link.remote = link.region->remote();
  Bytes into(100'000);
  Status status;
  REQUIRE(link.until([&] {
    status = link.sender->read(link.peer, into.data(), link.at(4321, into.size()), 77);
    return status.code() != StatusCode::kAgain;
  }));
  REQUIRE(status.ok());
  REQUIRE(link.until([&] { return link.completed(77); }));
  CHECK(link.failed() == 0);
  CHECK(std::memcmp(into.data(), link.memory.data() + 4321, into.size()) == 0);
}

}  // namespace kvd::fabric::contract
