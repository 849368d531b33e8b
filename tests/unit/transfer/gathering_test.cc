// When decode lets bytes gather before it looks again, on a simulated fabric whose looks take time.
#include "transfer/gathering.h"

#include "world_checks.h"

namespace kvd::sim {
namespace {

using transfer::Gathering;
using transfer::GatheringTrial;

// Rooms of a link that each take `with` or `without` of the sender's time.
struct Rooms {
  Rooms(Duration without_it, Duration with_it) : without(without_it), with(with_it) {}

  GatheringTrial trial;
  Duration without, with;
  std::uint64_t bytes = 8u << 20;
  std::string seen;

  void run(std::uint32_t count) {
    for (std::uint32_t i = 0; i < count; ++i) {
      seen += trial.gathers() ? '+' : '-';
      trial.moved(trial.part(), bytes, trial.gathers() ? with : without);
    }
  }
};

TEST_CASE("gathering: a link keeps what moved a room's bytes in less time") {
  const bool pays = GENERATE(false, true);
  Rooms rooms(Duration(pays ? 1'010'000 : 1'000'000), Duration(pays ? 1'000'000 : 1'010'000));
  constexpr std::uint32_t kRooms = GatheringTrial::kRooms;
  rooms.run(4 * kRooms);
  const std::string tried =
      std::string(kRooms, '-') + std::string(2 * kRooms, '+') + std::string(kRooms, '-');
  CHECK(rooms.seen == tried);
  rooms.seen.clear();
  rooms.run(GatheringTrial::kKept);
  CHECK(rooms.seen == std::string(GatheringTrial::kKept, pays ? '+' : '-'));
  // It is tried again, and what was measured before does not count.
  rooms.seen.clear();
  std::swap(rooms.with, rooms.without);
  rooms.run(4 * kRooms + 1);
  CHECK(rooms.seen == tried + (pays ? '-' : '+'));
}

TEST_CASE("gathering: of rooms of many bytes some less are tried, but two") {
  Rooms rooms(Duration(1'010'000), Duration(1'000'000));
  const bool huge = GENERATE(false, true);
  rooms.bytes = huge ? GatheringTrial::kBytes : GatheringTrial::kBytes / 3 + 1;
  const std::uint32_t each = huge ? 2 : 3, kept = huge ? 60 : 180;
  rooms.run(4 * each + kept + each);
  CHECK(rooms.seen == std::string(each, '-') + std::string(2 * each, '+') + std::string(each, '-') +
                          std::string(kept, '+') + std::string(each, '-'));
}

TEST_CASE("gathering: what drifts meanwhile weighs on rooms with and without it alike") {
  const bool pays = GENERATE(false, true);
  const int part = GENERATE(-400, 400);  // of its time, by which a room differs from the last
  Rooms rooms(Duration(pays ? 1'010'000 : 1'000'000), Duration(pays ? 1'000'000 : 1'010'000));
  for (std::uint32_t i = 0; i < 4 * GatheringTrial::kRooms; ++i) {
    rooms.run(1);
    rooms.with += rooms.with / part;
    rooms.without += rooms.without / part;
  }
  CHECK(rooms.trial.gathers() == pays);
}

TEST_CASE("gathering: a room counts for the part of the trial that it began in") {
  GatheringTrial trial;
  for (std::uint32_t part = 0; part < 4; ++part) {
    REQUIRE(trial.part() == part);
    const bool with = trial.gathers();
    for (std::uint32_t room = 0; room < GatheringTrial::kRooms; ++room) {
      trial.moved(part, 8u << 20, Duration(with ? 1'100'000 : 1'000'000));
    }
    // Others that began with these would turn the verdict.
    for (int late = 0; late < 50; ++late) {
      trial.moved(part, 8u << 20, Duration(with ? 10 : 1'000'000'000));
    }
  }
  CHECK_FALSE(trial.gathers());
}

TEST_CASE("gathering: bytes gather after a long look, where writes are long and rooms large") {
  WorldOptions options;
  options.layout = wide_layout();  // pages of 512 KiB; streamed, writes are shorter
  options.fabric.look_time = GENERATE(Duration(2'999), Gathering::kLongLook);
  options.fabric.target_pulls = GENERATE(false, true);
  options.transfer.stream = GENERATE(false, true);
  const std::uint32_t tokens = GENERATE(224, 225);  // 7 or 8 pages
  CAPTURE(options.fabric.look_time.count(), options.fabric.target_pulls, options.transfer.stream,
          tokens);
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const std::uint64_t first = decode.request(prefill.address, 225, kMinute);
  const auto one_look = [&] {
    const TimePoint before = world.clock.now();
    decode.receiver->poll();
    return world.clock.now() == before + options.fabric.look_time;
  };
  const int looks = options.fabric.target_pulls ? 1 : 4;  // of a side that is being written to
  TimePoint before = world.clock.now();
  decode.receiver->poll();
  CHECK(world.clock.now() == before + looks * options.fabric.look_time);  // nothing is known yet
  CHECK(world.run_until([&] { return decode.requests[first].timed; }));
  // It is tried after as many large rooms without it.
  for (std::uint32_t room = 0; room < GatheringTrial::kRooms; ++room) {
    const std::uint64_t large = decode.request(prefill.address, 225, kMinute);
    before = world.clock.now();
    decode.receiver->poll();
    CHECK(world.clock.now() == before + looks * options.fabric.look_time);
    REQUIRE(world.run_until([&] { return decode.requests[large].timed; }));
  }
  // A small room's short write says nothing of a large one's.
  const std::uint64_t small = decode.request(prefill.address, 32, kMinute);
  CHECK(world.run_until([&] { return decode.requests[small].timed; }));

  const std::uint64_t id = decode.request(prefill.address, tokens, kMinute);
  before = world.clock.now();
  if (options.fabric.look_time == Gathering::kLongLook && !options.fabric.target_pulls &&
      !options.transfer.stream && tokens == 225) {
    // A sleeper is told to come again later than one that is awake may.
    CHECK(one_look());
    CHECK(decode.receiver->next_deadline() == before + Gathering::kAsleep);
    world.clock.advance(Gathering::kAwake - options.fabric.look_time - Duration(1));
    const TimePoint early = world.clock.now();
    decode.receiver->poll();
    CHECK(world.clock.now() == early);
    world.clock.advance(Duration(1));
    CHECK(one_look());
  } else {
    decode.receiver->poll();
    CHECK(world.clock.now() == before + looks * options.fabric.look_time);
    CHECK(decode.receiver->next_deadline() != before + Gathering::kAsleep);
  }
  CHECK(wait_for(&world, &decode, id).outcome == Outcome::kCommitted);
  settle(&world);
}

TEST_CASE("gathering: for shorter writes bytes gather only while decode polls") {
  WorldOptions options;
  options.layout = wide_layout();  // pages of 512 KiB
  options.fabric.look_time = Gathering::kLongLook;
  const bool answers = GENERATE(false, true);
  if (answers) options.fabric.best_write_bytes = 512u << 10;          // as under bbr between hosts
  options.fabric.max_write_bytes = GENERATE(256u << 10, 512u << 10);  // either side of kLongAwake
  options.transfer.stream = false;
  CAPTURE(options.fabric.max_write_bytes, answers);
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  for (std::uint32_t room = 0; room <= GatheringTrial::kRooms; ++room) {
    const std::uint64_t large = decode.request(prefill.address, 225, kMinute);
    REQUIRE(world.run_until([&] { return decode.requests[large].timed; }));
  }
  const std::uint64_t id = decode.request(prefill.address, 225, kMinute);
  const auto looks = [&] {
    const TimePoint before = world.clock.now();
    decode.receiver->poll();
    return (world.clock.now() - before) / options.fabric.look_time;
  };
  const TimePoint before = world.clock.now();
  if (answers || options.fabric.max_write_bytes < Gathering::kLongAwake) {
    CHECK(looks() == 4);
  } else {
    CHECK(looks() == 1);
    CHECK(decode.receiver->next_deadline() > before + 2 * Gathering::kAsleep);
    CHECK(looks() == 0);
    SECTION("it goes on") {
      world.clock.advance(Gathering::kAwake - options.fabric.look_time - Duration(1));
      CHECK(looks() == 0);
      world.clock.advance(Duration(1));
    }
    SECTION("it goes to sleep, and is woken") { CHECK(decode.receiver->may_wait()); }
    CHECK(looks() == 1);
  }
  CHECK(wait_for(&world, &decode, id).outcome == Outcome::kCommitted);
  settle(&world);
}

TEST_CASE("gathering: a link goes on with its trial, a new one begins anew") {
  WorldOptions options;
  options.layout = wide_layout();  // pages of 512 KiB
  options.fabric.look_time = Gathering::kLongLook;
  options.transfer.stream = false;
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const auto rooms = [&](std::uint32_t count) {
    for (std::uint32_t room = 0; room < count; ++room) {
      const std::uint64_t large = decode.request(prefill.address, 225, kMinute);
      REQUIRE(world.run_until([&] { return decode.requests[large].timed; }));
    }
  };
  const auto looks = [&] {
    const std::uint64_t id = decode.request(prefill.address, 225, kMinute);
    const TimePoint before = world.clock.now();
    decode.receiver->poll();
    const auto count = (world.clock.now() - before) / options.fabric.look_time;
    REQUIRE(world.run_until([&] { return decode.requests[id].timed; }));
    return count;
  };
  rooms(1 + GatheringTrial::kRooms);
  CHECK(looks() == 1);
  SECTION("it goes on") {
    rooms(2 * GatheringTrial::kRooms - 2);
    CHECK(looks() == 1);
  }
  SECTION("anew") {
    prefill.kill();
    REQUIRE(world.run_until([&] { return !world.links_ready(); }));
    prefill.start();
    REQUIRE(world.run_until([&] { return world.links_ready(); }));
    rooms(2);
  }
  CHECK(looks() == 4);
  settle(&world);
}

}  // namespace
}  // namespace kvd::sim
