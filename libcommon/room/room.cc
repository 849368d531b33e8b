#include "room/room.h"

namespace kvd::room {
namespace {

using enum RoomState;
using enum Event;
using A = Action;

struct Phase {
  RoomState state;
  Drain drain;
};
constexpr Phase kB{kBootstrapping, Drain::kNone};
constexpr Phase kW{kWaitingForInput, Drain::kNone};
constexpr Phase kT{kTransferring, Drain::kNone};
constexpr Phase kOk{kSuccess, Drain::kNone};
constexpr Phase kPend{kFailed, Drain::kPending};
constexpr Phase kProv{kFailed, Drain::kProven};
constexpr Phase kUnpr{kFailed, Drain::kUnproven};

constexpr Row sender(Phase from, Event event, Phase to, Actions actions) {
  return {
      Role::kSender, from.state, from.drain, event, {Verdict::kTaken, to.state, to.drain, actions}};
}
constexpr Row receiver(Phase from, Event event, Phase to, Actions actions) {
  return {Role::kReceiver,
          from.state,
          from.drain,
          event,
          {Verdict::kTaken, to.state, to.drain, actions}};
}
constexpr Row violation(Role role, Phase from, Event event) {
  return {role, from.state, from.drain, event, {Verdict::kViolation, from.state, from.drain, {}}};
}

constexpr Row kTable[] = {
    // Before the first write nothing can be on its way: drained at once.
    sender(kB, kAllocate, kW, {A::kLeaseSources}),
    sender(kB, kAbort, kProv, {A::kSendDrained, A::kFinish}),
    sender(kB, kFail, kProv, {A::kSendDrained, A::kFinish}),
    sender(kB, kLinkEnd, kUnpr, {A::kSendUnproven, A::kFinish}),

    sender(kW, kSources, kW, {A::kStartCompute}),
    sender(kW, kWriting, kT, {}),
    sender(kW, kAbort, kProv, {A::kCancelCompute, A::kSendDrained, A::kFinish}),
    sender(kW, kFail, kProv, {A::kCancelCompute, A::kSendDrained, A::kFinish}),
    sender(kW, kLinkEnd, kUnpr, {A::kCancelCompute, A::kSendUnproven, A::kFinish}),

    sender(kT, kCommit, kOk, {A::kSendDone, A::kFinish}),
    sender(kT, kAbort, kPend, {A::kPurge, A::kCancelCompute, A::kBeginDrain}),
    sender(kT, kFail, kPend, {A::kPurge, A::kCancelCompute, A::kBeginDrain}),
    sender(kT, kLinkEnd, kUnpr, {A::kCancelCompute, A::kSendUnproven, A::kFinish}),

    sender(kOk, kAbort, kOk, {A::kSendDrained}),

    // A record that was posted before the abort proves the drain as well as the scratch write.
    sender(kPend, kCommit, kProv, {A::kSendDrained, A::kFinish}),
    sender(kPend, kDrained, kProv, {A::kSendDrained, A::kFinish}),
    sender(kPend, kLinkEnd, kUnpr, {A::kSendUnproven, A::kFinish}),

    sender(kProv, kAbort, kProv, {A::kSendDrained}),
    sender(kUnpr, kAbort, kUnpr, {A::kSendUnproven}),

    // Until pages go out, with OpenRoom or Allocate, no peer knows of them: they go back at once,
    // whatever comes.
    receiver(kB, kOpened, kW, {A::kLeaseSlot}),
    receiver(kB, kAllocate, kT, {}),
    receiver(kB, kRefused, kProv, {A::kRelease, A::kReportFailed}),
    receiver(kB, kAbort, kPend, {A::kRelease}),
    receiver(kB, kGiveUp, kPend, {A::kRelease, A::kReportFailed}),
    receiver(kB, kFail, kProv, {A::kRelease, A::kReportFailed}),
    receiver(kB, kFailUnproven, kProv, {A::kRelease, A::kReportFailed, A::kEndLink}),
    receiver(kB, kFenced, kProv, {A::kRelease, A::kReportFailed}),
    receiver(kB, kLost, kProv, {A::kRelease, A::kReportFailed}),

    receiver(kW, kAllocate, kT, {A::kSendAllocate}),
    receiver(kW, kAbort, kPend, {A::kRelease, A::kSendAbort}),
    receiver(kW, kGiveUp, kPend, {A::kRelease, A::kSendAbort, A::kReportFailed}),
    receiver(kW, kFail, kProv, {A::kRelease, A::kReportFailed}),
    receiver(kW, kFailUnproven, kProv, {A::kRelease, A::kReportFailed, A::kEndLink}),
    receiver(kW, kFenced, kProv, {A::kRelease, A::kReportFailed}),
    receiver(kW, kLost, kProv, {A::kRelease, A::kReportFailed}),

    // Their pages went with OpenRoom.
    receiver(kT, kOpened, kT, {}),
    receiver(kT, kRefused, kProv, {A::kRelease, A::kReportFailed}),
    receiver(kT, kCommit, kOk, {A::kFreeSlot, A::kReportCommitted}),
    receiver(kT, kBadCommit, kUnpr, {A::kQuarantine, A::kReportFailed, A::kEndLink}),
    receiver(kT, kAbort, kPend, {A::kQuarantine, A::kSendAbort}),
    receiver(kT, kGiveUp, kPend, {A::kQuarantine, A::kSendAbort, A::kReportFailed}),
    receiver(kT, kFail, kProv, {A::kRelease, A::kReportFailed}),
    receiver(kT, kFailUnproven, kUnpr, {A::kQuarantine, A::kReportFailed, A::kEndLink}),
    receiver(kT, kFenced, kProv, {A::kRelease, A::kReportFailed}),
    receiver(kT, kLost, kUnpr, {A::kQuarantine, A::kReportFailed}),

    receiver(kPend, kOpened, kPend, {A::kSendAbort}),
    receiver(kPend, kRefused, kProv, {A::kRelease}),
    receiver(kPend, kCommit, kProv, {A::kRelease}),
    receiver(kPend, kBadCommit, kUnpr, {A::kEndLink}),
    receiver(kPend, kFail, kProv, {A::kRelease}),
    receiver(kPend, kFailUnproven, kUnpr, {A::kEndLink}),
    receiver(kPend, kDrained, kProv, {A::kRelease}),
    receiver(kPend, kUnproven, kUnpr, {A::kEndLink}),
    receiver(kPend, kFenced, kProv, {A::kRelease}),
    receiver(kPend, kLost, kUnpr, {}),

    receiver(kUnpr, kFenced, kProv, {A::kRelease}),

    violation(Role::kSender, kW, kAllocate),
    violation(Role::kSender, kT, kAllocate),
    violation(Role::kSender, kOk, kAllocate),
    violation(Role::kReceiver, kW, kOpened),
    violation(Role::kReceiver, kW, kRefused),
    // Drained and unproven are answers to our Abort; nobody asked.
    violation(Role::kReceiver, kB, kDrained),
    violation(Role::kReceiver, kW, kDrained),
    violation(Role::kReceiver, kT, kDrained),
    violation(Role::kReceiver, kB, kUnproven),
    violation(Role::kReceiver, kW, kUnproven),
    violation(Role::kReceiver, kT, kUnproven),
};

constexpr bool exists(RoomState state, Drain drain) {
  return (state == kFailed) == (drain != Drain::kNone);
}

// No triple twice, only states that exist, and pages go back only where the rules allow it.
constexpr bool table_is_sound() {
  for (const Row& row : kTable) {
    if (!exists(row.state, row.drain) || !exists(row.to.state, row.to.drain)) return false;
    int same = 0;
    for (const Row& other : kTable) {
      if (other.role == row.role && other.state == row.state && other.drain == row.drain &&
          other.event == row.event) {
        ++same;
      }
    }
    if (same != 1) return false;
    const bool exposed = row.state == kTransferring || row.state == kFailed;
    if (row.to.actions.has(Action::kRelease) && exposed && row.to.drain != Drain::kProven) {
      return false;
    }
    if (row.to.actions.has(Action::kSendDrained) && row.to.drain != Drain::kProven &&
        row.to.state != kSuccess) {
      return false;
    }
  }
  return true;
}
static_assert(table_is_sound());

}  // namespace

std::span<const Row> table() { return kTable; }

Transition transition(Role role, RoomState state, Drain drain, Event event) {
  KVD_CHECK(exists(state, drain));
  for (const Row& row : kTable) {
    if (row.role == role && row.state == state && row.drain == drain && row.event == event) {
      return row.to;
    }
  }
  return {Verdict::kIgnored, state, drain, {}};
}

std::optional<Event> event_of(Role role, proto::MessageType type, bool drained) {
  using enum proto::MessageType;
  if (role == Role::kSender) {
    switch (type) {
      case proto::MessageType::kAllocate:
        return Event::kAllocate;
      case proto::MessageType::kAbort:
        return Event::kAbort;
      default:
        return std::nullopt;
    }
  }
  switch (type) {
    case kRoomOpened:
      return Event::kOpened;
    case kRoomRefused:
      return Event::kRefused;
    case kAbortDrained:
      return Event::kDrained;
    case kAbortUnproven:
      return Event::kUnproven;
    case kRoomFailed:
      return drained ? Event::kFail : Event::kFailUnproven;
    default:
      return std::nullopt;
  }
}

std::string_view to_string(Role role) { return role == Role::kSender ? "sender" : "receiver"; }

std::string_view to_string(RoomState state) {
  switch (state) {
    case kBootstrapping:
      return "Bootstrapping";
    case kWaitingForInput:
      return "WaitingForInput";
    case kTransferring:
      return "Transferring";
    case kSuccess:
      return "Success";
    case kFailed:
      return "Failed";
  }
  return "?";
}

std::string_view to_string(Drain drain) {
  switch (drain) {
    case Drain::kNone:
      return "none";
    case Drain::kPending:
      return "pending";
    case Drain::kProven:
      return "proven";
    case Drain::kUnproven:
      return "unproven";
  }
  return "?";
}

std::string_view to_string(Event event) {
  switch (event) {
    case kOpened:
      return "opened";
    case kRefused:
      return "refused";
    case kAllocate:
      return "allocate";
    case kSources:
      return "sources";
    case kWriting:
      return "writing";
    case kCommit:
      return "commit";
    case kBadCommit:
      return "bad-commit";
    case kAbort:
      return "abort";
    case kGiveUp:
      return "give-up";
    case kFail:
      return "fail";
    case kFailUnproven:
      return "fail-unproven";
    case kDrained:
      return "drained";
    case kUnproven:
      return "unproven";
    case kLinkEnd:
      return "link-end";
    case kFenced:
      return "fenced";
    case kLost:
      return "lost";
  }
  return "?";
}

std::string_view to_string(Action action) {
  switch (action) {
    case A::kLeaseSources:
      return "lease-sources";
    case A::kStartCompute:
      return "start-compute";
    case A::kCancelCompute:
      return "cancel-compute";
    case A::kPurge:
      return "purge";
    case A::kBeginDrain:
      return "begin-drain";
    case A::kSendDrained:
      return "send-drained";
    case A::kSendUnproven:
      return "send-unproven";
    case A::kSendDone:
      return "send-done";
    case A::kFinish:
      return "finish";
    case A::kLeaseSlot:
      return "lease-slot";
    case A::kSendAllocate:
      return "send-allocate";
    case A::kSendAbort:
      return "send-abort";
    case A::kQuarantine:
      return "quarantine";
    case A::kRelease:
      return "release";
    case A::kFreeSlot:
      return "free-slot";
    case A::kReportCommitted:
      return "report-committed";
    case A::kReportFailed:
      return "report-failed";
    case A::kEndLink:
      return "end-link";
  }
  return "?";
}

std::string_view to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::kTaken:
      return "taken";
    case Verdict::kIgnored:
      return "ignored";
    case Verdict::kViolation:
      return "violation";
  }
  return "?";
}

}  // namespace kvd::room
