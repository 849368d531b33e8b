#include "sim/coverage.h"

#include <cstdio>
#include <span>

#include "sim/impossible.h"

// The linker sends every call of room::transition here (--wrap), so that the shipped code is
// counted as it is.
kvd::room::Transition counted_transition(kvd::room::Role role, kvd::room::RoomState state,
                                         kvd::room::Drain drain, kvd::room::Event event)  //
    __asm__("__wrap__ZN3kvd4room10transitionENS0_4RoleENS0_9RoomStateENS0_5DrainENS0_5EventE");
kvd::room::Transition real_transition(kvd::room::Role role, kvd::room::RoomState state,
                                      kvd::room::Drain drain, kvd::room::Event event)  //
    __asm__("__real__ZN3kvd4room10transitionENS0_4RoleENS0_9RoomStateENS0_5DrainENS0_5EventE");

namespace kvd::sim {
namespace {

std::size_t phase_of(room::RoomState state, room::Drain drain) {
  const auto index = static_cast<std::size_t>(state);
  return state == room::RoomState::kFailed ? index + static_cast<std::size_t>(drain) - 1 : index;
}

std::string phase_name(std::size_t phase) {
  constexpr std::size_t kFailed = static_cast<std::size_t>(room::RoomState::kFailed);
  if (phase < kFailed) return std::string(to_string(static_cast<room::RoomState>(phase)));
  return "Failed/" + std::string(to_string(static_cast<room::Drain>(phase - kFailed + 1)));
}

// Events that the table knows for this role.
bool has_event(room::Role role, room::Event event) {
  for (const room::Row& row : room::table()) {
    if (row.role == role && row.event == event) return true;
  }
  return false;
}

const char* const kCountNames[kCounts] = {
    "rooms opened",
    "requests committed",
    "requests failed",
    "requests aborted",
    "requests refused",
    "requests lost with their decode",
    "links fenced for a starving reservation",
    "posts refused (EAGAIN)",
    "lost writes that were reported as done",
    "writes that ended in an error",
    "pieces that landed after their write's error",
    "pieces that overtook an older write",
    "writes that found key or endpoint closed",
    "copies that their sender had given up",
    "control messages lost",
    "control messages duplicated",
    "control messages overtaken",
    "control messages cut off",
};

std::string line(const std::string& name, std::uint64_t hits, std::string_view remark = {}) {
  char text[160];
  std::snprintf(text, sizeof text, "  %-58s %12llu  ", name.c_str(),
                static_cast<unsigned long long>(hits));
  return text + std::string(remark) + "\n";
}

std::string cell_name(room::Role role, std::size_t phase, room::Event event) {
  return std::string(to_string(role)) + " " + phase_name(phase) + " " +
         std::string(to_string(event));
}

// Calls `visit(name, hits, why it is impossible or "")` for every cell.
template <typename Visit>
void for_cells(const Coverage& coverage, Visit visit) {
  for (const room::Role role : {room::Role::kSender, room::Role::kReceiver}) {
    for (std::size_t phase = 0; phase < kPhases; ++phase) {
      for (std::size_t e = 0; e < room::kEvents; ++e) {
        const auto event = static_cast<room::Event>(e);
        if (!has_event(role, event)) continue;
        const std::string name = cell_name(role, phase, event);
        visit(name, coverage.events[static_cast<std::size_t>(role)][phase][e],
              why_impossible(name));
      }
    }
  }
  for (std::size_t step = 0; step < kSteps; ++step) {
    for (std::size_t fault = 0; fault < kFaults; ++fault) {
      const std::string name = std::string(to_string(static_cast<Step>(step))) + " x " +
                               std::string(to_string(static_cast<Fault>(fault)));
      visit(name, coverage.faults[step][fault], why_impossible(name));
    }
  }
  for (std::size_t i = 0; i < kCounts; ++i) {
    visit(std::string(kCountNames[i]), coverage.counts[i], std::string_view());
  }
}

}  // namespace

std::string_view to_string(Fault fault) {
  constexpr std::string_view kNames[kFaults] = {
      "kill prefill",    "kill decode",      "stop prefill",     "stop decode",
      "cut both",        "cut fabric",       "cut control",      "drop prefill",
      "drop decode",     "endless again",    "messages lost",    "messages doubled",
      "messages turned", "messages delayed", "starvation",       "unordered",
      "no remote data",  "false ok",         "land after error", "land after region close",
      "reconnects",      "target pulls",
  };
  return kNames[static_cast<std::size_t>(fault)];
}

std::string_view to_string(Step step) {
  constexpr std::string_view kNames[kSteps] = {"waiting", "opening",  "computing", "writing",
                                               "closing", "draining", "decoding"};
  return kNames[static_cast<std::size_t>(step)];
}

void Coverage::add(const Coverage& other) {
  static_assert(sizeof(Coverage) % sizeof(std::uint64_t) == 0);
  constexpr std::size_t kCells = sizeof(Coverage) / sizeof(std::uint64_t);
  const std::span<std::uint64_t> mine(&events[0][0][0], kCells);
  const std::span<const std::uint64_t> theirs(&other.events[0][0][0], kCells);
  for (std::size_t i = 0; i < kCells; ++i) mine[i] += theirs[i];
}

Coverage& coverage() {
  static Coverage here;
  return here;
}

void count(Step step, Fault fault) {
  ++coverage().faults[static_cast<std::size_t>(step)][static_cast<std::size_t>(fault)];
}

void count_world(const World& world) {
  auto& counts = coverage().counts;
  counts[0] += world.opened;
  for (const auto& decode : world.decodes) {
    for (const auto& [id, request] : decode->requests) {
      ++counts[static_cast<std::size_t>(request.outcome)];  // none is open any more
    }
  }
  const fabric::SimFabric::Counts& fabric = world.fabric.counts();
  const control::SimNetwork::Counts& control = world.network.counts();
  const std::uint64_t more[] = {
      world.fenced,       fabric.refused_posts, fabric.false_ok,          fabric.errors,
      fabric.landed_late, fabric.overtaken,     fabric.refused_by_target, fabric.void_copies,
      control.lost,       control.duplicated,   control.overtaken,        control.cut};
  for (std::size_t i = 0; i < std::size(more); ++i) counts[6 + i] += more[i];
}

std::string print(const Coverage& coverage) {
  std::string text =
      "coverage: hits of (role, state, event), (step x fault), and what faults did\n";
  for_cells(coverage, [&](const std::string& name, std::uint64_t hits, std::string_view why) {
    text += line(name, hits, why.empty() ? std::string() : "impossible: " + std::string(why));
  });
  return text;
}

std::string missing(const Coverage& coverage) {
  std::string text;
  for_cells(coverage, [&](const std::string& name, std::uint64_t hits, std::string_view why) {
    if (hits == 0 && why.empty()) text += "never met: " + name + "\n";
    if (hits != 0 && !why.empty()) text += "met, though listed as impossible: " + name + "\n";
  });
  return text;
}

}  // namespace kvd::sim

kvd::room::Transition counted_transition(kvd::room::Role role, kvd::room::RoomState state,
                                         kvd::room::Drain drain, kvd::room::Event event) {
  using kvd::sim::coverage;
  ++coverage().events[static_cast<std::size_t>(role)][kvd::sim::phase_of(state, drain)]
                     [static_cast<std::size_t>(event)];
  return real_transition(role, state, drain, event);
}
