// Ends: of an endpoint, of a region, of a peer; and what they may leave behind.
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "contract/world.h"

namespace kvd::fabric::contract {
namespace {

constexpr std::size_t kMiB = 1u << 20;

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

std::size_t landed_bytes(const Bytes& memory) {
  return memory.size() -
         static_cast<std::size_t>(std::count(memory.begin(), memory.end(), std::byte{0}));
}

}  // namespace

TEST_CASE(
    "contract: nothing lands after the target's endpoint is closed in the middle of a stream") {
  const std::string provider = GENERATE(from_range(present()));
  const int polls_before = GENERATE(1, 3, 8, 20);
  INFO(provider << ", closed after " << polls_before << " polls that saw bytes");
  auto world = make_world(provider);
  Link link(world.get(), 16 * kMiB);
  if (!link.capabilities().endpoint_close_fences) {
    WARN("skipped: closing an endpoint of " + provider + " is not established as a fence");
    return;
  }
  const std::size_t most = link.capabilities().max_write_bytes;
  const Bytes source = pattern(most, 3);
  for (std::size_t i = 0; i < 4; ++i) REQUIRE(link.post(source, i * most, i + 1, i == 3).ok());
  REQUIRE(link.until([&] { return landed_bytes(link.memory) > 0; }));
  for (int i = 0; i < polls_before; ++i) {
    link.poll();
    (void)world->turn();
  }
  link.receiver.reset();  // the region stays open: the endpoint alone must be the fence
  const Bytes after = link.memory;
  run_for(*world, [&] { link.poll(); });
  CHECK(link.memory == after);
  if (landed_bytes(after) < 4 * most) {
    // The last, delivery-complete write cannot have been proven.
    for (const Completion& completion : link.done) {
      if (completion.context == 4) CHECK_FALSE(completion.status.ok());
    }
  }
  // The sender goes on trying, and the memory is already in other hands.
  link.region.reset();
  std::fill(link.memory.begin(), link.memory.end(), std::byte{0});
  auto next = link.receiver_domain->open_endpoint().value();
  auto region = link.receiver_domain
                    ->register_memory(link.memory.data(), link.memory.size(), true, next.get())
                    .value();
  const LocalPiece local{source.data(), source.size()};
  const RemotePiece stale = link.at(0, source.size());
  run_for(*world, [&] {
    (void)link.sender->write(link.peer,
                             {.local = {&local, 1}, .remote = {&stale, 1}, .context = 9});
    link.poll();
    std::array<Completion, 4> batch;
    CHECK(next->poll(batch) == 0);
  });
  CHECK(landed_bytes(link.memory) == 0);
}

TEST_CASE("contract: closing one peer's endpoint leaves the other peer streaming") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  Link fenced(world.get(), 4 * kMiB);
  if (!fenced.capabilities().endpoint_per_peer) {
    WARN("skipped: " + provider + " shares its endpoint");
    return;
  }
  auto other_host = world->open_domain("prefill 2");
  Link other(world.get(), 64 * kMiB, other_host.get(), fenced.receiver_domain);
  const Bytes source = pattern(kMiB, 3);
  for (std::size_t i = 0; i < 4; ++i) REQUIRE(fenced.post(source, i * kMiB, i + 1).ok());
  for (std::size_t i = 0; i < 4; ++i) REQUIRE(other.post(source, i * kMiB, i + 1).ok());
  const auto both = [&] {
    fenced.poll();
    other.poll();
  };
  REQUIRE(run_until(*world, both, [&] {
    return landed_bytes(fenced.memory) > 0 && landed_bytes(other.memory) > 0;
  }));
  fenced.receiver.reset();
  const Bytes after = fenced.memory;
  for (std::size_t i = 4; i < 64; ++i) {
    REQUIRE(other.post(source, i * kMiB, i + 1, i == 63).ok());
    fenced.poll();
  }
  REQUIRE(run_until(*world, both, [&] { return other.completed(64); }));
  CHECK(other.failed() == 0);
  CHECK(landed_bytes(other.memory) == other.memory.size());
  CHECK(fenced.memory == after);
}

TEST_CASE("contract: a key is dead for writes posted after its region was closed") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  Link link(world.get(), kMiB);
  REQUIRE(link.post(pattern(64, 1), 0, 1, true).ok());
  REQUIRE(link.until([&] { return link.completed(1); }));
  link.region.reset();
  const Bytes before = link.memory;
  // The same memory, registered anew: the old key must not open it.
  link.region =
      link.receiver_domain
          ->register_memory(link.memory.data(), link.memory.size(), true, link.receiver.get())
          .value();
  CHECK(link.region->remote().key != link.remote.key);
  REQUIRE(link.post(pattern(kMiB, 2), 0, 2, true).ok());
  REQUIRE(link.until([&] { return link.completed(2); }));
  CHECK(link.failed() == 1);
  CHECK(link.memory == before);
}

TEST_CASE("contract: a region may outlive its endpoint, and an endpoint its region") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  auto domain = world->open_domain("decode");
  Bytes memory(4096);
  auto endpoint = domain->open_endpoint().value();
  auto region = domain->register_memory(memory.data(), 4096, true, endpoint.get()).value();
  auto again = domain->register_memory(memory.data(), 4096, true, endpoint.get()).value();
  CHECK(region->remote().key != again->remote().key);
  again.reset();
  endpoint.reset();
  region.reset();
  endpoint = domain->open_endpoint().value();
  CHECK(domain->register_memory(memory.data(), 4096, true, endpoint.get()).ok());
}

TEST_CASE("contract: a dead peer's write is never reported as delivered") {
  const std::string provider = GENERATE(from_range(present()));
  const bool connected = GENERATE(true, false);
  INFO(provider << (connected ? ", after a first write" : ", never connected"));
  auto world = make_world(provider);
  Link link(world.get(), kMiB);
  if (connected) {
    REQUIRE(link.post(pattern(64, 1), 0, 1, true).ok());
    REQUIRE(link.until([&] { return link.completed(1); }));
  }
  link.receiver.reset();
  link.done.clear();
  const Bytes source = pattern(4096, 2);
  const LocalPiece local{source.data(), source.size()};
  const RemotePiece target = link.at(0, source.size());
  std::uint64_t context = 100;
  run_for(*world, [&] {
    (void)link.sender->write(link.peer, {.local = {&local, 1},
                                         .remote = {&target, 1},
                                         .context = context++,
                                         .delivery_complete = true});
    link.poll();
  });
  CHECK(link.succeeded() == 0);
  CHECK(std::memcmp(link.memory.data(), source.data(), source.size()) != 0);
}

TEST_CASE("contract: after a refused write new endpoints carry on") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  auto from = world->open_domain("prefill"), to = world->open_domain("decode");
  for (std::uint64_t epoch = 1; epoch <= 5; ++epoch) {
    Link link(world.get(), kMiB, from.get(), to.get());
    const Bytes source = pattern(kMiB, epoch);
    REQUIRE(link.post(source, 0, 1, true).ok());
    REQUIRE(link.until([&] { return link.completed(1); }));
    REQUIRE(link.failed() == 0);
    REQUIRE(link.memory == source);
    link.remote.key ^= 1;
    REQUIRE(link.post(source, 0, 2, true).ok());
    REQUIRE(link.until([&] { return link.completed(2); }));
    REQUIRE(link.failed() == 1);
  }
}

TEST_CASE("contract: links that come and go leave no descriptor behind") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  auto from = world->open_domain("prefill"), to = world->open_domain("decode");
  const Bytes source = pattern(4096, 1);
  std::size_t before = 0;
  // rxm posts 64 MiB of receive buffers for each endpoint: slow to open.
  const int rounds = provider == "tcp;ofi_rxm" ? 30 : 200;
  for (int round = 0; round < rounds; ++round) {
    if (round == 5) before = open_descriptors();
    Link link(world.get(), 4096, from.get(), to.get());
    REQUIRE(link.post(source, 0, 1, true).ok());
    // Every third link ends in the middle, every other closes the target first.
    if (round % 3 != 0) REQUIRE(link.until([&] { return link.succeeded() == 1; }));
    if (round % 2 == 0) link.receiver.reset();
    link.poll();
  }
  CHECK(open_descriptors() == before);
}

TEST_CASE("contract: without free descriptors an endpoint does not open, and later it does") {
  const std::string provider = GENERATE(from_range(present()));
  if (provider.starts_with("sim")) return;  // it opens none
  INFO(provider);
  auto world = make_world(provider);
  auto domain = world->open_domain("decode");
  rlimit limit{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  const rlim_t soft = limit.rlim_cur;
  for (std::size_t spare = 0; spare < 12; ++spare) {
    limit.rlim_cur = open_descriptors() + spare;
    REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    const auto endpoint = domain->open_endpoint();
    limit.rlim_cur = soft;
    REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (endpoint.ok()) continue;
    CHECK(endpoint.status().message().find(provider) == 0);
  }
  CHECK(domain->open_endpoint().ok());
}

TEST_CASE("contract: many peers at once, each with its own endpoint") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  auto from = world->open_domain("prefill"), to = world->open_domain("decode");
  if (!from->capabilities().endpoint_per_peer) {
    WARN("skipped: " + provider + " shares its endpoint");
    return;
  }
  std::vector<std::unique_ptr<Link>> links;
  for (int i = 0; i < (provider == "tcp;ofi_rxm" ? 6 : 16); ++i) {
    links.push_back(std::make_unique<Link>(world.get(), kMiB, from.get(), to.get()));
  }
  std::vector<Bytes> sources;
  for (std::size_t i = 0; i < links.size(); ++i) sources.push_back(pattern(kMiB, i));
  for (std::size_t i = 0; i < links.size(); ++i) {
    REQUIRE(links[i]->post(sources[i], 0, 1, true, 1000 + i).ok());
  }
  REQUIRE(run_until(
      *world,
      [&] {
        for (auto& link : links) link->poll();
      },
      [&] {
        return std::all_of(links.begin(), links.end(), [](const auto& link) {
          return link->completed(1) && !link->seen.empty();
        });
      }));
  for (std::size_t i = 0; i < links.size(); ++i) {
    CHECK(links[i]->memory == sources[i]);
    CHECK(links[i]->seen.size() == 1);
    CHECK(links[i]->seen[0].data == 1000 + i);
  }
}

TEST_CASE("contract: a connection request that says nothing does not outlive its endpoint") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  if (!provider.starts_with("tcp")) return;  // only these have a listener that a socket can reach
  auto world = make_world(provider);
  Link doomed(world.get(), 4096);
  Link other(world.get(), 4096, doomed.sender_domain, doomed.receiver_domain);
  sockaddr_in address{};
  REQUIRE(doomed.receiver->address().size() == sizeof address);
  std::memcpy(&address, doomed.receiver->address().data(), sizeof address);
  const int socket_fd = socket(AF_INET, SOCK_STREAM, 0);
  REQUIRE(socket_fd >= 0);
  REQUIRE(connect(socket_fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
  run_for(
      *world, [&] { doomed.poll(); }, std::chrono::milliseconds(50));  // it is accepted
  doomed.receiver.reset();
  doomed.region.reset();
  const char junk[64] = {};
  (void)send(socket_fd, junk, sizeof junk, MSG_NOSIGNAL);
  // Under AddressSanitizer this finds a listener that is still pointed to.
  const Bytes source = pattern(4096, 1);
  REQUIRE(other.post(source, 0, 1, true).ok());
  REQUIRE(other.until([&] { return other.completed(1); }));
  CHECK(other.failed() == 0);
  CHECK(other.memory == source);
  close(socket_fd);
}

}  // namespace kvd::fabric::contract
