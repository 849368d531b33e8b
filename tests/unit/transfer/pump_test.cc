// How long prefill stays with a link before its loop does anything else, on a simulated fabric
// whose polls take time.
#include "world_checks.h"

namespace kvd::sim {
namespace {

TEST_CASE("pump: a link is polled on while that takes time and bytes are on their way") {
  WorldOptions options;
  options.fabric.look_time = GENERATE(Duration(4'999), Duration(5'000), Duration(100'000));
  options.fabric.target_pulls = GENERATE(false, true);
  options.fabric.latency = Duration(10'000'000);  // nothing completes while the test looks
  const std::int64_t links = GENERATE(1, 2);
  CAPTURE(options.fabric.look_time.count(), options.fabric.target_pulls, links);
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  std::vector<Decode*> decodes;
  for (std::int64_t i = 0; i < links; ++i) decodes.push_back(&world.add_decode());
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const auto polls = [&] {
    const TimePoint before = world.clock.now();
    prefill.sender->poll();
    return (world.clock.now() - before) / options.fabric.look_time;
  };
  // The writes that tried the links out.
  REQUIRE(world.run_until([&] { return world.fabric.in_flight(prefill.host) == 0; }));
  prefill.sender->poll();
  CHECK(polls() == links);  // nothing to send

  std::vector<std::uint64_t> rooms;
  for (Decode* decode : decodes) {
    rooms.push_back(decode->request(prefill.address, 64, kMinute));
    const std::size_t before = world.fabric.in_flight(prefill.host);
    REQUIRE(world.run_until([&] { return world.fabric.in_flight(prefill.host) > before; }));
  }
  // 500 us, which the links share.
  const bool stays = options.fabric.look_time >= Duration(5'000) && !options.fabric.target_pulls;
  const auto share = Duration(500'000) / links;
  const std::int64_t each =
      (share + options.fabric.look_time - Duration(1)) / options.fabric.look_time;
  CHECK(polls() == links * (stays ? each : 1));
  for (std::size_t i = 0; i < decodes.size(); ++i) {
    CHECK(wait_for(&world, decodes[i], rooms[i]).outcome == Outcome::kCommitted);
  }
  settle(&world);
}

}  // namespace
}  // namespace kvd::sim
