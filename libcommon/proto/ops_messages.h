// Operations and discovery: Error, StaleIncarnation, Drain, Leases, Probe/ProbeResult,
// Join/Leave/Members.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "proto/envelope.h"
#include "proto/link_messages.h"

namespace kvd::proto {

struct StaleIncarnation {
  static constexpr MessageType kType = MessageType::kStaleIncarnation;
  std::uint64_t incarnation = 0;  // who answers here now
};

struct Error {
  static constexpr MessageType kType = MessageType::kError;
  std::string code;  // "malformed", "version", "unknown_type", "unexpected", "unauthorized"
  std::string text;
  std::uint64_t seq = 0;  // of the offender
};

// Asks a worker to drain; answered with Described (load.draining true), and again when asked.
struct Drain {
  static constexpr MessageType kType = MessageType::kDrain;
};

struct LeaseReport {
  std::uint64_t room = 0, peer = 0;
  bool quarantined = false;
  std::uint64_t age_ms = 0;
  std::uint32_t pages = 0;
  std::string ranges;   // "14-44,60"
  std::string missing;  // the proof that is waited for
};
// Request: empty. Reply: the leases and the counts.
struct Leases {
  static constexpr MessageType kType = MessageType::kLeases;
  bool reply = false;
  std::vector<LeaseReport> leases;
  std::uint32_t free = 0, leased = 0, sealed = 0, quarantined = 0;
};

// `ping` and `mesh`: what the far side is asked to do, and what it saw. `params` and `result` are
// JSON.
struct Probe {
  static constexpr MessageType kType = MessageType::kProbe;
  std::uint64_t request = 0;
  std::string params;
};
struct ProbeResult {
  static constexpr MessageType kType = MessageType::kProbeResult;
  std::uint64_t request = 0;
  std::string result;
};

// Worker -> registry, every 500 ms; answered with Members.
struct Join {
  static constexpr MessageType kType = MessageType::kJoin;
  std::string role;     // empty: only asks for Members
  std::string control;  // HOST:PORT that others dial
  std::string http;
  std::string model;
  Load load;
};
struct Leave {
  static constexpr MessageType kType = MessageType::kLeave;
};
struct Member {
  std::string role, control, http, model;
  std::uint64_t incarnation = 0;
  Load load;
};
struct Members {
  static constexpr MessageType kType = MessageType::kMembers;
  std::vector<Member> members;
};

}  // namespace kvd::proto
