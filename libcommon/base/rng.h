// Random numbers. Rng is injected where behaviour depends on chance (simulation replays a seed);
// ids and memory keys of a real process come from the kernel.
#pragma once

#include <cstdint>

namespace kvd {

// xoshiro256** seeded by splitmix64 (Blackman and Vigna, 2018). Not for secrets. Not thread-safe.
class Rng {
 public:
  explicit Rng(std::uint64_t seed);
  std::uint64_t next();
  // Uniform in [0, bound); bound > 0.
  std::uint64_t below(std::uint64_t bound);
  // Uniform in [0, 1).
  double uniform();
  bool chance(double probability) { return uniform() < probability; }

 private:
  std::uint64_t state_[4];
};

// From getrandom(2): never 0, top bit clear (so that it is a valid RoomId too).
std::uint64_t secure_random_u63();
// From getrandom(2): never 0.
std::uint64_t secure_random_u64();

// Stateless draw keyed by three numbers (splitmix64 over their mix): the same key gives the same
// draw on every host, so a stream of tokens continues across processes.
std::uint64_t counter_random(std::uint64_t seed, std::uint64_t stream, std::uint64_t position);
inline double to_unit(std::uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1.0p-53; }

}  // namespace kvd
