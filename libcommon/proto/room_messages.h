// One room from opening to end: OpenRoom/RoomOpened/RoomRefused, Allocate, Abort and its answers,
// RoomFailed, Committed, RoomDone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/sampling.h"
#include "proto/envelope.h"

namespace kvd::proto {

// A run of pages [first, first + count).
struct PageRunInfo {
  std::uint32_t first = 0, count = 0;
  bool operator==(const PageRunInfo&) const = default;
};

// Decode -> prefill: where the prompt's pages go, in order of the prompt. All or nothing.
struct Allocate {
  static constexpr MessageType kType = MessageType::kAllocate;
  std::vector<PageRunInfo> runs;
  std::uint32_t slot = 0;        // < 2^20
  std::uint32_t generation = 0;  // < 2^12
};

// Decode -> prefill. The envelope's room is 0 (decode-first: prefill mints it) or the router's.
struct OpenRoom {
  static constexpr MessageType kType = MessageType::kOpenRoom;
  std::uint64_t request = 0;  // decode's own key; RoomOpened and RoomRefused repeat it
  std::vector<TokenId> prompt;
  SamplingParams sampling;
  std::uint32_t choice = 0;      // which of the n choices: part of the sampler's key
  std::uint64_t timeout_ms = 0;  // time left
  // Where the envelope's room is 0: the pages, if decode has a slot already. Else, without runs,
  // an Allocate follows.
  Allocate allocate;
};

// Prefill's last timings, nanoseconds on prefill's clock; nothing waits for it.
struct RoomDone {
  static constexpr MessageType kType = MessageType::kRoomDone;
  std::uint64_t transfer_total_ns = 0;    // first write posted -> commit record completed
  std::uint64_t transfer_exposed_ns = 0;  // compute ended -> commit record completed
  std::uint64_t commit_posted_ns = 0;     // CLOCK_MONOTONIC when the record was posted
  std::uint64_t bytes = 0;
  std::uint64_t writes = 0;
};
struct EndedRoom {  // one that a later room's RoomOpened tells of
  std::uint64_t room = 0;
  RoomDone done;
};

struct RoomOpened {  // the envelope's room is the room's id
  static constexpr MessageType kType = MessageType::kRoomOpened;
  static constexpr std::size_t kMaxDone = 32;
  std::uint64_t request = 0;
  bool allocated = false;         // the pages in OpenRoom were read: no Allocate follows
  std::uint64_t waited_ns = 0;    // at prefill, for other messages to go with
  std::vector<EndedRoom> done{};  // of the link's rooms before: no RoomDone follows
};

struct RoomRefused {
  static constexpr MessageType kType = MessageType::kRoomRefused;
  std::uint64_t request = 0;
  std::string code;  // "too_long" (400), "busy" (503), "draining" (503), "mismatch" (400)
  std::string text;
};

struct Abort {
  static constexpr MessageType kType = MessageType::kAbort;
  std::string reason;
};
struct AbortDrained {
  static constexpr MessageType kType = MessageType::kAbortDrained;
};
struct AbortUnproven {
  static constexpr MessageType kType = MessageType::kAbortUnproven;
  std::string text;
};

// Prefill -> decode. drained: nothing of this room is on its way, and nothing will be.
struct RoomFailed {
  static constexpr MessageType kType = MessageType::kRoomFailed;
  bool drained = false;
  std::string code;  // "engine", "deadline", "cancelled", "transfer", "draining"
  std::string text;
};

struct Committed {
  static constexpr MessageType kType = MessageType::kCommitted;
  std::uint32_t slot = 0, generation = 0;
};

}  // namespace kvd::proto
