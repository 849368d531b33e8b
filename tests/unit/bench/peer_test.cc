// The sending side of kvd-bench pages as kvd-probe serve has it: what it lets a client ask for, and
// its session over the simulated fabric and control network.
#include <catch2/catch.hpp>
#include <limits>
#include <memory>

#include "common/memory.h"
#include "control/sim_channel.h"
#include "fabric/sim/sim_fabric.h"
#include "kvd-bench/pages_options.h"
#include "peer/pages_session.h"
#include "peer/times_codec.h"
#include "transfer/wire.h"

namespace kvd::tools {
namespace {

constexpr std::uint64_t kPlenty = 64ull << 30;
constexpr std::uint64_t kPage = 4096;

proto::PagesProbe small_pages() {
  proto::PagesProbe out;
  out.model = "pages";
  out.layers = out.kv_heads = 1;
  out.head_dim = 32;  // pages of 4 KiB
  out.page_size = 32;
  out.pages = 4;
  out.sets = 6;
  out.open = 4;
  out.digest = "sample";
  out.timeout_ms = 30'000;
  return out;
}

struct World {
  ManualClock clock;
  control::SimNetwork network{1, &clock, {}};
  fabric::SimFabric fabric{2, &clock, {}};
  std::unique_ptr<fabric::Domain> there = fabric.open_domain("there");
  std::unique_ptr<control::Channel> channel = network.open("there", "there:1");
  control::Messenger messenger{channel.get(), Incarnation{7}, &clock, nullptr};
  PagesSessions pages{{there.get()}, &messenger, &clock};
  probe::ProbeTarget target{{}, {there.get()}, &messenger, &clock};
  World() { target.offer(&pages); }

  void turn() {
    clock.advance(Duration(100'000));
    while (network.step() || fabric.step()) {
    }
    while (auto message = messenger.receive()) {
      if (!pages.on_message(*message)) (void)target.on_message(*message);
    }
    (void)target.poll();
  }
};

struct Client {
  World* world;
  std::unique_ptr<control::Channel> channel;
  control::Messenger messenger;
  control::PeerRef peer;
  std::unique_ptr<fabric::Domain> domain;
  std::vector<std::byte> memory = std::vector<std::byte>(16 * kPage);
  std::unique_ptr<probe::PlainTarget> plain;
  std::uint64_t request = 0;
  bool landed = false;

  Client(World* w, const std::string& name, std::uint64_t incarnation)
      : world(w),
        channel(w->network.open(name, name + ":1")),
        messenger(channel.get(), Incarnation{incarnation}, &w->clock, nullptr),
        peer(*channel->dial("there:1")),
        domain(w->fabric.open_domain(name)),
        plain(probe::PlainTarget::open(domain.get(), memory.data(), memory.size()).value()) {}

  proto::Probe open() const {
    proto::Probe out;
    out.op = "pages";
    out.provider = "sim";
    out.dead_after_ms = 500;
    out.address = plain->address();
    out.region_base = plain->region().base;
    out.region_bytes = memory.size();
    out.region_key = plain->region().key;
    out.pages = small_pages();
    return out;
  }
  proto::ProbeResult ask(proto::Probe probe) {
    probe.request = ++request;
    REQUIRE(messenger.send(peer, Incarnation{}, probe).ok());
    for (int i = 0; i < 2000; ++i) {
      while (auto message = messenger.receive()) {
        auto result = proto::decode_body<proto::ProbeResult>(message->envelope);
        if (result.ok() && result->request == request) return *result;
      }
      bool busy = false;
      landed = plain->step(&busy) || landed;
      world->turn();
    }
    FAIL("no answer to " << probe.op);
    return {};
  }
  proto::ProbeResult ask(const std::string& op) {
    proto::Probe probe;
    probe.op = op;
    return ask(probe);
  }
};

std::string refusal(const proto::PagesProbe& pages, std::uint64_t available = kPlenty) {
  const auto spec = checked_spec(pages, available);
  if (spec.ok()) return {};
  CHECK(spec.status().code() == StatusCode::kInvalidArgument);
  return spec.status().message();
}

}  // namespace

TEST_CASE("pages of a peer: what goes over the wire is what was meant") {
  SenderSpec spec = *checked_spec(small_pages(), kPlenty);
  CHECK(spec.layout.page_bytes() == kPage);
  CHECK(spec.pool_pages() == 6 * 5);
  spec.fragmentation = 0.5;
  spec.digest = transfer::Digest::kFull;
  spec.groups = spec.isolated = true;
  const SenderSpec back = *checked_spec(to_probe(spec), kPlenty);
  CHECK(back.layout == spec.layout);
  CHECK(back.pool_pages() == 6 * 8);
  CHECK(back.digest == transfer::Digest::kFull);
  CHECK((back.groups && back.isolated));
  CHECK(back.timeout == spec.timeout);
}

TEST_CASE("pages of a peer: numbers out of bounds are refused, and named") {
  const auto with = [](auto change) {
    proto::PagesProbe out = small_pages();
    change(out);
    return refusal(out);
  };
  using P = proto::PagesProbe;
  CHECK(with([](P&) {}).empty());
  CHECK_THAT(with([](P& p) { p.layers = 0; }), Catch::Contains("zero"));
  CHECK_FALSE(with([](P& p) { p.head_dim = 1u << 31; }).empty());
  CHECK_THAT(with([](P& p) { p.page_size = 33; }), Catch::Contains("page size"));
  CHECK_THAT(with([](P& p) { p.page_size = 1u << 20; }), Catch::Contains("page_size"));
  CHECK_THAT(with([](P& p) { p.sets = 1; }), Catch::Contains("sets"));
  CHECK_THAT(with([](P& p) { p.sets = 1u << 20; }), Catch::Contains("sets"));
  CHECK_THAT(with([](P& p) { p.open = 0; }), Catch::Contains("open"));
  CHECK_THAT(with([](P& p) { p.open = p.sets; }), Catch::Contains("open"));
  CHECK_THAT(with([](P& p) { p.pages = 0; }), Catch::Contains("pages"));
  CHECK_THAT(with([](P& p) { p.timeout_ms = 0; }), Catch::Contains("timeout_ms"));
  CHECK_THAT(with([](P& p) { p.digest = ""; }), Catch::Contains("digest"));
  CHECK_THAT(with([](P& p) { p.pages = 1u << 24; }), Catch::Contains("1048576"));
}

TEST_CASE("pages of a peer: a pool above 4 GiB, or above what the host has, is refused") {
  proto::PagesProbe pages = small_pages();
  pages.head_dim = 32768;  // pages of 4 MiB, a pool of 120 MiB
  CHECK(refusal(pages).empty());
  CHECK_THAT(refusal(pages, 128u << 20), Catch::Contains("120 MiB") && Catch::Contains("96 MiB"));
  pages.sets = 300;
  CHECK_THAT(refusal(pages), Catch::Contains("and 4 GiB") && Catch::Contains("--kv-memory"));
  CHECK(available_memory() > 1u << 20);
  CHECK(available_memory() < std::uint64_t{1} << 50);
}

TEST_CASE("pages of a peer: times are told as they were kept") {
  SentTimes times;
  times.room = std::numeric_limits<std::uint64_t>::max() - 5;
  times.started_ns = 1'000'000'000'007;
  times.transfer_exposed_ns = -3;
  times.pieces = 9;
  const std::string packed = pack_times({times, times});
  CHECK(packed.size() == 2 * proto::ProbeBounds::kTimesBytes);
  const auto back = unpack_times(packed + "x");
  REQUIRE(back.size() == 2);
  CHECK(back[1].room == times.room);
  CHECK(back[1].started_ns == times.started_ns);
  CHECK(back[1].transfer_exposed_ns == -3);
  CHECK(back[1].pieces == 9);
}

TEST_CASE("pages of a peer: a session writes, fills, tells its times, and leaves its place") {
  World world;
  Client client(&world, "a", 11), other(&world, "b", 12);
  const proto::ProbeResult opened = client.ask(client.open());
  REQUIRE(opened.state == "done");
  CHECK_FALSE(opened.address.empty());
  CHECK(opened.boot_id == transfer::boot_id());
  CHECK(other.ask(other.open()).state == "queued");
  REQUIRE(client.plain->insert(opened.address).ok());

  proto::Probe write;
  write.op = "write";
  write.bytes = kPage;
  write.pieces = 4;
  write.depth = 2;
  write.count = 16;
  const proto::ProbeResult wrote = client.ask(write);
  CHECK(wrote.state == "done");
  CHECK(number_at(wrote.rounds, 0) > 0);
  CHECK(wrote.began_ns > 0);
  CHECK(client.landed);
  write.bytes = 1u << 20;  // more than the region has
  CHECK(client.ask(write).code == "invalid");

  CHECK(client.ask("fill").state == "done");
  const proto::ProbeResult synced = client.ask("sync");
  CHECK((synced.state == "done" && synced.times.empty() && synced.left == 0));
  CHECK(client.ask("sample").cpu_ns > 0);
  proto::Probe verify = write;
  verify.op = "verify";
  CHECK(client.ask(verify).code == "invalid");
  CHECK(client.ask(client.open()).code == "invalid");
  CHECK(client.ask("alive").state == "done");
  CHECK(other.ask("close").state == "done");  // from its place in the line
  CHECK(world.target.sessions() == 1);
  CHECK(client.ask("close").state == "done");
}

TEST_CASE("pages of a peer: what cannot be opened is refused, and the next client is served") {
  World world;
  Client client(&world, "a", 11);
  proto::Probe open = client.open();
  open.provider = "efa";
  CHECK(client.ask(open).code == "no_provider");
  open = client.open();
  open.pages.pages = 1u << 24;
  CHECK(client.ask(open).code == "invalid");
  CHECK(world.target.sessions() == 0);
  CHECK(client.ask(client.open()).state == "done");
  CHECK(world.pages.eager());
}

TEST_CASE("pages of a peer: a silent client's session ends, and its pages with it") {
  World world;
  Client client(&world, "a", 11), other(&world, "b", 12);
  REQUIRE(client.ask(client.open()).state == "done");
  for (int i = 0; i < 6000; ++i) world.turn();  // 600 ms
  CHECK(world.target.sessions() == 0);
  CHECK_FALSE(world.pages.eager());
  CHECK(other.ask(other.open()).state == "done");
}

TEST_CASE("pages of a peer: options that go with --peer only, or not with it, are told apart") {
  PagesOptions options;
  options.pages = 1;
  CHECK(check_pages(options).ok());
  options.keys = "file";
  CHECK_FALSE(check_pages(options).ok());
  options.peer = "10.0.0.2:7300";
  CHECK(check_pages(options).ok());
  options.pin = {0};
  CHECK(check_pages(options).ok());
  options.pin = {0, 1};
  CHECK_THAT(check_pages(options).status().message(), Catch::Contains("one CPU"));
}

}  // namespace kvd::tools
