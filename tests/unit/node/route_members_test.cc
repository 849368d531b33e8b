#include "node/route_members.h"

#include <catch2/catch.hpp>
#include <set>

using namespace kvd;
using namespace kvd::node;

namespace {

constexpr Duration kDeadAfter{2'000'000'000};
constexpr Duration kSecond{1'000'000'000};

struct Table {
  TimePoint now{1'000'000'000'000};
  std::unique_ptr<RouteMembers> members;

  explicit Table(bool standalone = false) {
    auto made = RouteMembers::create("round-robin", standalone, kDeadAfter, 1);
    REQUIRE(made.ok());
    members = std::move(*made);
  }

  static proto::Described info(const std::string& role, const std::string& address) {
    proto::Described out;
    out.role = role;
    out.model = "m";
    out.fingerprint = "f";
    out.http = "http://" + address;
    return out;
  }
  bool answer(const std::string& role, const std::string& address, std::uint64_t incarnation = 1) {
    return members->on_described(address, Incarnation{incarnation}, info(role, address), now);
  }
  void add(const std::string& role, const std::string& address) {
    members->add_listed(role, address);
    answer(role, address);
  }
  Result<Assignment> pick(const std::vector<std::string>& tried = {}) {
    return members->pick("", tried, {}, now);
  }
  void report(const Assignment& pair, Outcome prefill, Outcome decode) {
    members->release(pair, prefill, decode, now);
  }
};

}  // namespace

TEST_CASE("breaker: opens after failures in a row, then lets one probe through at a time") {
  TimePoint now{1};
  Breaker breaker;
  for (std::uint32_t i = 1; i < Breaker::kThreshold; ++i) breaker.failure(0, now);
  CHECK(breaker.allows(now));
  breaker.success(0);
  for (std::uint32_t i = 0; i < Breaker::kThreshold; ++i) {
    CHECK(breaker.allows(now));
    breaker.failure(breaker.take(), now);
  }
  CHECK_FALSE(breaker.allows(now));
  now = now + Breaker::kFirstWait;
  REQUIRE(breaker.allows(now));
  Breaker::Probe probe = breaker.take();
  CHECK(std::string(breaker.state()) == "half-open");
  CHECK_FALSE(breaker.allows(now));
  breaker.failure(probe, now);
  CHECK_FALSE(breaker.allows(now + Breaker::kFirstWait));
  now = now + Breaker::kFirstWait * 2;
  REQUIRE(breaker.allows(now));
  breaker.neutral(breaker.take());
  CHECK(breaker.allows(now));
  probe = breaker.take();
  breaker.success(probe);
  CHECK(std::string(breaker.state()) == "closed");
}

TEST_CASE("breaker: requests from before it opened neither end the probe nor double it") {
  TimePoint now{1};
  Breaker breaker;
  std::vector<Breaker::Probe> before;
  for (std::uint32_t i = 0; i < 3 + Breaker::kThreshold; ++i) before.push_back(breaker.take());
  for (std::uint32_t i = 3; i < before.size(); ++i) breaker.failure(before[i], now);
  now = now + Breaker::kFirstWait;
  REQUIRE(breaker.allows(now));
  const Breaker::Probe probe = breaker.take();
  breaker.neutral(before[0]);
  CHECK_FALSE(breaker.allows(now + Breaker::kLongestWait));
  breaker.failure(before[1], now);
  CHECK_FALSE(breaker.allows(now + Breaker::kLongestWait));
  breaker.success(before[2]);
  CHECK(std::string(breaker.state()) == "half-open");
  // A probe of the worker's run before.
  breaker.reset();
  for (std::uint32_t i = 0; i < Breaker::kThreshold; ++i) breaker.failure(breaker.take(), now);
  now = now + Breaker::kFirstWait;
  const Breaker::Probe next = breaker.take();
  breaker.neutral(probe);
  CHECK_FALSE(breaker.allows(now));
  breaker.success(next);
  CHECK(breaker.allows(now));
}

TEST_CASE("breaker: the wait between probes is bounded") {
  TimePoint now{1};
  Breaker breaker;
  for (std::uint32_t i = 0; i < Breaker::kThreshold; ++i) breaker.failure(0, now);
  for (int i = 0; i < 40; ++i) {
    now = now + Breaker::kLongestWait;
    REQUIRE(breaker.allows(now));
    breaker.failure(breaker.take(), now);
  }
}

TEST_CASE("router table: a pair is given when both roles have answered") {
  Table table;
  table.members->add_listed("prefill", "p:1");
  table.members->add_listed("decode", "d:1");
  CHECK(table.pick().status().code() == StatusCode::kUnavailable);
  CHECK(table.pick().status().message() == "no usable decode worker: d:1 is unknown");
  table.answer("decode", "d:1");
  CHECK(table.pick().status().message() == "no usable prefill worker: p:1 is unknown");
  table.answer("prefill", "p:1");
  const Result<Assignment> pair = table.pick();
  REQUIRE(pair.ok());
  CHECK(pair->prefill == "p:1");
  CHECK(pair->decode_http == "http://d:1");
  CHECK(table.members->usable(table.now));
}

TEST_CASE("router table: without a prefill of its own decode-first leaves the choice to decode") {
  Table table;
  table.add("decode", "d:1");
  const Result<Assignment> pair = table.pick();
  REQUIRE(pair.ok());
  CHECK(pair->prefill.empty());
  CHECK(pair->decode == "d:1");
  Table standalone(true);
  standalone.add("decode", "d:1");
  CHECK_FALSE(standalone.pick().ok());
  CHECK_FALSE(standalone.members->usable(standalone.now));
}

TEST_CASE("router table: silent, draining and wrongly listed workers get nothing") {
  Table table;
  table.add("prefill", "p:1");
  table.add("decode", "d:1");
  table.now = table.now + kSecond;
  CHECK(table.members->take_silent(table.now).empty());
  table.answer("prefill", "p:1");
  table.now = table.now + kSecond + Duration(1);
  CHECK(table.members->take_silent(table.now) == std::vector<std::string>{"d:1"});
  CHECK(table.members->take_silent(table.now).empty());
  CHECK(table.pick().status().message() == "no usable decode worker: d:1 is silent");
  proto::Described draining = Table::info("decode", "d:1");
  draining.load.draining = true;
  table.members->on_described("d:1", Incarnation{1}, draining, table.now);
  CHECK(table.pick().status().message() == "no usable decode worker: d:1 is draining");
  table.answer("prefill", "d:1");
  CHECK(table.pick().status().message() == "no usable decode worker: d:1 is wrong-role");
  table.answer("decode", "d:1");
  CHECK(table.pick().ok());
}

TEST_CASE("router table: a new incarnation means that the run before is lost") {
  Table table;
  table.members->add_listed("decode", "d:1");
  CHECK_FALSE(table.answer("decode", "d:1", 1));
  CHECK_FALSE(table.answer("decode", "d:1", 1));
  CHECK(table.answer("decode", "d:1", 2));
}

TEST_CASE("router table: a broken connection makes a suspect until the worker answers") {
  Table table;
  table.add("prefill", "p:1");
  table.add("decode", "d:1");
  const Result<Assignment> pair = table.pick();
  REQUIRE(pair.ok());
  table.report(*pair, Outcome::kNeutral, Outcome::kBroken);
  CHECK(table.members->suspects() == std::vector<std::string>{"d:1"});
  CHECK_FALSE(table.pick().ok());
  table.answer("decode", "d:1");
  CHECK(table.members->suspects().empty());
  CHECK(table.pick().ok());
}

TEST_CASE("router table: failures open only the breaker of the worker to blame") {
  Table table;
  table.add("prefill", "p:1");
  table.add("prefill", "q:1");
  table.add("decode", "d:1");
  std::set<std::string> prefills;
  for (std::uint32_t failures = 0; failures < Breaker::kThreshold;) {
    const Result<Assignment> pair = table.pick();
    REQUIRE(pair.ok());
    const bool bad = pair->prefill == "p:1";
    table.report(*pair, bad ? Outcome::kFailure : Outcome::kSuccess, Outcome::kNeutral);
    failures += bad ? 1 : 0;
  }
  for (int i = 0; i < 10; ++i) {
    const Result<Assignment> pair = table.pick();
    REQUIRE(pair.ok());
    prefills.insert(pair->prefill);
    table.report(*pair, Outcome::kSuccess, Outcome::kSuccess);
  }
  CHECK(prefills == std::set<std::string>{"q:1"});
  CHECK(table.members->counts(table.now).at({"prefill", "tripped"}) == 1);
  // One probe after a second; its success closes the breaker.
  table.now = table.now + Breaker::kFirstWait;
  table.answer("prefill", "p:1");
  table.answer("prefill", "q:1");
  table.answer("decode", "d:1");
  for (int i = 0; i < 4; ++i) {
    const Result<Assignment> pair = table.pick();
    REQUIRE(pair.ok());
    table.report(*pair, Outcome::kSuccess, Outcome::kSuccess);
  }
  CHECK(table.members->counts(table.now).at({"prefill", "ready"}) == 2);
}

TEST_CASE("router table: a pair shares model and KV layout") {
  Table table;
  table.add("prefill", "p:1");
  table.add("decode", "d:1");
  proto::Described other = Table::info("decode", "e:1");
  other.model = "big";
  other.fingerprint = "g";
  table.members->add_listed("decode", "e:1");
  table.members->on_described("e:1", Incarnation{1}, other, table.now);
  for (int i = 0; i < 8; ++i) {
    const Result<Assignment> pair = table.pick();
    REQUIRE(pair.ok());
    CHECK(pair->decode == "d:1");
  }
  CHECK(table.members->pick("big", {}, {}, table.now).status().code() == StatusCode::kUnavailable);
  CHECK(table.members->pick("none", {}, {}, table.now).status().code() == StatusCode::kNotFound);
  CHECK(table.members->models(table.now) == std::vector<std::string>{"big", "m"});
}

TEST_CASE("router table: pairs already tried are avoided while others are left") {
  Table table;
  table.add("prefill", "p:1");
  table.add("decode", "d:1");
  table.add("decode", "e:1");
  for (int i = 0; i < 6; ++i) {
    const Result<Assignment> pair = table.pick({"p:1>d:1"});
    REQUIRE(pair.ok());
    CHECK(pair->decode == "e:1");
  }
}

TEST_CASE("router table: workers to blame are avoided while others are left") {
  Table table;
  table.add("prefill", "p:1");
  table.add("prefill", "q:1");
  table.add("decode", "d:1");
  const std::vector<std::string> avoid = {"p:1", "d:1"};
  for (int i = 0; i < 4; ++i) {
    const Result<Assignment> pair = table.members->pick("", {}, avoid, table.now);
    REQUIRE(pair.ok());
    CHECK(pair->prefill == "q:1");
    CHECK(pair->decode == "d:1");
  }
}

TEST_CASE("router table: a member forgotten by discovery stays while it answers") {
  Table table;
  proto::Member member;
  member.role = "decode";
  member.control = "d:1";
  table.members->set_discovered({member});
  table.answer("decode", "d:1");
  table.members->set_discovered({});
  (void)table.members->take_silent(table.now);
  CHECK(table.pick().ok());
  table.now = table.now + kDeadAfter + Duration(1);
  CHECK(table.members->take_silent(table.now) == std::vector<std::string>{"d:1"});
  CHECK(table.members->addresses().empty());
}

TEST_CASE("router table: workers are shown with what is known of them") {
  Table table;
  table.add("decode", "d:1");
  REQUIRE(table.pick().ok());
  CHECK(table.members->json(table.now) ==
        R"({"workers":[{"address":"d:1","role":"decode","state":"ready","http":"http://d:1",)"
        R"("model":"m","incarnation":"0000000000000001","silent_ms":0,"breaker":"closed",)"
        R"("assigned":1,"load":{"queue":0,"running":0,"free_pages":0,"total_pages":0,)"
        R"("draining":false}}]})");
}
