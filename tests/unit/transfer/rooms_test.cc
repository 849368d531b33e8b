// Rooms from end to end over the simulated fabric: what a user of KvSender and KvReceiver sees.
#include "proto/room_messages.h"
#include "world_checks.h"

namespace kvd::sim {
namespace {

TEST_CASE("rooms: a prompt arrives whole, with its first token, on every kind of fabric") {
  WorldOptions options;
  options.layout = GENERATE(small_layout(), wide_layout());
  options.transfer.stream = GENERATE(true, false);
  options.fabric.ordered = GENERATE(true, false);
  options.fabric.remote_cq_data = GENERATE(true, false);
  options.transfer.digest =
      GENERATE(transfer::Digest::kSample, transfer::Digest::kFull, transfer::Digest::kOff);
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  // Chunks of 80 tokens over pages of 32: each chunk ends inside a page, and so does the prompt.
  const std::uint64_t id = decode.request(prefill.address, 250, kMinute);
  const Request& request = wait_for(&world, &decode, id);
  REQUIRE(request.outcome == Outcome::kCommitted);
  CHECK(request.committed.prompt_tokens == 250);
  CHECK(request.committed.pages == 8);
  CHECK(request.committed.bytes == 8 * options.layout.page_bytes());
  CHECK(request.committed.provider == "sim");
  CHECK(request.committed.room);
  CHECK_FALSE(request.committed.commit_is_estimate);
  settle(&world);
  CHECK(request.timed);
  REQUIRE(prefill.outcomes.size() == 1);
  const transfer::SenderOutcome& outcome = prefill.outcomes.begin()->second;
  CHECK(outcome.status.ok());
  CHECK(outcome.bytes == 8 * options.layout.page_bytes());
  CHECK(outcome.transfer_total >= outcome.transfer_exposed);
}

// Control messages take 10 ms, nothing else takes that long.
WorldOptions slow_control() {
  WorldOptions options;
  options.channel.latency = Duration(10'000'000);
  return options;
}

TEST_CASE("rooms: a prompt arrives after one message, and its record before the answer") {
  World world(1, slow_control());
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const TimePoint asked = world.clock.now();
  const std::uint64_t id = decode.request(prefill.address, 250, kMinute);
  REQUIRE(wait_for(&world, &decode, id).outcome == Outcome::kCommitted);
  CHECK(world.clock.now() - asked < Duration(19'000'000));
  CHECK(decode.requests[id].committed.room);
  CHECK(world.run_until([&] { return decode.requests[id].timed; }, kMinute));
  settle(&world);
  CHECK(prefill.outcomes.at(decode.requests[id].committed.room).status.ok());
  // RoomOpened of a room that is over is no news: nothing was aborted because of it.
  CHECK(prefill.outcomes.size() == 1);
}

TEST_CASE("rooms: without a free slot the pages follow in Allocate") {
  WorldOptions options = slow_control();
  options.slots = 1;
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const TimePoint asked = world.clock.now();
  const std::uint64_t first = decode.request(prefill.address, 30, kMinute);
  const std::uint64_t second = decode.request(prefill.address, 30, kMinute);
  REQUIRE(wait_for(&world, &decode, second).outcome == Outcome::kCommitted);
  CHECK(world.clock.now() - asked > Duration(30'000'000));
  CHECK(decode.requests[first].outcome == Outcome::kCommitted);
  settle(&world);
}

TEST_CASE("rooms: pages that went with OpenRoom come back by a proof alone") {
  World world(1, slow_control());
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  SECTION("aborted before prefill has heard of the room") {
    const std::uint64_t id = decode.request(prefill.address, 250, kMinute);
    const std::uint32_t leased = decode.pool->counts().leased;
    decode.abort(id);
    CHECK(leased > 0);
    CHECK(decode.pool->counts().quarantined == leased);
    world.run(Duration(9'000'000));
    CHECK(decode.pool->counts().quarantined == leased);
  }
  SECTION("aborted before its record, which proves the drain and overtakes the answer") {
    const std::uint64_t id = decode.request(prefill.address, 250, kMinute);
    world.run(Duration(10'300'000));
    decode.abort(id);
    CHECK(decode.pool->counts().quarantined > 0);
    world.run(Duration(7'000'000));
    CHECK(decode.pool->counts().quarantined == 0);
    CHECK(world.links_ready());
  }
  SECTION("its deadline passes before prefill has answered") {
    const std::uint64_t id = decode.request(prefill.address, 250, Duration(10'300'000));
    world.run(Duration(10'400'000));
    CHECK(decode.requests[id].why.code() == StatusCode::kDeadline);
    CHECK(decode.pool->counts().quarantined > 0);
  }
  SECTION("the prefill is removed before it has answered") {
    const std::uint64_t id = decode.request(prefill.address, 250, kMinute);
    decode.receiver->remove_prefill(prefill.address);
    CHECK(decode.pool->counts().quarantined > 0);
    CHECK(world.run_until([&] { return decode.receiver->prefills().empty(); }, kMinute));
    CHECK(decode.requests[id].outcome == Outcome::kFailed);
    decode.receiver->add_prefill(prefill.address);
  }
  SECTION("refused") {
    prefill.sender->drain();
    const std::uint64_t id = decode.request(prefill.address, 250, kMinute);
    CHECK(wait_for(&world, &decode, id).outcome == Outcome::kFailed);
  }
  SECTION("never answered") {
    prefill.stopped = true;
    const std::uint64_t id = decode.request(prefill.address, 250, kMinute);
    decode.abort(id);
    const auto fenced = [&] { return decode.pool->counts().quarantined == 0; };
    REQUIRE(world.run_until(fenced, kMinute));
    CHECK_FALSE(world.links_ready());
    prefill.stopped = false;
  }
  settle(&world);
  CHECK(decode.pool->counts().free == decode.pool->page_count());
}

// What a prefill says that does not keep the rules. Decode stands still, so that the prefill's own
// messages can be taken from its channel and others be put in their place.
struct Liar {
  Liar() {
    REQUIRE(world.run_until([&] { return world.links_ready(); }));
    id = decode.request(prefill.address, 250, kMinute);
    const auto link = decode.receiver->prefills().at(0).incarnation;
    decode.stopped = true;
    world.run(Duration(20'500'000));
    while (auto message = decode.messenger->receive()) {
      if (message->envelope.type != proto::MessageType::kRoomOpened) continue;
      opened = std::move(*message);
    }
    REQUIRE(opened.envelope.from == link);
    decode.stopped = false;
  }
  // Before the record is looked at; `after` counts from RoomOpened.
  template <typename Message>
  void say(std::uint64_t after, RoomId room, const Message& message) {
    proto::Envelope header = opened.envelope;
    header.seq += after;
    header.room = room;
    auto envelope = proto::decode_envelope(proto::encode(header, message));
    REQUIRE(envelope.ok());
    control::Received forged = opened;
    forged.envelope = std::move(*envelope);
    decode.receiver->on_message(forged);
  }
  std::uint64_t key() const {
    return proto::decode_body<proto::RoomOpened>(opened.envelope)->request;
  }
  void check_that_the_link_ends() {
    CHECK(decode.requests[id].outcome == Outcome::kFailed);
    CHECK_FALSE(decode.ready(prefill.address));
    CHECK(world.run_until([&] { return world.links_ready(); }, kMinute));
    settle(&world);
  }
  World world{1, slow_control()};
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  std::uint64_t id = 0;
  control::Received opened;
};

TEST_CASE("rooms: a prefill that opens or refuses against the rules loses its link") {
  Liar liar;
  const RoomId room = liar.opened.envelope.room;
  SECTION("opened twice") {
    liar.say(0, room, proto::RoomOpened{liar.key(), true});
    CHECK(liar.decode.requests[liar.id].outcome == Outcome::kOpen);
    liar.say(1, room, proto::RoomOpened{liar.key(), true});
  }
  SECTION("opened again under another id") {
    liar.say(0, room, proto::RoomOpened{liar.key(), true});
    liar.say(1, RoomId{77}, proto::RoomOpened{liar.key(), true});
  }
  SECTION("refused when it was opened") {
    liar.say(0, room, proto::RoomOpened{liar.key(), true});
    liar.say(1, room, proto::RoomRefused{liar.key(), "busy", "never mind"});
  }
  SECTION("opened without an id") { liar.say(0, RoomId{}, proto::RoomOpened{liar.key(), true}); }
  liar.check_that_the_link_ends();
}

TEST_CASE("rooms: a prefill that skips the pages in OpenRoom gets them in Allocate") {
  Liar liar;
  liar.say(0, liar.opened.envelope.room, proto::RoomOpened{liar.key(), false});
  std::size_t allocates = 0;
  liar.prefill.stopped = true;
  liar.world.run(Duration(20'000'000));
  // What the prefill had written meanwhile is whole.
  CHECK(liar.decode.requests[liar.id].outcome == Outcome::kCommitted);
  while (auto message = liar.prefill.messenger->receive()) {
    if (message->envelope.type == proto::MessageType::kAllocate) ++allocates;
  }
  CHECK(allocates == 1);
}

TEST_CASE("rooms: over local, where decode copies, a prompt arrives whole, too") {
  WorldOptions options;
  options.layout = GENERATE(small_layout(), wide_layout());
  options.transfer.digest = transfer::Digest::kFull;
  options.fabric.target_pulls = true;
  options.fabric.land_after_region_close = options.fabric.self_reconnect = false;
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const std::uint64_t id = decode.request(prefill.address, 250, kMinute);
  REQUIRE(wait_for(&world, &decode, id).outcome == Outcome::kCommitted);
  CHECK(decode.requests[id].committed.provider == "local");
  // The end of prefill is known by its connection, not by its silence.
  const std::uint64_t cut = decode.request(prefill.address, 250, kMinute);
  const TimePoint killed = world.clock.now();
  prefill.kill();
  CHECK(wait_for(&world, &decode, cut).outcome == Outcome::kFailed);
  CHECK(world.clock.now() - killed < options.transfer.heartbeat);
  prefill.start();
  settle(&world);
}

TEST_CASE("rooms: pages stream while later layers are computed") {
  WorldOptions options;
  options.layout = wide_layout();
  options.chunk = 1000;
  options.chunk_time = Duration(1'000'000);
  const auto exposed_of = [&](bool stream) {
    options.transfer.stream = stream;
    World world(1, options);
    Prefill& prefill = world.add_prefill();
    Decode& decode = world.add_decode();
    world.run_until([&] { return world.links_ready(); });
    wait_for(&world, &decode, decode.request(prefill.address, 320, kMinute));
    settle(&world);
    return prefill.outcomes.begin()->second.transfer_exposed;
  };
  CHECK(exposed_of(true) * 2 < exposed_of(false));
}

TEST_CASE("rooms: many at once share slots and source pages in line, none is lost") {
  WorldOptions options;
  options.slots = 3;
  options.prefill_pages = 12;
  World world(3, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  for (int i = 0; i < 60; ++i) {
    decode.request(prefill.address, 1 + static_cast<std::uint32_t>(world.rng.below(300)), kMinute);
  }
  settle(&world);
  for (const auto& [id, request] : decode.requests) CHECK(request.outcome == Outcome::kCommitted);
}

TEST_CASE("rooms: a prompt beyond prefill's pool is refused, and not to be retried") {
  WorldOptions options;
  options.prefill_pages = 4;
  World world(4, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const Request& request = wait_for(&world, &decode, decode.request(prefill.address, 129, kMinute));
  CHECK(request.outcome == Outcome::kFailed);
  CHECK(request.why.code() == StatusCode::kInvalidArgument);
  CHECK_FALSE(request.retryable);
  CHECK(wait_for(&world, &decode, decode.request(prefill.address, 128, kMinute)).outcome ==
        Outcome::kCommitted);
  settle(&world);
}

TEST_CASE("rooms: standalone halves meet in either order") {
  const bool router_first = GENERATE(true, false);
  World world(5, {});
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const RoomId room{4711};
  std::vector<TokenId> prompt(70, 7);
  prompt[0] = static_cast<TokenId>(world.next_request);
  const auto expect = [&] {
    return prefill.sender->expect(room, prompt, {}, world.clock.now() + kMinute);
  };
  if (router_first) REQUIRE(expect().ok());
  const std::uint64_t id = decode.request(prefill.address, 70, kMinute, room);
  world.run(Duration(5'000'000));
  if (!router_first) {
    CHECK(decode.requests[id].outcome == Outcome::kOpen);
    REQUIRE(expect().ok());
    CHECK_FALSE(expect().ok());  // only once
  }
  CHECK(wait_for(&world, &decode, id).outcome == Outcome::kCommitted);
  CHECK(decode.requests[id].committed.room == room);
  settle(&world);
  CHECK(prefill.outcomes.at(room).status.ok());
}

TEST_CASE("rooms: standalone halves with different prompts are refused on both sides") {
  const bool router_first = GENERATE(true, false);
  World world(6, {});
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const RoomId room{4711};
  const auto expect = [&] {
    return prefill.sender->expect(room, {1, 2, 3}, {}, world.clock.now() + kMinute);
  };
  if (router_first) REQUIRE(expect().ok());
  const std::uint64_t id = decode.request(prefill.address, 70, kMinute, room);
  world.run(Duration(5'000'000));
  if (!router_first) CHECK(expect().code() == StatusCode::kInvalidArgument);
  const Request& request = wait_for(&world, &decode, id);
  CHECK(request.outcome == Outcome::kFailed);
  CHECK_FALSE(request.retryable);
  settle(&world);
  CHECK_FALSE(prefill.outcomes.at(room).status.ok());
}

TEST_CASE("rooms: a standalone half that is never met ends at its deadline, on both sides") {
  World world(7, {});
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const Duration second{1'000'000'000};
  REQUIRE(prefill.sender->expect(RoomId{1}, {1, 2}, {}, world.clock.now() + second).ok());
  const std::uint64_t id = decode.request(prefill.address, 20, second, RoomId{2});
  world.run(2 * second);
  CHECK(decode.requests[id].outcome == Outcome::kFailed);
  CHECK(prefill.outcomes.at(RoomId{1}).status.code() == StatusCode::kDeadline);
  CHECK_FALSE(prefill.outcomes.at(RoomId{2}).status.ok());
  settle(&world);
}

TEST_CASE("rooms: the table of waiting halves is bounded") {
  WorldOptions options;
  options.transfer.max_waiting_halves = 2;
  World world(8, options);
  Prefill& prefill = world.add_prefill();
  const TimePoint later = world.clock.now() + kMinute;
  CHECK(prefill.sender->expect(RoomId{1}, {1}, {}, later).ok());
  CHECK(prefill.sender->expect(RoomId{2}, {1}, {}, later).ok());
  CHECK(prefill.sender->expect(RoomId{3}, {1}, {}, later).code() == StatusCode::kResourceExhausted);
  prefill.sender->abandon(RoomId{1});
  CHECK(prefill.sender->expect(RoomId{3}, {1}, {}, later).ok());
}

TEST_CASE("rooms: an abandoned room fails on decode, drained") {
  World world(9, {});
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const RoomId room{99};
  std::vector<TokenId> prompt(250, 7);
  prompt[0] = static_cast<TokenId>(world.next_request);
  REQUIRE(prefill.sender->expect(room, prompt, {}, world.clock.now() + kMinute).ok());
  const std::uint64_t id = decode.request(prefill.address, 250, kMinute, room);
  world.run(Duration(600'000));
  prefill.sender->abandon(room);
  CHECK(wait_for(&world, &decode, id).outcome == Outcome::kFailed);
  settle(&world);
}

TEST_CASE("rooms: a draining prefill finishes what it has and refuses the rest") {
  World world(10, {});
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const std::uint64_t first = decode.request(prefill.address, 250, kMinute);
  world.run(Duration(500'000));
  prefill.sender->drain();
  const std::uint64_t second = decode.request(prefill.address, 250, kMinute);
  CHECK(wait_for(&world, &decode, first).outcome == Outcome::kCommitted);
  CHECK(wait_for(&world, &decode, second).outcome == Outcome::kFailed);
  CHECK(decode.requests[second].retryable);
  settle(&world);
}

}  // namespace
}  // namespace kvd::sim
