#include "base/rng.h"

#include <sys/random.h>

#include <bit>

#include "base/check.h"
#include "base/ids.h"

namespace kvd {
namespace {

std::uint64_t splitmix64(std::uint64_t* state) {
  std::uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

}  // namespace

Rng::Rng(std::uint64_t seed) {
  for (std::uint64_t& word : state_) word = splitmix64(&seed);
}

std::uint64_t Rng::next() {
  const std::uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
  const std::uint64_t t = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= t;
  state_[3] = std::rotl(state_[3], 45);
  return result;
}

__extension__ typedef unsigned __int128 Wide;  // NOLINT: no such type in ISO C++

std::uint64_t Rng::below(std::uint64_t bound) {
  KVD_CHECK(bound > 0);
  // Lemire's multiply-shift with rejection: exactly uniform.
  const std::uint64_t threshold = -bound % bound;
  for (;;) {
    const auto product = static_cast<Wide>(next()) * bound;
    if (static_cast<std::uint64_t>(product) >= threshold) {
      return static_cast<std::uint64_t>(product >> 64);
    }
  }
}

double Rng::uniform() { return to_unit(next()); }

std::uint64_t secure_random_u64() {
  std::uint64_t value = 0;
  while (value == 0) {
    KVD_CHECK(getrandom(&value, sizeof value, 0) == static_cast<ssize_t>(sizeof value));
  }
  return value;
}

std::uint64_t secure_random_u63() {
  std::uint64_t value = 0;
  while (value == 0) value = secure_random_u64() >> 1;
  return value;
}

std::uint64_t counter_random(std::uint64_t seed, std::uint64_t stream, std::uint64_t position) {
  std::uint64_t state = seed;
  state = splitmix64(&state) ^ stream;
  state = splitmix64(&state) ^ position;
  return splitmix64(&state);
}

std::string hex(std::uint64_t value) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out(16, '0');
  for (int i = 15; i >= 0; --i, value >>= 4) out[static_cast<std::size_t>(i)] = kDigits[value & 15];
  return out;
}

}  // namespace kvd
