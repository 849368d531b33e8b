// What prefill tells of a room that ended: with which message, and when.
#include <algorithm>
#include <functional>
#include <set>
#include <vector>

#include "proto/room_messages.h"
#include "world_checks.h"

namespace kvd::sim {
namespace {

// From the moment that prefill's first room was over until decode had its RoomDone; `more` is done
// at that moment.
Duration until_timed(World* world, Prefill* prefill, Decode* decode,
                     const std::function<void()>& more) {
  REQUIRE(world->run_until([&] { return world->links_ready(); }));
  const std::uint64_t id = decode->request(prefill->address, 30, kMinute);
  REQUIRE(world->run_until([&] { return !prefill->outcomes.empty(); }));
  const TimePoint over = world->clock.now();
  more();
  REQUIRE(world->run_until([&] { return decode->requests[id].timed; }));
  return world->clock.now() - over;
}

TEST_CASE("timings: what RoomDone says goes with the next message, or half a millisecond later") {
  World world(1, {});
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  const Duration way = world.options.channel.latency;
  SECTION("nothing follows") {
    const Duration waited = until_timed(&world, &prefill, &decode, [] {});
    CHECK(waited >= Duration(500'000));
    CHECK(waited < Duration(500'000) + 2 * way);
  }
  SECTION("a room is opened") {
    const Duration waited = until_timed(
        &world, &prefill, &decode, [&] { (void)decode.request(prefill.address, 30, kMinute); });
    CHECK(waited >= 2 * way);
    CHECK(waited < 4 * way);
  }
  SECTION("prefill drains, and ends with its last room") {
    REQUIRE(world.run_until([&] { return world.links_ready(); }));
    const bool before = GENERATE(true, false);
    const auto drain = [&] { prefill.sender->drain(); };
    if (before) world.at(world.clock.now() + 2 * way, drain);
    const Duration waited = until_timed(&world, &prefill, &decode, [&] {
      CHECK(prefill.sender->idle());
      if (!before) drain();
    });
    CHECK(waited < 2 * way);
  }
  settle(&world);
}

TEST_CASE("timings: the next RoomOpened tells of the rooms that ended before") {
  WorldOptions options;
  options.chunk_time = Duration(1'000);
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  std::vector<std::uint64_t> ids;
  for (const std::uint32_t tokens : {30, 90, 150}) {
    ids.push_back(decode.request(prefill.address, tokens, kMinute));
  }
  REQUIRE(world.run_until([&] { return prefill.outcomes.size() == ids.size(); }));
  (void)decode.request(prefill.address, 30, kMinute);
  decode.stopped = true;
  world.run(3 * options.channel.latency);
  std::vector<control::Received> came;
  while (auto message = decode.messenger->receive()) came.push_back(std::move(*message));
  // One message, where each would wake threads on both sides.
  REQUIRE(came.size() == 1);
  REQUIRE(came[0].envelope.type == proto::MessageType::kRoomOpened);
  decode.stopped = false;
  decode.receiver->on_message(came[0]);
  CHECK(world.run_until([&] { return decode.requests[ids.back()].timed; }));
  std::set<Duration> totals;
  for (const std::uint64_t id : ids) {
    const Request& request = decode.requests[id];
    REQUIRE(request.timed);
    const auto& outcome = prefill.outcomes.at(request.committed.room);
    CHECK(request.timings.transfer_total == outcome.transfer_total);
    CHECK(request.timings.transfer_exposed == outcome.transfer_exposed);
    totals.insert(outcome.transfer_total);
  }
  CHECK(totals.size() == ids.size());  // each got its own
  settle(&world);
}

// Types of the messages that decode has got and not taken.
std::vector<proto::MessageType> waiting(Decode* decode, std::vector<control::Received>* all) {
  std::vector<proto::MessageType> types;
  while (auto message = decode->messenger->receive()) all->push_back(std::move(*message));
  for (const control::Received& message : *all) types.push_back(message.envelope.type);
  return types;
}

TEST_CASE("timings: RoomOpened waits for other messages where rooms follow each other") {
  using enum proto::MessageType;
  WorldOptions options;
  options.transfer.heartbeat = Duration(60'000'000);
  const bool slow = GENERATE(false, true);
  options.chunk_time = Duration(slow ? 30'000'000 : 1'000);
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  const Duration way = options.channel.latency;
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  std::vector<std::uint64_t> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(decode.request(prefill.address, 30, kMinute));
  world.run(way + Duration(1'000));  // prefill has them
  decode.stopped = true;
  std::vector<control::Received> came;
  if (slow) {
    // The first one alone is answered at once.
    world.run(Duration(9'000'000));
    CHECK(waiting(&decode, &came) == std::vector{kRoomOpened});
    SECTION("they go after a while") {
      world.run(Duration(1'000'000) + way);
      CHECK(waiting(&decode, &came) == std::vector{kRoomOpened, kRoomOpened, kRoomOpened});
    }
    SECTION("or when prefill drains") {
      prefill.sender->drain();
      world.run(2 * way);
      CHECK(waiting(&decode, &came) == std::vector{kRoomOpened, kRoomOpened, kRoomOpened});
    }
  } else {
    // The others are told of by their records.
    world.run(Duration(11'000'000));
    CHECK(prefill.sender->idle());
    CHECK(waiting(&decode, &came) == std::vector{kRoomOpened, kRoomDone, kRoomDone, kRoomDone});
  }
  decode.stopped = false;
  for (const control::Received& message : came) decode.receiver->on_message(message);
  for (const std::uint64_t id : ids) {
    CHECK(wait_for(&world, &decode, id).outcome == Outcome::kCommitted);
    CHECK(world.run_until([&] { return decode.requests[id].timed; }, kMinute));
  }
  CHECK(world.links_ready());
  settle(&world);
}

TEST_CASE("timings: no RoomOpened of a room that was committed, not even beside its own end") {
  WorldOptions options;
  options.prefill_pages = options.decode_pages = 300;
  options.slots = 64;
  options.chunk_time = Duration(100'000);
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  // While the first is open the others wait; the 32nd to end is one of the second twenty.
  std::vector<std::uint64_t> ids = {decode.request(prefill.address, 3000, kMinute)};
  decode.stopped = true;
  for (const std::size_t count : {20, 40}) {
    while (ids.size() <= count) ids.push_back(decode.request(prefill.address, 30, kMinute));
    REQUIRE(world.run_until([&] { return prefill.outcomes.size() == count; }));
  }
  std::vector<control::Received> came;
  (void)waiting(&decode, &came);
  std::set<std::uint64_t> ended;
  for (const control::Received& message : came) {
    const std::uint64_t room = message.envelope.room.value;
    if (message.envelope.type == proto::MessageType::kRoomDone) ended.insert(room);
    if (message.envelope.type != proto::MessageType::kRoomOpened) continue;
    const auto opened = proto::decode_body<proto::RoomOpened>(message.envelope);
    REQUIRE(opened.ok());
    for (const auto& [id, done] : opened->done) ended.insert(id);
    CHECK_FALSE(ended.contains(room));
  }
  CHECK(ended.size() == proto::RoomOpened::kMaxDone);
  decode.stopped = false;
  for (const control::Received& message : came) decode.receiver->on_message(message);
  for (const std::uint64_t id : ids) {
    CHECK(wait_for(&world, &decode, id).outcome == Outcome::kCommitted);
  }
  CHECK(world.links_ready());
  settle(&world);
}

TEST_CASE("timings: RoomOpened of an aborted room may come when its record has proved the drain") {
  WorldOptions options;
  options.prefill_pages = options.decode_pages = 700;
  options.chunk_time = Duration(100'000);
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const std::uint64_t longest = decode.request(prefill.address, 12'000, kMinute);
  const std::uint64_t shortest = decode.request(prefill.address, 30, kMinute);
  const std::uint64_t aborted = decode.request(prefill.address, 9'000, kMinute);
  decode.abort(aborted);
  decode.stopped = true;
  REQUIRE(world.run_until([&] { return prefill.outcomes.size() == 2; }));
  // It tells of the short room's end, so decode looks for records, and finds both.
  std::vector<control::Received> came;
  const auto types = waiting(&decode, &came);
  REQUIRE(std::count(types.begin(), types.end(), proto::MessageType::kRoomOpened) == 2);
  for (const control::Received& message : came) decode.receiver->on_message(message);
  decode.stopped = false;
  CHECK(wait_for(&world, &decode, shortest).outcome == Outcome::kCommitted);
  CHECK(wait_for(&world, &decode, longest).outcome == Outcome::kCommitted);
  CHECK(world.links_ready());
  settle(&world);
}

TEST_CASE("timings: rooms that follow each other for long get all of theirs") {
  WorldOptions options;
  options.chunk_time = Duration(1'000);
  options.transfer.heartbeat = Duration(1'700'000);  // falls into every part of a room
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  std::vector<std::uint64_t> ids;
  for (int i = 0; i < 3; ++i) ids.push_back(decode.request(prefill.address, 30, kMinute));
  for (std::size_t next = 0; next < 300; ++next) {
    REQUIRE(wait_for(&world, &decode, ids[next]).outcome == Outcome::kCommitted);
    ids.push_back(decode.request(prefill.address, 30, kMinute));
  }
  for (const std::uint64_t id : ids) {
    CHECK(world.run_until([&] { return decode.requests[id].timed; }, kMinute));
  }
  CHECK(world.links_ready());
  settle(&world);
}

TEST_CASE("timings: more ended rooms than one RoomOpened tells of do not wait for one") {
  constexpr std::size_t kMost = proto::RoomOpened::kMaxDone, kRooms = kMost + 6;
  WorldOptions options;
  options.prefill_pages = options.decode_pages = options.slots = kRooms;
  options.chunk_time = Duration(1'000);
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  for (std::size_t i = 0; i < kRooms; ++i) (void)decode.request(prefill.address, 3, kMinute);
  REQUIRE(world.run_until([&] { return prefill.outcomes.size() == kRooms; }));
  world.run(2 * options.channel.latency);
  std::size_t timed = 0;
  for (const auto& [id, request] : decode.requests) timed += request.timed ? 1 : 0;
  CHECK(timed == kMost);
  settle(&world);
}

TEST_CASE("timings: RoomDone goes with a heartbeat, too") {
  WorldOptions options;
  options.transfer.heartbeat = Duration(100'000);
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  const Duration waited = until_timed(&world, &prefill, &decode, [] {});
  CHECK(waited < options.transfer.heartbeat + 2 * options.channel.latency);
  settle(&world);
}

TEST_CASE("timings: a RoomDone that waits when its link ends is of no later link") {
  World world(1, {});
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const std::uint64_t first = decode.request(prefill.address, 30, kMinute);
  REQUIRE(world.run_until([&] { return !prefill.outcomes.empty(); }));
  REQUIRE(decode.requests[first].outcome == Outcome::kCommitted);
  // A new Register of the same run ends the link while its RoomDone waits.
  decode.receiver->remove_prefill(prefill.address);
  REQUIRE(world.run_until([&] { return decode.receiver->prefills().empty(); }));
  decode.receiver->add_prefill(prefill.address);
  REQUIRE(world.run_until([&] { return world.links_ready(); }, kMinute));
  const std::uint64_t third = decode.request(prefill.address, 30, kMinute);
  CHECK(wait_for(&world, &decode, third).outcome == Outcome::kCommitted);
  CHECK(world.run_until([&] { return decode.requests[third].timed; }));
  CHECK_FALSE(decode.requests[first].timed);
  CHECK(world.links_ready());
  settle(&world);
}

}  // namespace
}  // namespace kvd::sim
