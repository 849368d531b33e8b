// What the contract suite runs on: every fabric that this host has, and the simulated one, which
// is "sim" and, where the target copies, "sim;local".
//
// Each test is run once for each name of present(); what is absent is printed, with the reason, by
// one test of its own. Both ends of a link live in one thread: run() polls them in turn and lets
// the fabric move.
#pragma once

#include <catch2/catch.hpp>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "fabric/fabric.h"
#include "fabric/sim/sim_fabric.h"

namespace kvd::fabric::contract {

// Memory of one arena that is shared memory where this host has it: `local` writes from such memory
// only. Exhausting it (256 MiB) ends the test program.
class Arena {
 public:
  static std::byte* take(std::size_t bytes);
  static void give_back(const std::byte* data, std::size_t bytes);
  // All of it, for a domain that wants its sources registered.
  static std::span<std::byte> whole();
};

template <typename T>
struct ArenaAllocator {
  using value_type = T;
  ArenaAllocator() = default;
  template <typename U>
  ArenaAllocator(const ArenaAllocator<U>&) {}
  T* allocate(std::size_t n) { return reinterpret_cast<T*>(Arena::take(n * sizeof(T))); }
  void deallocate(T* data, std::size_t n) {
    Arena::give_back(reinterpret_cast<const std::byte*>(data), n * sizeof(T));
  }
  template <typename U>
  bool operator==(const ArenaAllocator<U>&) const {
    return true;
  }
};

using Bytes = std::vector<std::byte, ArenaAllocator<std::byte>>;

class World {
 public:
  virtual ~World() = default;
  virtual std::unique_ptr<Domain> open_domain(const std::string& host) = 0;
  // Lets the fabric move; false when nothing is left to happen by itself.
  virtual bool turn() = 0;
  virtual const Clock* clock() const = 0;
};

std::vector<std::string> present();
std::vector<std::string> absent();
std::unique_ptr<World> make_world(const std::string& provider);

// Polls `step` and turns the world until `done`; false when `limit` passed (or nothing moves any
// more).
bool run_until(World& world, const std::function<void()>& step, const std::function<bool()>& done,
               std::chrono::milliseconds limit = std::chrono::milliseconds(10'000));
// The same for a fixed time, to show that something does not happen.
void run_for(World& world, const std::function<void()>& step,
             std::chrono::milliseconds time = std::chrono::milliseconds(300));

// Whether the descriptor is or becomes readable within the time.
bool readable(int fd, int timeout_ms);

// Bytes that differ by place and by `salt`, and are never zero.
Bytes pattern(std::size_t bytes, std::uint64_t salt);

// A sender and a receiver of one world, each with an endpoint; the receiver has registered
// `memory`.
struct Link {
  Link(World* in, std::size_t bytes, Domain* sender_domain = nullptr,
       Domain* receiver_domain = nullptr);
  const Capabilities& capabilities() const;
  void poll();
  bool until(const std::function<bool()>& done,
             std::chrono::milliseconds limit = std::chrono::milliseconds(10'000));
  // Posts, polling while the fabric says "again"; the status of the post.
  Status post(const WriteRequest& request);
  // One piece at `offset`, from `source`.
  Status post(const Bytes& source, std::uint64_t offset, std::uint64_t context,
              bool delivery_complete = false, std::optional<std::uint64_t> data = std::nullopt);
  // The same for a temporary: the link keeps it as long as a write may read it.
  Status post(Bytes&& source, std::uint64_t offset, std::uint64_t context,
              bool delivery_complete = false, std::optional<std::uint64_t> data = std::nullopt);
  RemotePiece at(std::uint64_t offset, std::uint64_t bytes) const;
  std::size_t failed() const;
  std::size_t succeeded() const;
  bool completed(std::uint64_t context) const;

  World* world;
  std::unique_ptr<Domain> own_sender_domain, own_receiver_domain;
  Domain *sender_domain, *receiver_domain;
  std::deque<Bytes> kept;
  Bytes memory;
  std::unique_ptr<Endpoint> sender, receiver;
  std::unique_ptr<MemoryRegion> arena, region, source_region;
  RemoteRegion remote;  // stays when the region is closed
  PeerHandle peer = 0;
  std::vector<Completion> done;  // at the sender
  std::vector<Completion> seen;  // at the receiver
};

}  // namespace kvd::fabric::contract
