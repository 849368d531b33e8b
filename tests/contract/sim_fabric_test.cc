// The simulated fabric shows each fault that real providers were measured to have.
#include "fabric/sim/sim_fabric.h"

#include <algorithm>
#include <cstring>

#include "contract/world.h"

namespace kvd::fabric::contract {
namespace {

constexpr std::size_t kMiB = 1u << 20;

// A world whose faults and clock the test holds in its own hands.
class FaultyWorld final : public World {
 public:
  explicit FaultyWorld(SimFaults faults, std::uint64_t seed = 7) : fabric(seed, &manual, faults) {}
  std::unique_ptr<Domain> open_domain(const std::string& host) override {
    return fabric.open_domain(host);
  }
  bool turn() override {
    if (fabric.step()) return true;
    const TimePoint next = fabric.next_event();
    if (next == kNever) return false;
    if (next > manual.now()) manual.advance(next - manual.now());
    return fabric.step();
  }
  const Clock* clock() const override { return &manual; }
  void run_out() {
    while (turn()) {
    }
  }

  ManualClock manual;
  SimFabric fabric;
};

bool landed(const Link& link, const Bytes& source, std::size_t offset = 0) {
  return std::memcmp(link.memory.data() + offset, source.data(), source.size()) == 0;
}

// One MiB has been accepted and is landing, piece by piece.
Bytes half_way(FaultyWorld& world, Link& link, bool delivery_complete = false) {
  Bytes source = pattern(kMiB, 1);
  REQUIRE(link.post(source, 0, 1, delivery_complete).ok());
  for (int i = 0; i < 6; ++i) REQUIRE(world.turn());
  REQUIRE(link.memory[0] == source[0]);
  REQUIRE(link.memory.back() == std::byte{0});
  return source;
}

}  // namespace

TEST_CASE("sim fabric: an accepted write goes on landing after its region is closed") {
  FaultyWorld world({.land_after_region_close = true});
  Link link(&world, kMiB);
  CHECK_FALSE(link.capabilities().region_close_fences);
  const Bytes source = half_way(world, link);
  link.region.reset();
  world.run_out();
  CHECK(landed(link, source));
}

TEST_CASE("sim fabric: closing the region fences where that is established") {
  FaultyWorld world({.land_after_region_close = false});
  Link link(&world, kMiB);
  CHECK(link.capabilities().region_close_fences);
  (void)half_way(world, link, true);
  link.region.reset();
  const Bytes after = link.memory;
  world.run_out();
  link.poll();
  CHECK(link.memory == after);
  CHECK(link.failed() == 1);
}

TEST_CASE("sim fabric: nothing lands after the target's endpoint is closed") {
  FaultyWorld world({.endpoint_close_is_fence = true});
  Link link(&world, kMiB);
  (void)half_way(world, link, true);
  link.receiver.reset();
  const Bytes after = link.memory;
  world.run_out();
  link.poll();
  CHECK(link.memory == after);
  CHECK(link.failed() == 1);
}

TEST_CASE("sim fabric: without that fence the closed endpoint's write goes on landing") {
  FaultyWorld world({.endpoint_close_is_fence = false});
  Link link(&world, kMiB);
  CHECK_FALSE(link.capabilities().endpoint_close_fences);
  const Bytes source = half_way(world, link);
  link.receiver.reset();
  world.run_out();
  CHECK(landed(link, source));
}

TEST_CASE("sim fabric: a refused write reports a false OK, but not with delivery-complete") {
  FaultyWorld world({.false_ok = true});
  Link link(&world, kMiB);
  link.remote.key ^= 1;
  REQUIRE(link.post(pattern(64, 1), 0, 1, false).ok());
  REQUIRE(link.post(pattern(64, 1), 0, 2, true).ok());
  world.run_out();
  link.poll();
  REQUIRE(link.done.size() == 2);
  for (const Completion& completion : link.done) {
    CHECK(completion.status.ok() == (completion.context == 1));
  }
  CHECK(link.memory == Bytes(kMiB));
}

TEST_CASE("sim fabric: a write is complete before its bytes are there") {
  FaultyWorld world({});
  Link link(&world, kMiB);
  Bytes source = pattern(kMiB, 1);
  const Bytes sent = source;
  REQUIRE(link.post(source, 0, 1).ok());
  REQUIRE(link.until([&] { return link.completed(1); }));
  CHECK(link.memory.back() == std::byte{0});
  // From here on the source is the sender's again.
  std::fill(source.begin(), source.end(), std::byte{0xee});
  world.run_out();
  CHECK(landed(link, sent));
}

TEST_CASE("sim fabric: a partition is silent, and what it held lands when it heals") {
  FaultyWorld world({});
  Link link(&world, kMiB);
  const Bytes source = half_way(world, link, true);
  world.fabric.partition("decode", "prefill");
  const Bytes held = link.memory;
  REQUIRE(link.post(pattern(64, 2), 0, 2, true).ok());
  world.manual.advance(std::chrono::seconds(60));
  world.run_out();
  link.poll();
  CHECK(link.memory == held);
  CHECK(link.done.empty());
  CHECK(world.fabric.next_event() == kNever);
  world.fabric.heal("prefill", "decode");
  world.run_out();
  link.poll();
  CHECK(link.succeeded() == 2);
  CHECK(std::memcmp(link.memory.data() + 64, source.data() + 64, kMiB - 64) == 0);
}

TEST_CASE("sim fabric: an endpoint closed behind a partition stays a fence after healing") {
  FaultyWorld world({});
  Link link(&world, kMiB);
  (void)half_way(world, link);
  world.fabric.partition("decode", "prefill");
  link.receiver.reset();
  const Bytes after = link.memory;
  world.fabric.heal("decode", "prefill");
  world.run_out();
  CHECK(link.memory == after);
}

TEST_CASE("sim fabric: a killed peer never answers and its bytes stop") {
  const std::string victim = GENERATE(as<std::string>{}, "prefill", "decode");
  FaultyWorld world({});
  Link link(&world, kMiB);
  (void)half_way(world, link, true);
  world.fabric.kill(victim);
  world.fabric.heal("prefill", "decode");  // the dead do not come back
  const Bytes after = link.memory;
  world.manual.advance(std::chrono::seconds(60));
  world.run_out();
  link.poll();
  CHECK(link.memory == after);
  CHECK(link.done.empty());
  CHECK(link.seen.empty());
}

TEST_CASE("sim fabric: EAGAIN lasts for ever, until it is lifted") {
  FaultyWorld world({});
  Link link(&world, kMiB);
  world.fabric.endless_again("prefill", true);
  const Bytes source = pattern(64, 1);
  const LocalPiece local{source.data(), 64};
  const RemotePiece target = link.at(0, 64);
  const WriteRequest request{.local = {&local, 1}, .remote = {&target, 1}, .context = 1};
  for (int i = 0; i < 100; ++i) {
    world.manual.advance(std::chrono::seconds(1));
    CHECK(link.sender->write(link.peer, request).code() == StatusCode::kAgain);
  }
  world.fabric.endless_again("prefill", false);
  CHECK(link.sender->write(link.peer, request).ok());
}

TEST_CASE("sim fabric: a full queue says EAGAIN until something completes") {
  FaultyWorld world({.max_inflight_ops = 3});
  Link link(&world, kMiB);
  CHECK(link.capabilities().max_inflight_ops == 3);
  const Bytes source = pattern(64, 1);
  const LocalPiece local{source.data(), 64};
  const RemotePiece target = link.at(0, 64);
  const WriteRequest request{.local = {&local, 1}, .remote = {&target, 1}, .context = 1};
  for (int i = 0; i < 3; ++i) REQUIRE(link.sender->write(link.peer, request).ok());
  CHECK(link.sender->write(link.peer, request).code() == StatusCode::kAgain);
  world.run_out();
  CHECK(link.sender->write(link.peer, request).ok());
}

TEST_CASE("sim fabric: a dropped connection ends all its writes") {
  const bool false_ok = GENERATE(false, true);
  FaultyWorld world({.false_ok = false_ok});
  Link link(&world, 4 * kMiB);
  const Bytes source = pattern(kMiB, 1);
  for (std::size_t i = 0; i < 4; ++i) REQUIRE(link.post(source, i * kMiB, i + 1, i == 3).ok());
  REQUIRE(world.turn());
  world.fabric.drop_connections("decode");
  const Bytes after = link.memory;
  world.run_out();
  link.poll();
  CHECK(link.memory == after);
  REQUIRE(link.done.size() == 4);
  // The first one had been reported before. With false OKs only the delivery-complete one tells.
  CHECK(link.failed() == (false_ok ? 1 : 3));
  CHECK_FALSE(link.done.back().status.ok());
}

TEST_CASE(
    "sim fabric: an answer that is lost with the connection is an error though the bytes landed") {
  FaultyWorld world({});
  Link link(&world, 4096);
  const Bytes source = pattern(4096, 1);
  REQUIRE(link.post(source, 0, 1, true).ok());
  while (!landed(link, source)) REQUIRE(world.turn());
  world.fabric.drop_connections("prefill");
  world.run_out();
  link.poll();
  CHECK(link.failed() == 1);
}

TEST_CASE("sim fabric: a dropped connection reconnects by itself, or never again") {
  const bool reconnect = GENERATE(true, false);
  FaultyWorld world({.self_reconnect = reconnect});
  Link link(&world, 4096);
  REQUIRE(link.post(pattern(64, 1), 0, 1, true).ok());
  REQUIRE(link.until([&] { return link.completed(1); }));
  world.fabric.drop_connections("prefill");
  REQUIRE(link.post(pattern(64, 2), 0, 2, true).ok());
  REQUIRE(link.until([&] { return link.completed(2); }));
  CHECK(link.done.back().status.ok() == reconnect);
}

TEST_CASE("sim fabric: a drop between writes loses the first silently, and the next one lands") {
  // Why no link is resumed after a drop: the commit would land without its pages.
  FaultyWorld world({});
  Link link(&world, 2 * kMiB);
  const Bytes page = pattern(kMiB, 1), record = pattern(64, 2);
  REQUIRE(link.post(page, 0, 1).ok());
  REQUIRE(link.until([&] { return link.completed(1); }));
  world.fabric.drop_connections("decode");
  REQUIRE(link.post(record, kMiB, 2, true, 5).ok());
  REQUIRE(link.until([&] { return link.completed(2); }));
  CHECK(link.failed() == 0);
  CHECK(link.seen.size() == 1);
  CHECK(landed(link, record, kMiB));
  CHECK_FALSE(landed(link, page));
}

TEST_CASE("sim fabric: without order a later write overtakes an earlier one") {
  FaultyWorld world({.ordered = false});
  Link link(&world, 64 * 64);
  CHECK_FALSE(link.capabilities().write_after_write);
  const Bytes source = pattern(64, 1);
  for (std::size_t i = 0; i < 64; ++i) REQUIRE(link.post(source, i * 64, i + 1).ok());
  REQUIRE(link.until([&] { return link.done.size() == 64; }));
  world.run_out();
  std::vector<std::uint64_t> order;
  for (const Completion& completion : link.done) order.push_back(completion.context);
  CHECK_FALSE(std::is_sorted(order.begin(), order.end()));
  for (std::size_t i = 0; i < 64; ++i) CHECK(landed(link, source, i * 64));
}

TEST_CASE("sim fabric: a provider without remote data refuses it") {
  FaultyWorld world({.remote_cq_data = false});
  Link link(&world, 4096);
  CHECK_FALSE(link.capabilities().remote_cq_data);
  CHECK(link.post(pattern(64, 1), 0, 1, true, 9).code() == StatusCode::kInvalidArgument);
}

TEST_CASE("sim fabric: the same seed gives the same interleaving, another seed another") {
  const auto order = [](std::uint64_t seed) {
    FaultyWorld world({.ordered = false}, seed);
    Link link(&world, 64 * 64);
    for (std::size_t i = 0; i < 64; ++i) REQUIRE(link.post(pattern(64, 1), i * 64, i + 1).ok());
    world.run_out();
    link.poll();
    std::string out;
    while (link.done.size() < 64) link.poll();
    for (const Completion& completion : link.done) out += std::to_string(completion.context) + " ";
    return out;
  };
  CHECK(order(1) == order(1));
  CHECK(order(1) != order(2));
}

TEST_CASE("sim fabric: what a closing sender was told is done still lands, the rest does not") {
  FaultyWorld world({});
  Link link(&world, 2 * kMiB);
  const Bytes first = pattern(kMiB, 1), second = pattern(kMiB, 2);
  REQUIRE(link.post(first, 0, 1).ok());
  REQUIRE(link.post(second, kMiB, 2).ok());
  REQUIRE(link.until([&] { return link.completed(1); }));
  link.sender.reset();
  world.run_out();
  CHECK(landed(link, first));
  CHECK(std::all_of(link.memory.begin() + kMiB, link.memory.end(),
                    [](std::byte b) { return b == std::byte{0}; }));
}

// One MiB of which the first pieces are copied, by a target that then sleeps.
Bytes half_copied(FaultyWorld& world, Link& link) {
  Bytes source = pattern(kMiB, 1);
  REQUIRE(link.post(source, 0, 1, true, 5).ok());
  REQUIRE(link.until([&] { return link.memory[kMiB / 2] != std::byte{0}; }));
  REQUIRE(link.memory.back() == std::byte{0});
  while (world.turn()) {
  }
  return source;
}

constexpr SimFaults kPull{
    .land_after_region_close = false, .self_reconnect = false, .target_pulls = true};

TEST_CASE("sim fabric: a target that pulls copies only while it polls") {
  FaultyWorld world(kPull);
  Link link(&world, kMiB);
  const Bytes source = half_copied(world, link);
  const Bytes before = link.memory;
  world.run_out();
  CHECK(link.memory == before);
  CHECK(link.done.empty());
  REQUIRE(link.until([&] { return link.completed(1); }));
  CHECK(landed(link, source));
  CHECK(link.seen.back().data == 5);
}

TEST_CASE("sim fabric: a copy whose sender gave up is void, without the check it is not") {
  const bool checked = GENERATE(true, false);
  int voids = 0, signals = 0;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    SimFaults faults = kPull;
    faults.epoch_is_checked = checked;
    FaultyWorld world(faults, seed);
    Link link(&world, kMiB);
    Bytes source = pattern(kMiB, 1);
    const LocalPiece from{source.data(), kMiB};
    const RemotePiece to = link.at(0, kMiB);
    REQUIRE(link.sender
                ->write(link.peer,
                        {.local = {&from, 1}, .remote = {&to, 1}, .context = 1, .remote_data = 5})
                .ok());
    std::array<Completion, 4> batch;
    while (link.memory[kMiB / 2] == std::byte{0}) {
      REQUIRE(world.turn());
      REQUIRE(link.receiver->poll(batch) == 0);
    }
    link.sender.reset();
    std::fill(source.begin(), source.end(), std::byte{0xee});  // the pages are in other hands
    std::size_t count = 0;
    while (count == 0) {
      (void)world.turn();
      count = link.receiver->poll(batch);
    }
    REQUIRE(count == 1);
    signals += batch[0].kind == CompletionKind::kRemoteData ? 1 : 0;
    voids += world.fabric.counts().void_copies > 0 ? 1 : 0;
  }
  // Otherwise the end was seen before the copy went on.
  CHECK(voids > 0);
  CHECK(signals == (checked ? 0 : voids));
}

TEST_CASE("sim fabric: where the target pulls, the end of one side is known to the other") {
  const bool sender_dies = GENERATE(true, false);
  FaultyWorld world(kPull);
  Link link(&world, kMiB);
  (void)half_copied(world, link);
  world.fabric.kill(sender_dies ? "prefill" : "decode");
  link.poll();
  if (sender_dies) {
    REQUIRE(link.seen.size() == 1);
    CHECK(link.seen[0].kind == CompletionKind::kFault);
  } else {
    REQUIRE(link.done.size() == 1);
    CHECK_FALSE(link.done[0].status.ok());
  }
  CHECK(link.memory.back() == std::byte{0});
}

}  // namespace kvd::fabric::contract
