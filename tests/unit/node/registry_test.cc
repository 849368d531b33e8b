#include "node/registry.h"

#include <catch2/catch.hpp>
#include <memory>

#include "control/sim_channel.h"
#include "node/registry_client.h"

using namespace kvd;
using namespace kvd::node;

namespace {

constexpr Duration kDeadAfter{2'000'000'000};

// A registry on host "r" and workers that join it, on simulated time.
struct Site {
  struct Worker {
    std::unique_ptr<control::Channel> channel;
    std::unique_ptr<control::Messenger> messenger;
    std::unique_ptr<RegistryClient> client;
    bool running = true;
  };

  ManualClock clock;
  control::SimNetwork network{7, &clock, {}};
  std::unique_ptr<control::Channel> channel;
  std::unique_ptr<control::Messenger> messenger;
  std::unique_ptr<Registry> registry;
  std::vector<std::unique_ptr<Worker>> workers;
  std::uint64_t next_incarnation = 1;

  Site() { start_registry(); }

  void start_registry() {
    channel = network.open("r", "r:1");
    messenger = std::make_unique<control::Messenger>(channel.get(), Incarnation{next_incarnation++},
                                                     &clock, nullptr);
    registry = std::make_unique<Registry>(messenger.get(), kDeadAfter);
  }

  void stop_registry() {
    registry.reset();
    messenger.reset();
    channel.reset();
  }

  Worker& start_worker(const std::string& role, const std::string& address) {
    workers.push_back(std::make_unique<Worker>());
    Worker& worker = *workers.back();
    worker.channel = network.open(address, address);
    worker.messenger = std::make_unique<control::Messenger>(
        worker.channel.get(), Incarnation{next_incarnation++}, &clock, nullptr);
    worker.client =
        std::make_unique<RegistryClient>(worker.messenger.get(), "r:1", &clock, kDeadAfter);
    proto::Join self;
    self.role = role;
    self.control = address;
    self.http = "http://" + address;
    self.model = "m";
    if (!role.empty()) worker.client->set_self(self);
    REQUIRE(worker.client->open().ok());
    return worker;
  }

  void run(Duration duration) {
    const TimePoint end = clock.now() + duration;
    while (clock.now() < end) {
      while (network.step()) {
      }
      if (registry) {
        while (auto received = messenger->receive()) registry->on_message(*received, clock.now());
        registry->poll(clock.now());
      }
      for (auto& worker : workers) {
        if (!worker->running) continue;
        while (auto received = worker->messenger->receive()) worker->client->on_message(*received);
        worker->client->poll(clock.now());
      }
      clock.advance(Duration(10'000'000));
    }
  }
};

std::vector<std::string> names(const std::vector<proto::Member>& members) {
  std::vector<std::string> out;
  for (const proto::Member& member : members) out.push_back(member.role + " " + member.control);
  return out;
}

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("registry: who joins is listed to all who ask") {
  Site site;
  site.start_worker("prefill", "p:1");
  site.start_worker("decode", "d:1");
  Site::Worker& router = site.start_worker("", "x:1");
  site.run(Duration(1'200'000'000));
  CHECK(names(site.registry->members()) == Names{"decode d:1", "prefill p:1"});
  CHECK(names(router.client->members()) == Names{"decode d:1", "prefill p:1"});
  CHECK(router.client->members()[0].http == "http://d:1");
  CHECK(router.client->connected(site.clock.now()));
}

TEST_CASE("registry: a silent member is listed no longer, one that leaves goes at once") {
  Site site;
  Site::Worker& prefill = site.start_worker("prefill", "p:1");
  Site::Worker& decode = site.start_worker("decode", "d:1");
  site.run(Duration(1'000'000'000));
  decode.client->leave();
  site.run(Duration(100'000'000));
  CHECK(names(site.registry->members()) == Names{"prefill p:1"});
  prefill.running = false;
  site.run(Duration(1'000'000'000));
  CHECK(names(site.registry->members()) == Names{"prefill p:1"});
  site.run(Duration(1'600'000'000));
  CHECK(site.registry->members().empty());
}

TEST_CASE("registry: a worker restarted at its address replaces the run before") {
  Site site;
  Site::Worker& old = site.start_worker("decode", "d:1");
  site.run(Duration(600'000'000));
  const std::uint64_t before = site.registry->members().at(0).incarnation;
  old.running = false;
  old.client.reset();
  old.messenger.reset();
  old.channel.reset();
  site.start_worker("decode", "d:1");
  site.run(Duration(600'000'000));
  REQUIRE(site.registry->members().size() == 1);
  CHECK(site.registry->members()[0].incarnation != before);
}

TEST_CASE("registry: load travels with each Join and is no change of membership") {
  Site site;
  Site::Worker& worker = site.start_worker("decode", "d:1");
  site.run(Duration(600'000'000));
  const std::uint64_t version = site.registry->version();
  proto::Load load;
  load.running = 5;
  worker.client->set_load(load);
  site.run(Duration(600'000'000));
  CHECK(site.registry->members().at(0).load.running == 5);
  CHECK(site.registry->version() == version);
}

TEST_CASE("registry: when it is gone the known members stay") {
  Site site;
  site.start_worker("prefill", "p:1");
  Site::Worker& decode = site.start_worker("decode", "d:1");
  site.run(Duration(1'000'000'000));
  site.stop_registry();
  site.run(Duration(10'000'000'000));
  CHECK(names(decode.client->members()) == Names{"decode d:1", "prefill p:1"});
  CHECK_FALSE(decode.client->connected(site.clock.now()));
}

TEST_CASE("registry: after its restart a member that still beats stays, a dead one goes") {
  Site site;
  Site::Worker& beating = site.start_worker("prefill", "p:1");
  Site::Worker& dead = site.start_worker("prefill", "q:1");
  Site::Worker& decode = site.start_worker("decode", "d:1");
  site.run(Duration(1'000'000'000));
  site.stop_registry();
  // Neither reaches the new registry, but one still beats to decode.
  beating.running = false;
  dead.running = false;
  site.start_registry();
  for (int i = 0; i < 20; ++i) {
    decode.client->seen("p:1", site.clock.now());
    site.run(Duration(500'000'000));
  }
  CHECK(names(site.registry->members()) == Names{"decode d:1"});
  CHECK(names(decode.client->members()) == Names{"decode d:1", "prefill p:1"});
}

TEST_CASE("registry: a wrong Join is refused and changes nothing") {
  Site site;
  auto& worker = site.start_worker("decode", "d:1");
  proto::Join self;
  self.role = "admin";
  self.control = "d:1";
  worker.client->set_self(self);
  site.run(Duration(600'000'000));
  CHECK(site.registry->members().empty());
  self.role = "decode";
  self.control = "nowhere";
  worker.client->set_self(self);
  site.run(Duration(600'000'000));
  CHECK(site.registry->members().empty());
  self.control = "d:1";
  worker.client->set_self(self);
  site.run(Duration(600'000'000));
  CHECK(names(site.registry->members()) == Names{"decode d:1"});
}

TEST_CASE("registry: with keys a role must be the one its key is listed for") {
  Site site;
  control::KeyRing keys;
  keys.peers.push_back({std::string(40, 'k'), "prefill", "p:1"});
  Registry registry(site.messenger.get(), kDeadAfter, &keys);
  control::Received received;
  received.from = 1;
  received.identity = std::string(40, 'k');
  const auto join = [&](const std::string& role, const std::string& address) {
    proto::Join message;
    message.role = role;
    message.control = address;
    proto::Envelope header;
    header.from = Incarnation{9};
    const Result<proto::Envelope> decoded =
        proto::decode_envelope(proto::encode(std::move(header), message));
    REQUIRE(decoded.ok());
    received.envelope = *decoded;
    registry.on_message(received, site.clock.now());
    return registry.members().size();
  };
  CHECK(join("decode", "p:1") == 0);
  CHECK(join("prefill", "q:1") == 0);
  CHECK(join("prefill", "p:1") == 1);
  // A key with two lines has both roles; another key cannot take a member's place.
  keys.peers.push_back({std::string(40, 'k'), "decode", ""});
  CHECK(join("decode", "d:1") == 2);
  keys.peers.push_back({std::string(40, 'x'), "decode", ""});
  received.identity = std::string(40, 'x');
  CHECK(join("decode", "d:1") == 2);
  CHECK(join("decode", "e:1") == 3);
  received.identity = std::string(40, 'k');
  CHECK(registry.members().size() == 3);
}

TEST_CASE("registry: lost and doubled messages change nothing in the end") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Site site;
    control::SimChannelFaults faults;
    faults.loss = 0.3;
    faults.duplicate = 0.3;
    faults.reorder = true;
    faults.jitter = Duration(200'000'000);
    site.network.set_faults(faults);
    site.start_worker("prefill", "p:1");
    Site::Worker& decode = site.start_worker("decode", "d:1");
    site.run(Duration(20'000'000'000));
    site.network.set_faults({});
    site.run(Duration(2'000'000'000));
    INFO("seed " << seed);
    CHECK(names(decode.client->members()) == Names{"decode d:1", "prefill p:1"});
  }
}
