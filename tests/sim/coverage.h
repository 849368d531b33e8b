// What a run has met: each event of a room in each of its states, each fault at each step of a
// request. A simulation in which something never happens proves nothing about it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "room/room.h"
#include "sim/world.h"

namespace kvd::sim {

enum class Fault : std::uint8_t {
  // Strike at a moment.
  kKillPrefill,
  kKillDecode,
  kStopPrefill,
  kStopDecode,
  kCutBoth,
  kCutFabric,
  kCutControl,
  kDropPrefill,
  kDropDecode,
  kAgain,
  kLoss,
  kDuplicate,
  kReorder,
  kDelay,
  kStarve,
  // Hold for a whole run.
  kUnordered,
  kNoRemoteData,
  kFalseOk,
  kLandAfterError,
  kLandAfterRegionClose,
  kReconnect,
  kTargetPulls,
};
constexpr std::size_t kFaults = 22;
constexpr std::size_t kPhases = 7;  // states, and the drains of a failed room
constexpr std::size_t kCounts = 18;

std::string_view to_string(Fault fault);
std::string_view to_string(Step step);

// Plain numbers, so that processes can send it and add it up.
struct Coverage {
  using Cells = std::array<std::array<std::uint64_t, room::kEvents>, kPhases>;
  std::array<Cells, 2> events{};  // by role, phase, event
  std::array<std::array<std::uint64_t, kFaults>, kSteps> faults{};
  std::array<std::uint64_t, kCounts> counts{};

  void add(const Coverage& other);
};

// Of this process. Every call of room::transition is counted in it.
Coverage& coverage();
void count(Step step, Fault fault);
// Outcomes of requests, and how often faults have shown, at the end of a run.
void count_world(const World& world);

// The tables, and with `required` what is missing: cells that have no hits and no reason for it,
// and reasons for cells that have some.
std::string print(const Coverage& coverage);
std::string missing(const Coverage& coverage);

}  // namespace kvd::sim
