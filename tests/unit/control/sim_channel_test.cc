#include "control/sim_channel.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <vector>

namespace kvd::control {
namespace {

struct Net {
  ManualClock clock;
  SimNetwork network;
  explicit Net(SimChannelFaults faults = {}, std::uint64_t seed = 1)
      : network(seed, &clock, faults) {}

  void settle() {
    while (network.next_event() != kNever) {
      if (network.next_event() > clock.now()) clock.advance(network.next_event() - clock.now());
      while (network.step()) {
      }
    }
  }
};

std::vector<std::string> texts(Channel& channel) {
  std::vector<std::string> out;
  while (auto incoming = channel.receive()) out.emplace_back(incoming->bytes.view());
  return out;
}

}  // namespace

TEST_CASE("sim channel: a message comes after its latency, and the answer finds its way back") {
  Net net;
  auto a = net.network.open("h1", "a:1"), b = net.network.open("h2", "");
  const PeerRef to_a = *b->dial("a:1");
  CHECK(*b->dial("a:1") == to_a);
  REQUIRE(b->send(to_a, "ping").ok());
  CHECK_FALSE(net.network.step());
  CHECK_FALSE(a->receive());
  net.settle();
  CHECK(net.clock.now() == TimePoint{1 + 50'000});
  const auto ping = a->receive();
  REQUIRE(ping);
  CHECK(ping->bytes == "ping");
  REQUIRE(a->send(ping->from, "pong").ok());
  net.settle();
  const auto pong = b->receive();
  REQUIRE(pong);
  CHECK(pong->bytes == "pong");
  CHECK(pong->from == to_a);
  CHECK(a->address() == "a:1");
  CHECK(a->wait_fd() == -1);
}

TEST_CASE("sim channel: nobody there, then somebody, then another one at the same address") {
  Net net;
  auto b = net.network.open("h2", "b:1");
  const PeerRef to_a = *b->dial("a:1");
  CHECK(b->send(to_a, "lost").code() == StatusCode::kUnavailable);
  CHECK_FALSE(b->connected(to_a));
  auto a = net.network.open("h1", "a:1");
  CHECK(b->connected(to_a));
  REQUIRE(b->send(to_a, "one").ok());
  net.settle();
  const auto one = a->receive();
  REQUIRE(one);
  REQUIRE(b->send(to_a, "under way").ok());
  a.reset();
  CHECK(b->send(to_a, "lost").code() == StatusCode::kUnavailable);
  a = net.network.open("h1", "a:1");
  net.settle();
  CHECK_FALSE(a->receive());
  REQUIRE(b->send(to_a, "two").ok());
  net.settle();
  CHECK(texts(*a) == std::vector<std::string>{"two"});
}

TEST_CASE("sim channel: an answer to a dialler that is gone is unavailable") {
  Net net;
  auto a = net.network.open("h1", "a:1"), b = net.network.open("h2", "");
  REQUIRE(b->send(*b->dial("a:1"), "ping").ok());
  net.settle();
  const PeerRef from = a->receive()->from;
  b.reset();
  CHECK(a->send(from, "pong").code() == StatusCode::kUnavailable);
  CHECK(a->send(12345, "pong").code() == StatusCode::kUnavailable);
}

TEST_CASE("sim channel: a forgotten peer is heard no more, and dialling again gives another ref") {
  Net net;
  auto a = net.network.open("h1", "a:1"), b = net.network.open("h2", "");
  const PeerRef old = *b->dial("a:1");
  REQUIRE(b->send(old, "ping").ok());
  net.settle();
  REQUIRE(a->send(a->receive()->from, "pong").ok());
  b->forget(old);
  net.settle();
  CHECK_FALSE(b->receive());
  CHECK(b->send(old, "ping").code() == StatusCode::kUnavailable);
  CHECK(*b->dial("a:1") != old);
}

TEST_CASE(
    "sim channel: without reorder a direction keeps its order under jitter, with it it does not") {
  for (const bool reorder : {false, true}) {
    SimChannelFaults faults;
    faults.jitter = Duration(1'000'000);
    faults.reorder = reorder;
    Net net(faults);
    auto a = net.network.open("h1", "a:1"), b = net.network.open("h2", "");
    const PeerRef to_a = *b->dial("a:1");
    std::vector<std::string> sent;
    for (int i = 0; i < 100; ++i) {
      sent.push_back(std::to_string(i));
      REQUIRE(b->send(to_a, sent.back()).ok());
    }
    net.settle();
    std::vector<std::string> got = texts(*a);
    CHECK((got == sent) == !reorder);
    std::sort(got.begin(), got.end());
    std::sort(sent.begin(), sent.end());
    CHECK(got == sent);
  }
}

TEST_CASE(
    "sim channel: loss and duplicates come as often as asked, and the same for the same seed") {
  const auto run = [](std::uint64_t seed) {
    SimChannelFaults faults;
    faults.loss = 0.2;
    faults.duplicate = 0.3;
    Net net(faults, seed);
    auto a = net.network.open("h1", "a:1"), b = net.network.open("h2", "");
    const PeerRef to_a = *b->dial("a:1");
    std::vector<std::string> got;
    for (int i = 0; i < 1000; ++i) {
      REQUIRE(b->send(to_a, std::to_string(i)).ok());
      net.settle();
      for (std::string& text : texts(*a)) got.push_back(std::move(text));
    }
    return got;
  };
  const std::vector<std::string> got = run(7);
  CHECK(got.size() > 960);  // 1000 * 0.8 * 1.3 = 1040
  CHECK(got.size() < 1120);
  CHECK(run(7) == got);
  CHECK(run(8) != got);
}

TEST_CASE("sim channel: a partition swallows both directions until it heals") {
  Net net;
  auto a = net.network.open("h1", "a:1"), b = net.network.open("h2", "");
  auto c = net.network.open("h3", "");
  const PeerRef to_a = *b->dial("a:1");
  net.network.partition("h2", "h1");
  CHECK(b->send(to_a, "swallowed").ok());
  CHECK(c->send(*c->dial("a:1"), "other host").ok());
  net.settle();
  CHECK(texts(*a) == std::vector<std::string>{"other host"});
  net.network.heal("h1", "h2");
  CHECK(b->send(to_a, "again").ok());
  net.settle();
  CHECK(texts(*a) == std::vector<std::string>{"again"});
}

TEST_CASE("sim channel: a peer that does not read is full at last") {
  Net net;
  auto a = net.network.open("h1", "a:1"), b = net.network.open("h2", "");
  const PeerRef to_a = *b->dial("a:1");
  Status status;
  int sent = 0;
  for (; sent < 5000 && status.ok(); ++sent) status = b->send(to_a, "x");
  CHECK(status.code() == StatusCode::kResourceExhausted);
  CHECK(sent == 1001);
  net.settle();
  CHECK(texts(*a).size() == 1000);
  CHECK(b->send(to_a, "x").ok());
}

}  // namespace kvd::control
