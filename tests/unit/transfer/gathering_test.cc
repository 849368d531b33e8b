// When decode lets bytes gather before it looks again, on a simulated fabric whose looks take time.
#include "transfer/gathering.h"

#include "world_checks.h"

namespace kvd::sim {
namespace {

using transfer::Gathering;

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
  const std::uint64_t first = decode.request(prefill.address, 225, kMinute);
  REQUIRE(world.run_until([&] { return decode.requests[first].timed; }));
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

}  // namespace
}  // namespace kvd::sim
