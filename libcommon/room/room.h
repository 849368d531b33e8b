// The states of a room and every way from one to the next, for both ends: the sender (prefill) and
// the receiver (decode). One constexpr table; kvd-protocol.7 prints the same table and a test
// compares them.
//
// Invariants: only a failed room has a drain status, and every failed room has one. Success is
// reached by a checked commit only. A receiver gives pages and slot back only by entering Success
// or Failed/Proven, and nothing that carries the name of time leads there.
//
// Pure: no I/O, no clock, no threads, no logging, no allocation. Any thread. What is not in the
// table is defined all the same: ignored (late, repeated: counted by the caller) or a violation
// (the peer broke the protocol: the link ends).
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string_view>

#include "base/check.h"
#include "proto/envelope.h"

namespace kvd::room {

enum class Role : std::uint8_t { kSender, kReceiver };

enum class RoomState : std::uint8_t {
  kBootstrapping,    // OpenRoom is on its way, or waits for its other half
  kWaitingForInput,  // both ends know the room. Sender: the pages are known, nothing is posted.
                     // Receiver: waits for a slot, nothing is told to the peer
  kTransferring,  // pages are exposed to writes. Sender: the first was queued. Receiver: the pages
                  // went with OpenRoom or Allocate
  kSuccess,       // the commit record was checked (receiver), or completed (sender)
  kFailed,        // see Drain
};

// Of a failed room: can a write of it still be on its way?
enum class Drain : std::uint8_t {
  kNone,      // not failed
  kPending,   // it can; the proof is being made
  kProven,    // it cannot
  kUnproven,  // it can, and no proof will come over this link: only a fence helps
};

enum class Event : std::uint8_t {
  kOpened,        // receiver: RoomOpened
  kRefused,       // receiver: RoomRefused
  kAllocate,      // sender: valid pages came; receiver: a slot is leased, pages go out (before
                  // kOpened: they went with OpenRoom)
  kSources,       // sender: all source pages are leased
  kWriting,       // sender: the first write is queued
  kCommit,        // sender: the record completed; receiver: a valid record came
  kBadCommit,     // receiver: a record came that is not valid
  kAbort,         // sender: Abort; receiver: whoever asked went away
  kGiveUp,        // receiver: the deadline passed, or the prefill was removed
  kFail,          // sender: engine, deadline or other half failed; receiver: RoomFailed, drained
  kFailUnproven,  // receiver: RoomFailed, not drained
  kDrained,       // sender: the drain is proven; receiver: AbortDrained
  kUnproven,      // receiver: AbortUnproven
  kLinkEnd,       // sender: the link ended, its endpoint is closed
  kFenced,        // receiver: the link ended, and the peer can write nothing any more
  kLost,          // receiver: the link ended without such a proof
};
constexpr std::size_t kEvents = 16;

enum class Action : std::uint8_t {
  // Sender.
  kLeaseSources,   // take all source pages, or wait for them in line
  kStartCompute,   // hand the job to the engine
  kCancelCompute,  // if the engine has the job
  kPurge,          // drop what is queued and not posted
  kBeginDrain,     // posted writes complete, then the scratch write: then kDrained
  kSendDrained,    // AbortDrained if an Abort came, else RoomFailed with drained
  kSendUnproven,   // AbortUnproven if an Abort came, else RoomFailed without drained
  kSendDone,       // RoomDone
  kFinish,         // when the engine has given the pages up: release them, tell the host
  // Receiver.
  kLeaseSlot,  // take a slot, or wait for one in line
  kSendAllocate,
  kSendAbort,
  kQuarantine,  // the lease ends, the proof is missing
  kRelease,     // pages and slot go back; the proof is the event
  kFreeSlot,    // only the slot: the lease goes on with the sequence
  kReportCommitted,
  kReportFailed,
  kEndLink,  // fence the peer
};

// At most kMax actions, in the order in which they are to be done.
class Actions {
 public:
  static constexpr std::size_t kMax = 4;
  constexpr Actions() = default;
  constexpr Actions(std::initializer_list<Action> list) {
    for (Action action : list) items_[count_++] = action;
  }
  constexpr const Action* begin() const { return items_.data(); }
  constexpr const Action* end() const { return items_.data() + count_; }
  constexpr std::size_t size() const { return count_; }
  constexpr bool has(Action wanted) const {
    for (Action action : *this) {
      if (action == wanted) return true;
    }
    return false;
  }
  constexpr bool operator==(const Actions& other) const {
    if (count_ != other.count_) return false;
    for (std::size_t i = 0; i < count_; ++i) {
      if (items_[i] != other.items_[i]) return false;
    }
    return true;
  }

 private:
  std::array<Action, kMax> items_{};
  std::uint8_t count_ = 0;
};

enum class Verdict : std::uint8_t {
  kTaken,
  kIgnored,    // late or repeated; nothing changes
  kViolation,  // the peer cannot have meant it; nothing changes, the link must end
};

struct Transition {
  Verdict verdict = Verdict::kIgnored;
  RoomState state = RoomState::kBootstrapping;
  Drain drain = Drain::kNone;
  Actions actions;
};

// One row of the table: kTaken or kViolation. All other triples are ignored.
struct Row {
  Role role;
  RoomState state;
  Drain drain;
  Event event;
  Transition to;
};
std::span<const Row> table();

// A state that does not exist (drain without failure, or the reverse) is a bug: KVD_CHECK.
Transition transition(Role role, RoomState state, Drain drain, Event event);

// The event that a control message is for this role; none for messages that are not of a room.
// `drained` is RoomFailed's field.
std::optional<Event> event_of(Role role, proto::MessageType type, bool drained);

// True when no event can change the room any more: it may be forgotten.
constexpr bool is_over(RoomState state, Drain drain) {
  return state == RoomState::kSuccess || (state == RoomState::kFailed && drain == Drain::kProven);
}

std::string_view to_string(Role role);
std::string_view to_string(RoomState state);
std::string_view to_string(Drain drain);
std::string_view to_string(Event event);
std::string_view to_string(Action action);
std::string_view to_string(Verdict verdict);

}  // namespace kvd::room
