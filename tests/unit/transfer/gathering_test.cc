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
  const std::string tried =
      std::string(kRooms, '-') + std::string(2 * kRooms, '+') + std::string(kRooms, '-');
  // It begins without, and changes when it is sure.
  const std::string thrice = tried + tried + tried;
  const std::string kept(GatheringTrial::kKept, pays ? '+' : '-');
  const std::string begins = (pays ? thrice : tried) + kept;
  rooms.run(begins.size());
  CHECK(rooms.seen == begins);
  // It is tried again, and what was measured before does not count.
  rooms.seen.clear();
  std::swap(rooms.with, rooms.without);
  rooms.run(thrice.size() + 1);
  CHECK(rooms.seen == thrice + (pays ? '-' : '+'));
}

TEST_CASE("gathering: trials that do not agree change nothing") {
  const bool pays = GENERATE(false, true);
  const Duration less(1'000'000), more(1'010'000);
  Rooms rooms(pays ? more : less, pays ? less : more);
  constexpr std::uint32_t kTrial = 4 * GatheringTrial::kRooms;
  if (pays) rooms.run(3 * kTrial + GatheringTrial::kKept);
  // Two say otherwise, the third says the same as before.
  std::swap(rooms.with, rooms.without);
  rooms.run(2 * kTrial);
  std::swap(rooms.with, rooms.without);
  rooms.run(kTrial);
  CHECK(rooms.trial.gathers() == pays);
  rooms.seen.clear();
  rooms.run(GatheringTrial::kKept);
  CHECK(rooms.seen == std::string(GatheringTrial::kKept, pays ? '+' : '-'));
}

TEST_CASE("gathering: of rooms of many bytes some less are tried, but two") {
  Rooms rooms(Duration(1'010'000), Duration(1'000'000));
  const bool huge = GENERATE(false, true);
  rooms.bytes = huge ? GatheringTrial::kBytes : GatheringTrial::kBytes / 3 + 1;
  const std::uint32_t each = huge ? 2 : 3, kept = huge ? 60 : 180;
  const std::string tried =
      std::string(each, '-') + std::string(2 * each, '+') + std::string(each, '-');
  const std::string want = tried + tried + tried + std::string(kept, '+') + std::string(each, '-');
  rooms.run(want.size());
  CHECK(rooms.seen == want);
}

TEST_CASE("gathering: what drifts meanwhile weighs on rooms with and without it alike") {
  const bool pays = GENERATE(false, true);
  const int part = GENERATE(-400, 400);  // of its time, by which a room differs from the last
  Rooms rooms(Duration(pays ? 1'010'000 : 1'000'000), Duration(pays ? 1'000'000 : 1'010'000));
  const std::uint32_t trials = pays ? GatheringTrial::kSure : 1;
  for (std::uint32_t i = 0; i < trials * 4 * GatheringTrial::kRooms; ++i) {
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

// Decode has a link to one prefill, and pages of 512 KiB.
struct LargeRooms {
  explicit LargeRooms(WorldOptions given)
      : options(with_pages(std::move(given))), world(1, options) {
    REQUIRE(world.run_until([&] { return world.links_ready(); }));
  }
  static WorldOptions with_pages(WorldOptions options) {
    options.layout = wide_layout();
    return options;
  }
  std::uint64_t open(std::uint32_t tokens = 225) {
    return decode.request(prefill.address, tokens, kMinute);
  }
  void end(std::uint64_t id) {
    REQUIRE(world.run_until([&] { return decode.requests[id].timed; }));
  }
  void run(std::uint32_t count) {
    for (std::uint32_t room = 0; room < count; ++room) end(open());
  }
  // Of the next poll.
  std::int64_t looks() {
    const TimePoint before = world.clock.now();
    decode.receiver->poll();
    return (world.clock.now() - before) / options.fabric.look_time;
  }

  const WorldOptions options;
  World world;
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
};

TEST_CASE("gathering: bytes gather after a long look, where writes are long and rooms large") {
  WorldOptions options;  // streamed, writes are shorter
  options.fabric.look_time = GENERATE(Duration(2'999), Gathering::kLongLook);
  options.fabric.target_pulls = GENERATE(false, true);
  options.transfer.stream = GENERATE(false, true);
  const std::uint32_t tokens = GENERATE(224, 225);  // 7 or 8 pages
  CAPTURE(options.fabric.look_time.count(), options.fabric.target_pulls, options.transfer.stream,
          tokens);
  LargeRooms rooms(options);
  const int looks = options.fabric.target_pulls ? 1 : 4;  // of a side that is being written to
  // Nothing is known of the first, and it is tried after as many large rooms without it.
  for (std::uint32_t room = 0; room <= GatheringTrial::kRooms; ++room) {
    const std::uint64_t large = rooms.open();
    CHECK(rooms.looks() == looks);
    rooms.end(large);
  }
  // A small room's short write says nothing of a large one's.
  rooms.end(rooms.open(32));

  const std::uint64_t id = rooms.open(tokens);
  const TimePoint before = rooms.world.clock.now();
  if (options.fabric.look_time == Gathering::kLongLook && !options.fabric.target_pulls &&
      !options.transfer.stream && tokens == 225) {
    // A sleeper is told to come again later than one that is awake may.
    CHECK(rooms.looks() == 1);
    CHECK(rooms.decode.receiver->next_deadline() == before + Gathering::kAsleep);
    rooms.world.clock.advance(Gathering::kAwake - options.fabric.look_time - Duration(1));
    CHECK(rooms.looks() == 0);
    rooms.world.clock.advance(Duration(1));
    CHECK(rooms.looks() == 1);
  } else {
    CHECK(rooms.looks() == looks);
    CHECK(rooms.decode.receiver->next_deadline() != before + Gathering::kAsleep);
  }
  CHECK(wait_for(&rooms.world, &rooms.decode, id).outcome == Outcome::kCommitted);
  settle(&rooms.world);
}

TEST_CASE("gathering: for shorter writes bytes gather only while decode polls") {
  WorldOptions options;
  options.fabric.look_time = Gathering::kLongLook;
  const bool answers = GENERATE(false, true);
  if (answers) options.fabric.best_write_bytes = 768u << 10;          // as under bbr between hosts
  options.fabric.max_write_bytes = GENERATE(256u << 10, 512u << 10);  // either side of kLongAwake
  options.transfer.stream = false;
  CAPTURE(options.fabric.max_write_bytes, answers);
  LargeRooms rooms(options);
  rooms.run(1 + GatheringTrial::kRooms);
  const std::uint64_t id = rooms.open();
  const TimePoint before = rooms.world.clock.now();
  if (answers || options.fabric.max_write_bytes < Gathering::kLongAwake) {
    CHECK(rooms.looks() == 4);
  } else {
    CHECK(rooms.looks() == 1);
    CHECK(rooms.decode.receiver->next_deadline() > before + 2 * Gathering::kAsleep);
    CHECK(rooms.looks() == 0);
    SECTION("it goes on") {
      rooms.world.clock.advance(Gathering::kAwake - options.fabric.look_time - Duration(1));
      CHECK(rooms.looks() == 0);
      rooms.world.clock.advance(Duration(1));
    }
    SECTION("it goes to sleep, and is woken") { CHECK(rooms.decode.receiver->may_wait()); }
    CHECK(rooms.looks() == 1);
  }
  CHECK(wait_for(&rooms.world, &rooms.decode, id).outcome == Outcome::kCommitted);
  settle(&rooms.world);
}

TEST_CASE("gathering: a link goes on with its trial, a new one begins anew") {
  WorldOptions options;
  options.fabric.look_time = Gathering::kLongLook;
  options.transfer.stream = false;
  LargeRooms rooms(options);
  const auto looks = [&] {
    const std::uint64_t id = rooms.open();
    const auto count = rooms.looks();
    rooms.end(id);
    return count;
  };
  rooms.run(1 + GatheringTrial::kRooms);
  CHECK(looks() == 1);
  SECTION("it goes on") {
    rooms.run(2 * GatheringTrial::kRooms - 2);
    CHECK(looks() == 1);
  }
  SECTION("anew") {
    rooms.prefill.kill();
    REQUIRE(rooms.world.run_until([&] { return !rooms.world.links_ready(); }));
    rooms.prefill.start();
    REQUIRE(rooms.world.run_until([&] { return rooms.world.links_ready(); }));
    rooms.run(2);
  }
  CHECK(looks() == 4);
  settle(&rooms.world);
}

}  // namespace
}  // namespace kvd::sim
