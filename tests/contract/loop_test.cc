// Waiting on descriptors, as the daemons' event loop does it.
#include <poll.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <thread>

#include "contract/world.h"

namespace kvd::fabric::contract {
namespace {

// Polls until the endpoint has nothing and says that it may be waited for.
bool settle(Link& link) {
  for (int i = 0; i < 1000; ++i) {
    const std::size_t before = link.done.size() + link.seen.size();
    link.poll();
    if (link.done.size() + link.seen.size() != before) continue;
    if (link.sender->may_wait() && link.receiver->may_wait()) return true;
  }
  return false;
}

std::vector<std::string> with_descriptor() {
  std::vector<std::string> out;
  for (const std::string& name : present()) {
    auto world = make_world(name);
    if (Link(world.get(), 64).receiver->wait_fd() >= 0) out.push_back(name);
  }
  return out;
}

}  // namespace

TEST_CASE(
    "contract: the descriptor is quiet when idle and wakes for remote data, again and again") {
  const std::string provider = GENERATE(from_range(with_descriptor()));
  INFO(provider);
  auto world = make_world(provider);
  Link link(world.get(), 4096);
  if (!link.capabilities().remote_cq_data) return;
  const Bytes source = pattern(4096, 1);
  REQUIRE(link.post(source, 0, 1, true, 1).ok());
  REQUIRE(link.until([&] { return link.completed(1) && link.seen.size() == 1; }));
  const int fd = link.receiver->wait_fd();
  for (std::uint64_t round = 2; round <= 30; ++round) {
    // rxm may look at its connections now and then: a few wakes for nothing are allowed, spinning
    // is not.
    bool quiet = false;
    for (int i = 0; i < 50 && !quiet; ++i) {
      REQUIRE(settle(link));
      quiet = !readable(fd, 2);
    }
    REQUIRE(quiet);
    // Posted without another poll of the receiver: it was asked whether it may sleep, and sleeps.
    const LocalPiece local{source.data(), source.size()};
    const RemotePiece target = link.at(0, source.size());
    REQUIRE(link.sender
                ->write(link.peer, {.local = {&local, 1},
                                    .remote = {&target, 1},
                                    .context = round,
                                    .remote_data = round})
                .ok());
    REQUIRE(readable(fd, 2000));
    REQUIRE(link.until([&] { return link.seen.size() == round; }));
    CHECK(link.seen.back().data == round);
  }
}

TEST_CASE("contract: a target that only keeps moving takes the bytes, and reaps nothing") {
  const std::string provider = GENERATE(from_range(present()));
  INFO(provider);
  auto world = make_world(provider);
  constexpr std::size_t kBytes = 1 << 20;
  Link link(world.get(), kBytes);
  if (!link.capabilities().remote_cq_data) return;
  REQUIRE(link.post(pattern(64, 1), 0, 1, true, 1).ok());
  REQUIRE(link.until([&] { return link.completed(1) && link.seen.size() == 1; }));
  for (std::uint64_t round = 2; round <= 10; ++round) {
    const Bytes source = pattern(kBytes, round);
    REQUIRE(link.post(source, 0, round, true, round).ok());
    std::array<Completion, 8> reaped;
    const auto step = [&] {
      const std::size_t count = link.sender->poll(reaped);
      link.done.insert(link.done.end(), reaped.begin(), reaped.begin() + count);
      link.receiver->keep_moving();
    };
    // `local` copies in poll() alone.
    if (looks_for_data(link.capabilities()) > 1) {
      REQUIRE(run_until(*world, step, [&] { return link.memory == source; }));
      // Nobody falls asleep over what was taken in and not reaped.
      const int fd = link.receiver->wait_fd();
      CHECK((fd < 0 || !link.receiver->may_wait() || readable(fd, 0)));
    }
    REQUIRE(link.until([&] { return link.seen.size() == round && link.completed(round); }));
    CHECK(link.seen.back().data == round);
    CHECK(link.memory == source);
  }
  CHECK(link.failed() == 0);
}

TEST_CASE("contract: an event loop that only waits on descriptors misses nothing") {
  const std::string provider = GENERATE(from_range(with_descriptor()));
  INFO(provider);
  auto world = make_world(provider);
  // Connection set-up, flow of many writes, delivery-complete answers: each must wake its side.
  for (int session = 0; session < 5; ++session) {
    Link link(world.get(), 16u << 20);
    const Bytes source = pattern(1u << 20, 1);
    std::size_t posted = 0;
    int timeouts = 0;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (link.done.size() < 16 && std::chrono::steady_clock::now() < end) {
      const LocalPiece local{source.data(), source.size()};
      const RemotePiece target = link.at(posted << 20, 1u << 20);
      if (posted < 16 && posted < link.done.size() + 4 &&
          link.sender
              ->write(link.peer, {.local = {&local, 1},
                                  .remote = {&target, 1},
                                  .context = posted + 1,
                                  .delivery_complete = true})
              .ok()) {
        ++posted;
      }
      const std::size_t before = link.done.size();
      link.poll();
      if (link.done.size() != before) continue;
      if (!link.sender->may_wait() || !link.receiver->may_wait()) continue;
      pollfd fds[2] = {{link.sender->wait_fd(), POLLIN, 0}, {link.receiver->wait_fd(), POLLIN, 0}};
      if (::poll(fds, 2, 1000) == 0) ++timeouts;
    }
    CHECK(link.succeeded() == 16);
    CHECK(timeouts == 0);
  }
}

TEST_CASE("contract: a thread that sleeps on the descriptor is woken by another thread's write") {
  const std::string provider = GENERATE(from_range(with_descriptor()));
  INFO(provider);
  auto world = make_world(provider);
  Link link(world.get(), 4096);
  if (!link.capabilities().remote_cq_data) return;
  const Bytes source = pattern(4096, 1);
  REQUIRE(link.post(source, 0, 1, true, 1).ok());
  REQUIRE(link.until([&] { return link.completed(1) && link.seen.size() == 1; }));
  // The receiver's domain belongs to this thread from here on, the sender's stays with the main
  // one.
  std::size_t seen = 0;
  int timeouts = 0;
  std::thread decode([&] {
    std::array<Completion, 16> batch;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (seen < 50 && std::chrono::steady_clock::now() < end) {
      const std::size_t count = link.receiver->poll(batch);
      seen += count;
      if (count == 0 && link.receiver->may_wait() && !readable(link.receiver->wait_fd(), 3000)) {
        ++timeouts;
      }
    }
  });
  std::array<Completion, 16> batch;
  std::size_t completed = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  for (std::uint64_t i = 1; i <= 50; ++i) {
    const LocalPiece local{source.data(), source.size()};
    const RemotePiece target = link.at(0, source.size());
    CHECK(link.sender
              ->write(link.peer, {.local = {&local, 1},
                                  .remote = {&target, 1},
                                  .context = i,
                                  .delivery_complete = true,
                                  .remote_data = i})
              .ok());
    while (completed < i && std::chrono::steady_clock::now() < end) {
      completed += link.sender->poll(batch);
    }
  }
  decode.join();
  CHECK(completed == 50);
  CHECK(seen == 50);
  CHECK(timeouts == 0);
}

}  // namespace kvd::fabric::contract
