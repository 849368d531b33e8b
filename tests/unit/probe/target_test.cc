// ProbeTarget over the simulated fabric and control network: both sides stand here.
#include <catch2/catch.hpp>
#include <memory>

#include "base/rng.h"
#include "control/sim_channel.h"
#include "fabric/sim/sim_fabric.h"
#include "probe/interface_counts.h"
#include "probe/pattern.h"
#include "probe/probe_target.h"

namespace kvd::probe {
namespace {

constexpr std::uint64_t kPage = 4096;

TargetLimits small_limits() {
  TargetLimits out = worker_limits();
  out.buffer_bytes = 1u << 20;
  return out;
}

struct World {
  ManualClock clock;
  control::SimNetwork network{1, &clock, {}};
  fabric::SimFabric fabric{2, &clock, {}};
  std::unique_ptr<fabric::Domain> there = fabric.open_domain("there");
  std::unique_ptr<control::Channel> channel = network.open("there", "there:1");
  control::Messenger messenger{channel.get(), Incarnation{7}, &clock, nullptr};
  ProbeTarget target;

  explicit World(const TargetLimits& limits = small_limits())
      : target(limits, {there.get()}, &messenger, &clock) {}

  // One turn of everybody, a little later.
  void turn(Duration step = Duration(100'000)) {
    clock.advance(step);
    while (network.step() || fabric.step()) {
    }
    while (auto message = messenger.receive()) (void)target.on_message(*message);
    (void)target.poll();
  }
};

struct Client {
  World* world;
  std::string host;
  std::unique_ptr<control::Channel> channel;
  control::Messenger messenger;
  control::PeerRef peer;
  std::uint64_t request = 0;

  Client(World* w, const std::string& name, std::uint64_t incarnation)
      : world(w),
        host(name),
        channel(w->network.open(name, name + ":1")),
        messenger(channel.get(), Incarnation{incarnation}, &w->clock, nullptr),
        peer(*channel->dial("there:1")) {}

  void send(proto::Probe probe) {
    probe.request = ++request;
    REQUIRE(messenger.send(peer, Incarnation{}, probe).ok());
  }
  std::optional<proto::ProbeResult> answer(int turns = 2000) {
    for (int i = 0; i < turns; ++i) {
      while (auto message = messenger.receive()) {
        if (message->envelope.type != proto::MessageType::kProbeResult) continue;
        auto result = proto::decode_body<proto::ProbeResult>(message->envelope);
        REQUIRE(result.ok());
        if (result->request == request || result->state == "queued") return *result;
      }
      world->turn();
    }
    return std::nullopt;
  }
  proto::ProbeResult ask(const proto::Probe& probe) {
    send(probe);
    const auto result = answer();
    REQUIRE(result.has_value());
    return *result;
  }
};

proto::Probe op(const std::string& name) {
  proto::Probe out;
  out.op = name;
  return out;
}

proto::Probe open_probe() {
  proto::Probe out = op("open");
  out.provider = "sim";
  out.dead_after_ms = 500;
  return out;
}

proto::Probe verify_probe(std::uint32_t pages, std::uint64_t seed) {
  proto::Probe out = op("verify");
  out.bytes = kPage;
  out.count = pages;
  out.seed = seed;
  return out;
}

// Writes `pages` pages of the pattern where the session allows it.
void write_pages(Client* client, const proto::ProbeResult& opened, std::uint32_t pages,
                 std::uint64_t seed, fabric::Domain* domain, std::vector<std::byte>* memory) {
  PlainWriter writer(domain, memory->data(), memory->size(), &client->world->clock);
  for (std::uint64_t i = 0; i < pages; ++i) {
    fill_pattern(memory->data() + i * kPage, kPage, seed, i);
  }
  REQUIRE(writer
              .connect(opened.address, {opened.region_base, opened.region_bytes, opened.region_key},
                       opened.region_bytes)
              .ok());
  PlainOrder order;
  order.write_bytes = kPage;
  order.count = pages;
  order.depth = 4;
  order.in_place = true;
  REQUIRE(writer.start(order).ok());
  for (int i = 0; i < 20000 && writer.running(); ++i) {
    (void)writer.step();
    client->world->turn();
  }
  REQUIRE(writer.health().ok());
  REQUIRE_FALSE(writer.running());
}

TEST_CASE("probe target: pages that landed verify, and one wrong byte is found where it is") {
  World world;
  Client client(&world, "a", 11);
  auto domain = world.fabric.open_domain("a");
  std::vector<std::byte> memory(64 * kPage);
  const proto::ProbeResult opened = client.ask(open_probe());
  REQUIRE(opened.state == "done");
  CHECK(opened.region_bytes == 1u << 20);
  CHECK(opened.max_bytes_per_s == worker_limits().max_bytes_per_s);
  write_pages(&client, opened, 64, 5, domain.get(), &memory);
  proto::ProbeResult good = client.ask(verify_probe(64, 5));
  CHECK(good.pages == 64);
  CHECK(good.bad_pages == 0);
  CHECK(client.ask(verify_probe(64, 6)).bad_pages == 64);  // another epoch is another pattern

  fill_pattern(memory.data(), kPage, 5, 9);
  memory[123] ^= std::byte{1};
  PlainWriter writer(domain.get(), memory.data(), kPage, &world.clock);
  const fabric::RemoteRegion page{opened.region_base + 9 * kPage, kPage, opened.region_key};
  REQUIRE(writer.connect(opened.address, page, kPage).ok());
  PlainOrder order;
  order.write_bytes = kPage;
  order.count = 1;
  REQUIRE(writer.start(order).ok());
  for (int i = 0; i < 2000 && writer.running(); ++i) {
    (void)writer.step();
    world.turn();
  }
  const proto::ProbeResult bad = client.ask(verify_probe(64, 5));
  CHECK(bad.bad_pages == 1);
  CHECK(bad.first_bad_page == 9);
  CHECK(bad.first_bad_offset == 120);
  CHECK(client.ask(op("close")).state == "done");
  CHECK(world.target.sessions() == 0);
}

TEST_CASE("probe target: a second client waits in line, and is served when the first ends") {
  World world;
  Client first(&world, "a", 11), second(&world, "b", 12);
  REQUIRE(first.ask(open_probe()).state == "done");
  const proto::ProbeResult queued = second.ask(open_probe());
  CHECK(queued.state == "queued");
  CHECK(queued.ahead == 1);
  first.send(op("close"));
  const auto opened = second.answer();
  REQUIRE(opened.has_value());
  CHECK(opened->state == "done");
}

TEST_CASE("probe target: a client that is silent loses its session and its place") {
  World world;
  Client first(&world, "a", 11), second(&world, "b", 12), third(&world, "c", 13);
  REQUIRE(first.ask(open_probe()).state == "done");
  proto::Probe patient = open_probe();
  patient.dead_after_ms = 60'000;
  REQUIRE(second.ask(open_probe()).state == "queued");
  REQUIRE(third.ask(patient).ahead == 2);
  for (int i = 0; i < 7; ++i) world.turn(Duration(100'000'000));
  const auto opened = third.answer();
  REQUIRE(opened.has_value());
  CHECK(opened->state == "done");
  CHECK(world.target.sessions() == 1);
}

TEST_CASE("probe target: the line is bounded") {
  World world;
  std::vector<std::unique_ptr<Client>> clients;
  for (std::size_t i = 0; i < ProbeTarget::kMostWaiting + 2; ++i) {
    clients.push_back(std::make_unique<Client>(&world, "c" + std::to_string(i), 100 + i));
    const proto::ProbeResult result = clients.back()->ask(open_probe());
    CHECK(result.state == (i == 0                           ? "done"
                           : i <= ProbeTarget::kMostWaiting ? "queued"
                                                            : "refused"));
    if (result.state == "refused") CHECK(result.code == "busy");
  }
}

TEST_CASE("probe target: a worker refuses what only a serve does, and what does not fit") {
  World world;
  Client client(&world, "a", 11);
  proto::Probe reverse = open_probe();
  reverse.address = "x";
  reverse.region_bytes = 4096;
  CHECK(client.ask(reverse).code == "invalid");
  proto::Probe other = open_probe();
  other.provider = "efa";
  CHECK(client.ask(other).code == "no_provider");
  CHECK(client.ask(op("alive")).code == "no_session");
  proto::Probe pages = op("pages");
  pages.provider = "sim";
  pages.dead_after_ms = 500;
  pages.address = "x";
  pages.region_bytes = 4096;
  pages.pages.pages = 1;
  CHECK(client.ask(pages).code == "invalid");
  CHECK(world.target.sessions() == 0);
  REQUIRE(client.ask(open_probe()).state == "done");
  CHECK(client.ask(verify_probe(257, 1)).code == "invalid");  // 1 MiB has 256 pages
  proto::Probe write = op("write");
  write.bytes = kPage;
  write.count = write.depth = 1;
  CHECK(client.ask(write).code == "invalid");
  const proto::ProbeResult sample = client.ask(op("sample"));
  CHECK(sample.cpu_ns == 0);
  CHECK_FALSE(sample.interfaces.empty());
}

TEST_CASE("probe target: dial is left to its owner") {
  World world;
  Client client(&world, "a", 11);
  proto::Probe dial = op("dial");
  dial.peer = "b:1";
  dial.bytes = kPage;
  dial.time_ms = 1;
  client.send(dial);
  CHECK_FALSE(client.answer(20).has_value());
}

TEST_CASE("interface counts: what /proc/net/dev says, and its growth") {
  const auto before = parse_net_dev(
      "Inter-|   Receive                                                |  Transmit\n"
      " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets\n"
      "    lo: 1000 1 0 0 0 0 0 0 1000 1 0 0 0 0 0 0\n"
      "  eth0:2000 2 0 0 0 0 0 0 3000 3 0 0 0 0 0 0\n"
      " short: 1 2 3\n");
  REQUIRE(before.size() == 2);
  CHECK(before[1].name == "eth0");
  CHECK(before[1].received_bytes == 2000);
  CHECK(before[1].sent_bytes == 3000);
  auto after = before;
  after[1].sent_bytes += 50;
  after[0].received_bytes = 10;  // it was taken down in between
  const auto growth = interface_growth(before, after);
  REQUIRE(growth.size() == 1);
  CHECK(growth[0].sent_bytes == 50);
  CHECK(growth[0].received_bytes == 0);
}

TEST_CASE("pattern: a page tells its stream, its index and each place") {
  std::vector<std::byte> page(kPage);
  fill_pattern(page.data(), kPage, 3, 4);
  CHECK_FALSE(find_wrong(page.data(), kPage, 3, 4));
  CHECK(find_wrong(page.data(), kPage, 3, 5) == 0);
  CHECK(find_wrong(page.data(), kPage, 2, 4) == 0);
  std::swap(page[8], page[16]);
  CHECK(find_wrong(page.data(), kPage, 3, 4) == 8);
}

}  // namespace
}  // namespace kvd::probe
