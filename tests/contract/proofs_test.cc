// What is no proof and no fence on TCP: the measured half of kvd-protocol.7's table of proofs that
// says so. A libfabric that fails these has become better than the table, which should then say so.
#include <algorithm>
#include <cstring>

#include "contract/world.h"

namespace kvd::fabric::contract {
namespace {

constexpr std::size_t kMiB = 1u << 20;

std::vector<std::string> tcp_providers() {
  std::vector<std::string> names;
  for (const std::string& name : present()) {
    if (name == "tcp" || name == "tcp;ofi_rxm") names.push_back(name);
  }
  return names;
}

std::size_t landed(const Bytes& memory) {
  return memory.size() -
         static_cast<std::size_t>(std::count(memory.begin(), memory.end(), std::byte{0}));
}

// Polls the sender alone: what happens now happens without the target.
bool poll_sender(Link* link, const std::function<bool()>& done,
                 std::chrono::milliseconds time = std::chrono::milliseconds(500)) {
  const TimePoint limit = link->world->clock()->now() + time;
  while (!done() && link->world->clock()->now() < limit) {
    std::array<Completion, 16> batch;
    const std::size_t count = link->sender->poll(batch);
    link->done.insert(link->done.end(), batch.begin(), batch.begin() + count);
  }
  return done();
}

// Polls the target alone until nothing more comes.
void drain_target(Link* link) {
  for (std::size_t before = 0, now = 1; before != now; now = landed(link->memory)) {
    before = now;
    std::array<Completion, 16> batch;
    for (int i = 0; i < 100; ++i) (void)link->receiver->poll(batch);
  }
}

}  // namespace

TEST_CASE(
    "proofs: on tcp a plain write completes before the target has it, delivery-complete not") {
  const std::string provider = GENERATE(from_range(tcp_providers()));
  INFO(provider);
  auto world = make_world(provider);
  Link link(world.get(), kMiB);
  REQUIRE(link.post(pattern(64, 1), 0, 1, true).ok());  // connects
  REQUIRE(link.until([&] { return link.completed(1); }));
  const Bytes before = link.memory;
  REQUIRE(link.post(pattern(4096, 2), 8192, 2).ok());
  CHECK(poll_sender(&link, [&] { return link.completed(2); }));
  CHECK(link.failed() == 0);
  CHECK((link.memory == before));  // the target has not polled since
  REQUIRE(link.post(pattern(4096, 3), 16384, 3, true).ok());
  CHECK_FALSE(poll_sender(&link, [&] { return link.completed(3); }));
  CHECK(link.until([&] { return link.completed(3); }));
  CHECK(landed(link.memory) == 64 + 2 * 4096);
}

TEST_CASE("proofs: on tcp closing the region is no fence for a write that has begun to land") {
  const std::string provider = GENERATE(from_range(tcp_providers()));
  INFO(provider);
  bool landed_after = false;
  for (int round = 0; round < 20 && !landed_after; ++round) {
    auto world = make_world(provider);
    Link link(world.get(), 24 * kMiB);
    REQUIRE(!link.capabilities().region_close_fences);
    REQUIRE(link.post(pattern(64, 1), 0, 1, true).ok());
    REQUIRE(link.until([&] { return link.completed(1); }));
    const Bytes source = pattern(kMiB, 7);
    // Not by post(), which polls the target, too.
    for (std::uint64_t i = 1; i < 24; ++i) {
      const LocalPiece from{source.data(), source.size()};
      const RemotePiece to = link.at(i * kMiB, source.size());
      const WriteRequest write{.local = {&from, 1}, .remote = {&to, 1}, .context = i + 1};
      REQUIRE(link.sender->write(link.peer, write).ok());
    }
    // As much as the sockets hold: that ends inside a write.
    (void)poll_sender(
        &link, [] { return false; }, std::chrono::milliseconds(10));
    drain_target(&link);
    if ((landed(link.memory) - 64) % kMiB == 0) continue;  // between two after all: another round
    link.region.reset();
    const std::size_t at_close = landed(link.memory);
    run_for(
        *world, [&] { link.poll(); }, std::chrono::milliseconds(50));
    landed_after = landed(link.memory) > at_close;
  }
  CHECK(landed_after);
}

}  // namespace kvd::fabric::contract
