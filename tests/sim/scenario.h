// One seed: two prefills, two decodes, 50 rooms or more, five faults or more. The invariants are
// the world's.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace kvd::sim {

// What went wrong, a line each; empty is good.
std::string run_seed(std::uint64_t seed);

// Seeds that failed once, with what they showed.
struct NamedSeed {
  std::uint64_t seed;
  const char* what;
};
std::span<const NamedSeed> named_seeds();

}  // namespace kvd::sim
