// Links between decode and prefill workers over the simulated fabric: over which provider, when
// they are tried again, who is refused.
#include "world_checks.h"

namespace kvd::sim {
namespace {

// A prefill that refuses local, and a decode that has it and one other provider.
struct LocalRefused {
  explicit LocalRefused(WorldOptions options = {}) : world(1, with(std::move(options))) {}
  static WorldOptions with(WorldOptions options) {
    options.local_is_refused = true;
    return options;
  }
  transfer::PrefillView view() const { return decode.receiver->prefills().at(0); }
  bool tries_local() const {
    return view().state == transfer::LinkState::kRegistering && view().provider == "local";
  }
  // Runs for `time`; whether local was tried within it.
  bool local_is_tried(Duration time) {
    const TimePoint end = world.clock.now() + time;
    bool tried = false;
    world.run_until([&] {
      tried = tried || tries_local();
      return world.clock.now() >= end;
    });
    return tried;
  }
  // The prefill stands still until decode has ended the link.
  void end_link() {
    prefill.stopped = true;
    world.run(3 * transfer::TransferOptions{}.dead_after / 2);
    prefill.stopped = false;
  }
  World world;
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
};

TEST_CASE("links: one that local cannot carry goes over the next provider, at once") {
  if (!has_local()) return;
  WorldOptions options;
  options.local_is_refused = true;
  World world(1, options);
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  CHECK(world.clock.now() < TimePoint{0} + options.transfer.reconnect);
  REQUIRE(decode.receiver->prefills().size() == 1);
  CHECK(decode.receiver->prefills()[0].provider == "sim");
  const std::uint64_t id = decode.request(prefill.address, 100, kMinute);
  CHECK(wait_for(&world, &decode, id).committed.provider == "sim");
  // A prefill that was started anew is asked for local again, and refuses again.
  prefill.kill();
  prefill.start();
  CHECK(world.run_until([&] { return world.links_ready(); }));
  CHECK(decode.receiver->prefills()[0].provider == "sim");
  settle(&world);
}

TEST_CASE("links: a prefill that was not there is asked as soon as it is") {
  World world(1, {});
  Prefill& prefill = world.add_prefill();
  prefill.kill();
  Decode& decode = world.add_decode();
  world.run(Duration(1'050'000'000));
  prefill.start();
  decode.tick();  // the channel's descriptor wakes it
  const TimePoint there = world.clock.now();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  CHECK(world.clock.now() - there < transfer::TransferOptions{}.reconnect / 4);
  settle(&world);
}

TEST_CASE("links: local is tried again when a minute has passed, and not before") {
  if (!has_local()) return;
  LocalRefused pair;
  REQUIRE(pair.world.run_until([&] { return pair.world.links_ready(); }));
  pair.end_link();
  CHECK_FALSE(pair.local_is_tried(Duration(5'000'000'000)));
  CHECK(pair.world.links_ready());
  pair.world.run(Duration(60'000'000'000));
  pair.end_link();
  CHECK(pair.local_is_tried(Duration(5'000'000'000)));
  CHECK(pair.world.links_ready());
  CHECK(pair.view().provider == "sim");
  settle(&pair.world);
}

TEST_CASE("links: with nothing but local in common, its own error is what is shown") {
  if (!has_local()) return;
  WorldOptions options;
  options.only_local_in_common = true;
  LocalRefused pair(options);
  const auto refused = [&] { return pair.view().state == transfer::LinkState::kRefused; };
  REQUIRE(pair.world.run_until(refused));
  pair.world.run(Duration(10'000'000'000));
  REQUIRE(pair.world.run_until(refused));
  CHECK(pair.view().why.message().find("provider local is not in use here") != std::string::npos);
}

TEST_CASE("links: a new run of the prefill starts anew with local") {
  if (!has_local()) return;
  LocalRefused pair;
  // Three links in a row that local did not make ready would be enough for the next provider.
  const auto fail_once = [&] {
    REQUIRE(pair.world.run_until([&] { return pair.tries_local(); }));
    pair.end_link();
    REQUIRE_FALSE(pair.tries_local());
  };
  pair.prefill.stopped = false;
  fail_once();
  fail_once();
  pair.prefill.kill();
  pair.prefill.start();
  fail_once();
  CHECK(pair.world.run_until([&] { return pair.tries_local(); }));
}

TEST_CASE("links: a peer of another model is refused with a diff") {
  World world(11, {});
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  decode.kill();
  decode.fingerprint = "other";
  decode.start();
  world.run(Duration(3'000'000'000));
  const auto view = decode.receiver->prefills().at(0);
  CHECK(view.state == transfer::LinkState::kRefused);
  CHECK(view.why.code() == StatusCode::kIncompatible);
  CHECK(view.why.message().find("other here, model there") != std::string::npos);
  CHECK_FALSE(decode.ready(prefill.address));
}

TEST_CASE("links: a removed prefill's rooms fail and may be retried elsewhere") {
  World world(12, {});
  Prefill& prefill = world.add_prefill();
  Decode& decode = world.add_decode();
  REQUIRE(world.run_until([&] { return world.links_ready(); }));
  const std::uint64_t id = decode.request(prefill.address, 250, kMinute);
  world.run(Duration(800'000));
  decode.receiver->remove_prefill(prefill.address);
  CHECK(decode.requests[id].outcome == Outcome::kOpen);  // the host is not called from its own call
  decode.receiver->poll();
  CHECK(decode.requests[id].outcome == Outcome::kFailed);
  CHECK(decode.requests[id].retryable);
  CHECK(world.run_until([&] { return decode.receiver->prefills().empty(); }));
  settle(&world);
  decode.receiver->add_prefill(prefill.address);
  CHECK(world.run_until([&] { return world.links_ready(); }));
}

}  // namespace
}  // namespace kvd::sim
