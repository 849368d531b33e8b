// What the tests of rooms and links share.
#pragma once

#include <catch2/catch.hpp>

#include "sim/world.h"

namespace kvd::sim {

inline constexpr Duration kMinute{60'000'000'000};

inline void settle(World* world) {
  CHECK(world->run_until([&] { return world->quiet(); }));
  world->check_end();
  for (const std::string& violation : world->violations()) FAIL_CHECK(violation);
}

inline const Request& wait_for(World* world, Decode* decode, std::uint64_t id) {
  world->run_until([&] { return decode->requests[id].outcome != Outcome::kOpen; });
  return decode->requests[id];
}

inline bool has_local() {
  const auto here = fabric::available_providers("127.0.0.1", "");
  if (!here.empty() && here.front().name == "local") return true;
  WARN("skipped: " + fabric::explain_missing("local").message());
  return false;
}

}  // namespace kvd::sim
