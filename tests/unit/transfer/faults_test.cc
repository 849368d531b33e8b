// Rooms that do not end well: every fault leaves each page with one owner and each request one
// outcome.
#include <catch2/catch.hpp>
#include <functional>

#include "proto/commit_record.h"
#include "proto/room_messages.h"
#include "sim/world.h"

namespace kvd::sim {
namespace {

constexpr Duration kMinute{60'000'000'000};
constexpr Duration kSecond{1'000'000'000};

void settle(World* world) {
  CHECK(world->run_until([&] { return world->quiet() && world->links_ready(); }, kMinute));
  world->check_end();
  for (const std::string& violation : world->violations()) FAIL_CHECK(violation);
}

struct Pair {
  explicit Pair(WorldOptions options, std::uint64_t seed = 1)
      : world(seed, std::move(options)), prefill(world.add_prefill()), decode(world.add_decode()) {
    REQUIRE(world.run_until([&] { return world.links_ready(); }));
  }
  std::uint64_t open(std::uint32_t tokens = 250, Duration timeout = kMinute) {
    return decode.request(prefill.address, tokens, timeout);
  }
  Outcome outcome(std::uint64_t id) { return decode.requests[id].outcome; }
  // The survivors serve on: a request works, at the second attempt if the first is what finds out
  // that the link is dead.
  void serves() {
    Outcome last = Outcome::kOpen;
    for (int attempt = 0; attempt < 2 && last != Outcome::kCommitted; ++attempt) {
      REQUIRE(world.run_until([&] { return world.links_ready(); }, kMinute));
      const std::uint64_t id = open();
      world.run_until([&] { return outcome(id) != Outcome::kOpen; });
      last = outcome(id);
    }
    CHECK(last == Outcome::kCommitted);
  }
  World world;
  Prefill& prefill;
  Decode& decode;
};

WorldOptions slow_fabric() {
  WorldOptions options;
  options.fabric.latency = Duration(80'000);
  return options;
}

TEST_CASE("abort: at every moment of a room, all pages come back by a proof") {
  WorldOptions options = slow_fabric();
  options.layout = GENERATE(small_layout(), wide_layout());
  options.fabric.ordered = GENERATE(true, false);
  options.fabric.remote_cq_data = GENERATE(true, false);
  options.cancel_time = GENERATE(Duration(0), Duration(400'000));
  const int moments = options.layout == small_layout() ? 60 : 12;
  const Duration step = options.layout == small_layout() ? Duration(40'000) : Duration(700'000);
  for (int moment = 0; moment < moments; ++moment) {
    Pair pair(options);
    const std::uint64_t id = pair.open();
    pair.world.run(moment * step);
    const bool open = pair.outcome(id) == Outcome::kOpen;
    pair.decode.abort(id);
    CHECK(pair.outcome(id) == (open ? Outcome::kAborted : Outcome::kCommitted));
    pair.open(100);  // wants the same pages
    settle(&pair.world);
  }
}

TEST_CASE("abort: it is answered within one window of flow control, without a new link") {
  WorldOptions options = slow_fabric();
  options.layout = wide_layout();
  options.fabric.bytes_per_s = 100'000'000;
  Pair pair(options);
  const std::uint64_t id = pair.open();
  REQUIRE(pair.world.run_until([&] { return pair.decode.pool->counts().leased > 0; }));
  pair.world.run(Duration(4'000'000));
  const auto before = pair.decode.receiver->prefills().at(0).incarnation;
  pair.decode.abort(id);
  CHECK(pair.decode.pool->counts().quarantined > 0);
  const TimePoint asked = pair.world.clock.now();
  REQUIRE(pair.world.run_until([&] { return pair.decode.pool->counts().quarantined == 0; }));
  CHECK(pair.world.clock.now() - asked < Duration(100'000'000));
  CHECK(pair.decode.ready(pair.prefill.address));
  CHECK(pair.decode.receiver->prefills().at(0).incarnation == before);
  settle(&pair.world);
}

TEST_CASE("deadline: decode reports it once and the pages drain") {
  for (int ms = 0; ms < 3; ++ms) {
    Pair pair(slow_fabric());
    const std::uint64_t id = pair.open(250, Duration(100'000 + ms * 450'000));
    pair.world.run(kSecond);
    CHECK(pair.outcome(id) == Outcome::kFailed);
    CHECK(pair.decode.requests[id].why.code() == StatusCode::kDeadline);
    CHECK_FALSE(pair.decode.requests[id].retryable);
    settle(&pair.world);
    pair.serves();
  }
}

TEST_CASE("engine: a failed computation fails the room on both sides, drained") {
  WorldOptions options;
  options.engine_fails = 1;
  Pair pair(options);
  const std::uint64_t id = pair.open();
  pair.world.run(Duration(50'000'000));
  CHECK(pair.outcome(id) == Outcome::kFailed);
  CHECK(pair.decode.requests[id].retryable);
  CHECK(pair.decode.ready(pair.prefill.address));
  settle(&pair.world);
}

TEST_CASE(
    "prefill killed at every moment: rooms fail within two seconds, a new incarnation serves") {
  for (int moment = 0; moment < 14; ++moment) {
    Pair pair(slow_fabric());
    const std::uint64_t id = pair.open();
    pair.world.run(moment * Duration(150'000));
    pair.prefill.kill();
    pair.world.run(Duration(2'300'000'000));
    const Outcome outcome = pair.outcome(id);
    CHECK((outcome == Outcome::kFailed || outcome == Outcome::kCommitted));
    if (outcome == Outcome::kFailed) CHECK(pair.decode.requests[id].retryable);
    CHECK(pair.decode.pool->counts().quarantined == 0);
    pair.prefill.start();
    pair.serves();
    settle(&pair.world);
  }
}

TEST_CASE("prefill restarted at once: the new incarnation is taken, the old rooms fail") {
  Pair pair(slow_fabric());
  const std::uint64_t id = pair.open();
  pair.world.run(Duration(900'000));
  pair.prefill.kill();
  pair.prefill.start();
  pair.serves();
  CHECK(pair.outcome(id) == Outcome::kFailed);
  settle(&pair.world);
}

TEST_CASE("decode killed and restarted at every moment: prefill's pages come back") {
  for (int moment = 0; moment < 14; ++moment) {
    Pair pair(slow_fabric());
    pair.open();
    pair.world.run(moment * Duration(150'000));
    pair.decode.kill();
    if (moment % 2 == 0) pair.world.run(3 * kSecond);
    pair.decode.start();
    pair.serves();
    settle(&pair.world);
  }
}

TEST_CASE("partition: both sides end the link, nothing lands after it heals") {
  for (int moment = 0; moment < 14; ++moment) {
    WorldOptions options = slow_fabric();
    options.fabric.self_reconnect = moment % 2 == 0;
    Pair pair(options);
    const std::uint64_t id = pair.open();
    pair.world.run(moment * Duration(150'000));
    pair.world.fabric.partition(pair.prefill.host, pair.decode.host);
    pair.world.network.partition(pair.prefill.host, pair.decode.host);
    pair.world.run(3 * kSecond);
    CHECK(pair.outcome(id) != Outcome::kOpen);
    CHECK(pair.decode.pool->counts().quarantined == 0);
    CHECK(pair.prefill.sender->rooms() == 0);
    pair.world.fabric.heal(pair.prefill.host, pair.decode.host);
    pair.world.network.heal(pair.prefill.host, pair.decode.host);
    pair.serves();
    settle(&pair.world);
  }
}

TEST_CASE("partition of the data path alone: an unanswered abort fences the peer") {
  Pair pair(slow_fabric());
  const std::uint64_t id = pair.open();
  REQUIRE(pair.world.run_until([&] { return pair.decode.pool->counts().leased > 0; }));
  pair.world.run(Duration(900'000));
  pair.world.fabric.partition(pair.prefill.host, pair.decode.host);
  pair.world.run(Duration(1'000'000));
  pair.decode.abort(id);
  CHECK(pair.decode.pool->counts().quarantined > 0);
  pair.world.run(Duration(1'900'000'000));
  CHECK(pair.decode.pool->counts().quarantined > 0);  // time alone gives nothing back
  CHECK(pair.world.run_until([&] { return pair.decode.pool->counts().quarantined == 0; }));
  pair.world.fabric.heal(pair.prefill.host, pair.decode.host);
  pair.serves();
  settle(&pair.world);
}

TEST_CASE("starvation: the peer that holds most quarantined pages is fenced, the other serves on") {
  WorldOptions options = slow_fabric();
  options.decode_pages = 20;
  options.transfer.drain_timeout = kMinute;
  World world(5, options);
  Prefill& bad = world.add_prefill();
  Prefill& good = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const std::uint64_t stuck = decode.request(bad.address, 350, kMinute);  // 12 pages
  world.run(Duration(900'000));
  world.fabric.partition(bad.host, decode.host);
  decode.abort(stuck);
  const std::uint64_t waits = decode.request(good.address, 350, kMinute);
  world.run(Duration(900'000'000));
  CHECK(decode.requests[waits].outcome == Outcome::kOpen);
  CHECK(world.run_until([&] { return decode.requests[waits].outcome == Outcome::kCommitted; }));
  CHECK(decode.ready(good.address));
  world.fabric.heal(bad.host, decode.host);
  settle(&world);
}

TEST_CASE("write errors: the room is not drained, the link ends and comes back") {
  for (int moment = 0; moment < 14; ++moment) {
    WorldOptions options = slow_fabric();
    options.fabric.false_ok = moment % 2 == 0;
    Pair pair(options);
    const std::uint64_t id = pair.open();
    pair.world.run(moment * Duration(150'000));
    if (moment % 3 == 0) pair.decode.abort(id);
    pair.world.fabric.drop_connections(pair.prefill.host);
    pair.world.run(3 * kSecond);
    CHECK(pair.outcome(id) != Outcome::kOpen);
    pair.serves();
    settle(&pair.world);
  }
}

TEST_CASE("write errors: a room whose deadline passes in the same turn is not drained either") {
  WorldOptions options = slow_fabric();
  options.layout = wide_layout();
  options.chunk_time = 10 * kSecond;
  Pair pair(options);
  const TimePoint end = pair.world.clock.now() + Duration(10'500'000'000);
  const std::uint64_t id = pair.decode.request(pair.prefill.address, 32, Duration(10'500'000'000));
  const auto in_flight = [&] { return pair.world.fabric.in_flight(pair.prefill.host); };
  REQUIRE(pair.world.run_until([&] { return in_flight() == 0; }));  // the link's test write
  // The first layers of its one page are on their way, and nothing else.
  REQUIRE(pair.world.run_until([&] { return in_flight() == 1; }));
  pair.decode.stopped = pair.prefill.stopped = true;
  pair.world.fabric.drop_connections(pair.prefill.host);
  while (pair.world.step()) {
  }
  pair.world.clock.advance(end - pair.world.clock.now() + Duration(50'000'000));
  pair.prefill.stopped = false;
  pair.world.run(Duration(10'000'000));
  int failed = 0;
  while (const auto message = pair.decode.messenger->receive()) {
    if (message->envelope.type != proto::MessageType::kRoomFailed) continue;
    ++failed;
    CHECK_FALSE(proto::decode_body<proto::RoomFailed>(message->envelope)->drained);
  }
  CHECK(failed == 1);
  CHECK(pair.outcome(id) == Outcome::kOpen);
}

TEST_CASE("endless EAGAIN: the link ends instead of waiting for ever") {
  Pair pair(slow_fabric());
  const std::uint64_t id = pair.open();
  pair.world.run(Duration(500'000));
  pair.world.fabric.endless_again(pair.prefill.host, true);
  pair.world.run(4 * kSecond);
  CHECK(pair.outcome(id) == Outcome::kFailed);
  CHECK(pair.decode.requests[id].retryable);
  CHECK(pair.decode.pool->counts().quarantined == 0);
  pair.world.fabric.endless_again(pair.prefill.host, false);
  pair.serves();
  settle(&pair.world);
}

TEST_CASE("control messages: loss, duplicates and overtaking end epochs, never pages or outcomes") {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    WorldOptions options = slow_fabric();
    options.channel.jitter = Duration(200'000);
    Pair pair(options, seed);
    control::SimChannelFaults faults = options.channel;
    faults.loss = seed % 3 == 0 ? 0.05 : 0;
    faults.duplicate = seed % 3 == 1 ? 0.3 : 0;
    faults.reorder = seed % 3 == 2;
    pair.world.network.set_faults(faults);
    for (int i = 0; i < 8; ++i) {
      pair.open(100 + 20 * i, 5 * kSecond);
      pair.world.run(Duration(700'000));
    }
    pair.world.run(6 * kSecond);
    pair.world.network.set_faults(options.channel);
    for (const auto& [id, request] : pair.decode.requests) CHECK(request.outcome != Outcome::kOpen);
    pair.serves();
    settle(&pair.world);
  }
}

TEST_CASE("stopped prefill: continued after its pages were reused, it writes nothing") {
  Pair pair(slow_fabric());
  const std::uint64_t id = pair.open();
  pair.world.run(Duration(600'000));
  pair.prefill.stopped = true;
  pair.world.run(3 * kSecond);
  CHECK(pair.outcome(id) == Outcome::kFailed);
  CHECK(pair.decode.pool->counts().quarantined == 0);
  pair.prefill.stopped = false;
  pair.serves();
  settle(&pair.world);
}

TEST_CASE("stopped decode: prefill lets go, and the link is made anew") {
  Pair pair(slow_fabric());
  const std::uint64_t id = pair.open();
  pair.world.run(Duration(900'000));
  pair.decode.stopped = true;
  pair.world.run(30 * kSecond);
  CHECK(pair.prefill.sender->rooms() == 0);
  pair.decode.stopped = false;
  pair.serves();
  CHECK(pair.outcome(id) != Outcome::kOpen);
  settle(&pair.world);
}

TEST_CASE("corruption: a page that changes on its way is found by the digest, and the link ends") {
  WorldOptions options = slow_fabric();
  options.layout = wide_layout();
  options.transfer.digest = transfer::Digest::kFull;
  Pair pair(options);
  const std::uint64_t id = pair.open(32);
  // Flip a bit of the page as soon as it is there, before the record comes.
  REQUIRE(pair.world.run_until([&] {
    const std::byte* last = pair.decode.pool->page(0) + options.layout.page_bytes() - 1;
    return *last != std::byte{0xC5};
  }));
  pair.decode.pool->page(0)[4096] ^= std::byte{1};
  pair.world.run_until([&] { return pair.outcome(id) != Outcome::kOpen; });
  CHECK(pair.outcome(id) == Outcome::kFailed);
  CHECK(pair.decode.requests[id].why.code() == StatusCode::kCorrupted);
  CHECK(pair.decode.requests[id].retryable);
  CHECK_FALSE(pair.decode.ready(pair.prefill.address));
  pair.serves();
  settle(&pair.world);
}

TEST_CASE("commit record: one that does not match the allocation is refused, and the link ends") {
  const auto change = GENERATE(
      as<std::function<void(proto::CommitRecord*)>>(),
      [](proto::CommitRecord* record) { ++record->room.value; },
      [](proto::CommitRecord* record) { ++record->epoch.value; },
      [](proto::CommitRecord* record) { ++record->incarnation.value; },
      [](proto::CommitRecord* record) { ++record->generation; },
      [](proto::CommitRecord* record) { --record->tokens; },
      [](proto::CommitRecord* record) { --record->pages; },
      [](proto::CommitRecord* record) { ++record->pages; },
      [](proto::CommitRecord* record) { record->streamed = record->pages + 1; });
  WorldOptions options = slow_fabric();
  options.transfer.digest = transfer::Digest::kOff;  // which would notice most of them, too
  Pair pair(options);
  const std::uint64_t id = pair.open();
  REQUIRE(pair.world.run_until([&] { return pair.world.fabric.in_flight(pair.prefill.host) > 0; }));
  // It reads the record a little after that came.
  pair.decode.stopped = true;
  std::byte* slot = nullptr;
  proto::CommitRecord record;
  REQUIRE(pair.world.run_until([&] {
    for (const auto& landing : pair.world.fabric.landed()) {
      if (landing.bytes != proto::kRecordBytes) continue;
      slot = const_cast<std::byte*>(landing.at);
      record = proto::decode_record(std::span<std::byte, proto::kRecordBytes>(slot, landing.bytes))
                   .value();
    }
    return record.room.value != 0;  // that of the link's test write
  }));
  REQUIRE(pair.outcome(id) == Outcome::kOpen);
  change(&record);
  proto::encode_record(record,
                       std::span<std::byte, proto::kRecordBytes>(slot, proto::kRecordBytes));
  pair.decode.stopped = false;
  pair.world.run_until([&] { return pair.outcome(id) != Outcome::kOpen; });
  CHECK(pair.outcome(id) == Outcome::kFailed);
  CHECK(pair.decode.requests[id].why.code() == StatusCode::kCorrupted);
  CHECK(pair.decode.requests[id].retryable);
  CHECK_FALSE(pair.decode.ready(pair.prefill.address));
  pair.serves();
  settle(&pair.world);
}

TEST_CASE("no fence: pages that no proof covers stay quarantined, for ever") {
  WorldOptions options = slow_fabric();
  options.fabric.endpoint_close_is_fence = false;
  Pair pair(options);
  const std::uint64_t id = pair.open();
  pair.world.run(Duration(900'000));
  pair.world.fabric.partition(pair.prefill.host, pair.decode.host);
  pair.world.network.partition(pair.prefill.host, pair.decode.host);
  pair.world.run(kMinute);
  CHECK(pair.outcome(id) == Outcome::kFailed);
  CHECK(pair.decode.pool->counts().quarantined > 0);
  pair.world.fabric.heal(pair.prefill.host, pair.decode.host);
  pair.world.network.heal(pair.prefill.host, pair.decode.host);
  pair.serves();
  CHECK(pair.decode.pool->counts().quarantined > 0);
  for (const std::string& violation : pair.world.violations()) FAIL_CHECK(violation);
}

}  // namespace
}  // namespace kvd::sim
