// Each state with each event: past (late, repeated), in order, future (too early) and after an
// abort.
#include "room/room.h"

#include <catch2/catch.hpp>
#include <set>
#include <string>
#include <vector>

namespace kvd::room {
namespace {

using enum RoomState;

struct Machine {
  Role role;
  RoomState state = kBootstrapping;
  Drain drain = Drain::kNone;
  Actions last{};

  Verdict feed(Event event) {
    const Transition next = transition(role, state, drain, event);
    state = next.state;
    drain = next.drain;
    last = next.actions;
    return next.verdict;
  }
  Machine& walk(std::initializer_list<Event> events) {
    for (Event event : events) {
      INFO(to_string(state) << " " << to_string(event));
      REQUIRE(feed(event) == Verdict::kTaken);
    }
    return *this;
  }
  bool is(RoomState wanted, Drain wanted_drain) const {
    return state == wanted && drain == wanted_drain;
  }
};

Machine sender(std::initializer_list<Event> events) { return Machine{Role::kSender}.walk(events); }
Machine receiver(std::initializer_list<Event> events) {
  return Machine{Role::kReceiver}.walk(events);
}

std::vector<Event> all_events() {
  std::vector<Event> events;
  for (std::size_t i = 0; i < kEvents; ++i) events.push_back(static_cast<Event>(i));
  return events;
}

void ignores(const Machine& machine, std::initializer_list<Event> events) {
  for (Event event : events) {
    Machine copy = machine;
    INFO(to_string(machine.state) << "/" << to_string(machine.drain) << " " << to_string(event));
    CHECK(copy.feed(event) == Verdict::kIgnored);
    CHECK(copy.is(machine.state, machine.drain));
    CHECK(copy.last.size() == 0);
  }
}

void violates(const Machine& machine, std::initializer_list<Event> events) {
  for (Event event : events) {
    Machine copy = machine;
    INFO(to_string(machine.state) << "/" << to_string(machine.drain) << " " << to_string(event));
    CHECK(copy.feed(event) == Verdict::kViolation);
    CHECK(copy.is(machine.state, machine.drain));
  }
}

TEST_CASE("room: a sender goes from OpenRoom to Success in order") {
  Machine room = sender({});
  room.walk({Event::kAllocate});
  CHECK(room.last == Actions{Action::kLeaseSources});
  room.walk({Event::kSources});
  CHECK(room.last == Actions{Action::kStartCompute});
  CHECK(room.state == kWaitingForInput);
  room.walk({Event::kWriting});
  CHECK(room.state == kTransferring);
  room.walk({Event::kCommit});
  CHECK(room.is(kSuccess, Drain::kNone));
  CHECK(room.last == Actions{Action::kSendDone, Action::kFinish});
}

TEST_CASE("room: a receiver goes from OpenRoom to Success in order") {
  Machine room = receiver({Event::kOpened});
  CHECK(room.last == Actions{Action::kLeaseSlot});
  room.walk({Event::kAllocate});
  CHECK(room.last == Actions{Action::kSendAllocate});
  CHECK(room.state == kTransferring);
  room.walk({Event::kCommit});
  CHECK(room.is(kSuccess, Drain::kNone));
  CHECK(room.last == Actions{Action::kFreeSlot, Action::kReportCommitted});
}

TEST_CASE("room: a receiver whose pages went with OpenRoom is exposed before it is opened") {
  Machine room = receiver({Event::kAllocate});
  CHECK(room.last.size() == 0);
  CHECK(room.state == kTransferring);
  Machine overtaken = room, refused = room, aborted = room;
  room.walk({Event::kOpened});
  CHECK(room.last.size() == 0);
  CHECK(room.state == kTransferring);
  overtaken.walk({Event::kCommit});  // its record came first
  CHECK(overtaken.is(kSuccess, Drain::kNone));
  refused.walk({Event::kRefused});
  CHECK(refused.is(kFailed, Drain::kProven));
  CHECK(refused.last == Actions{Action::kRelease, Action::kReportFailed});
  aborted.walk({Event::kAbort});
  CHECK(aborted.last == Actions{Action::kQuarantine, Action::kSendAbort});
  aborted.walk({Event::kOpened});
  CHECK(aborted.is(kFailed, Drain::kPending));
  CHECK(aborted.last == Actions{Action::kSendAbort});
}

TEST_CASE("room: a sender with nothing posted is drained at once, whoever ends it") {
  for (Event end : {Event::kAbort, Event::kFail}) {
    for (const Machine& at :
         {sender({}), sender({Event::kAllocate}), sender({Event::kAllocate, Event::kSources})}) {
      Machine room = at;
      room.walk({end});
      CHECK(room.is(kFailed, Drain::kProven));
      CHECK(room.last.has(Action::kSendDrained));
      CHECK(room.last.has(Action::kFinish));
    }
  }
}

TEST_CASE("room: a sender that may have written drains before it says so") {
  for (Event end : {Event::kAbort, Event::kFail}) {
    Machine room = sender({Event::kAllocate, Event::kSources, Event::kWriting, end});
    CHECK(room.is(kFailed, Drain::kPending));
    CHECK(room.last == Actions{Action::kPurge, Action::kCancelCompute, Action::kBeginDrain});
    ignores(room,
            {Event::kAbort, Event::kFail, Event::kAllocate, Event::kSources, Event::kWriting});
    Machine scratch = room, record = room, broken = room;
    scratch.walk({Event::kDrained});
    CHECK(scratch.is(kFailed, Drain::kProven));
    CHECK(scratch.last.has(Action::kSendDrained));
    record.walk({Event::kCommit});
    CHECK(record.is(kFailed, Drain::kProven));
    broken.walk({Event::kLinkEnd});
    CHECK(broken.is(kFailed, Drain::kUnproven));
    CHECK(broken.last.has(Action::kSendUnproven));
    CHECK_FALSE(broken.last.has(Action::kSendDrained));
  }
}

TEST_CASE("room: a sender whose link ended never answers drained again") {
  for (const Machine& at : {sender({}), sender({Event::kAllocate}),
                            sender({Event::kAllocate, Event::kSources, Event::kWriting})}) {
    Machine room = at;
    room.walk({Event::kLinkEnd});
    CHECK(room.is(kFailed, Drain::kUnproven));
    for (Event event : all_events()) {
      Machine copy = room;
      copy.feed(event);
      CHECK_FALSE(copy.last.has(Action::kSendDrained));
      CHECK(copy.drain == Drain::kUnproven);
    }
  }
}

TEST_CASE("room: a sender answers an abort that comes too late, drained") {
  Machine success = sender({Event::kAllocate, Event::kSources, Event::kWriting, Event::kCommit});
  success.walk({Event::kAbort});
  CHECK(success.is(kSuccess, Drain::kNone));
  CHECK(success.last == Actions{Action::kSendDrained});
  Machine over = sender({Event::kAbort, Event::kAbort});
  CHECK(over.last == Actions{Action::kSendDrained});
}

TEST_CASE("room: a second Allocate breaks the protocol, a late one does not") {
  violates(sender({Event::kAllocate}), {Event::kAllocate});
  violates(sender({Event::kAllocate, Event::kSources, Event::kWriting}), {Event::kAllocate});
  ignores(sender({Event::kAbort}), {Event::kAllocate});
  ignores(sender({Event::kFail}), {Event::kAllocate});
}

TEST_CASE("room: a sender's events of the past and the future change nothing") {
  ignores(sender({}), {Event::kSources, Event::kWriting, Event::kCommit, Event::kDrained});
  ignores(sender({Event::kAllocate}), {Event::kCommit, Event::kDrained});
  ignores(sender({Event::kAllocate, Event::kSources, Event::kWriting}),
          {Event::kSources, Event::kWriting, Event::kDrained});
  ignores(sender({Event::kAllocate, Event::kSources, Event::kWriting, Event::kCommit}),
          {Event::kSources, Event::kWriting, Event::kCommit, Event::kDrained, Event::kFail,
           Event::kLinkEnd});
  ignores(sender({Event::kAbort}), {Event::kSources, Event::kWriting, Event::kCommit,
                                    Event::kDrained, Event::kFail, Event::kLinkEnd});
}

TEST_CASE("room: until a peer knows of them a receiver's pages go back at once") {
  for (Event end : {Event::kAbort, Event::kGiveUp, Event::kFail, Event::kFailUnproven,
                    Event::kFenced, Event::kLost}) {
    for (const Machine& at : {receiver({}), receiver({Event::kOpened})}) {
      Machine room = at;
      room.walk({end});
      CHECK(room.state == kFailed);
      CHECK(room.last.has(Action::kRelease));
      CHECK_FALSE(room.last.has(Action::kQuarantine));
    }
  }
}

TEST_CASE("room: an exposed receiver quarantines unless the ending is itself a proof") {
  const auto exposed = receiver({Event::kOpened, Event::kAllocate});
  for (Event end :
       {Event::kAbort, Event::kGiveUp, Event::kBadCommit, Event::kFailUnproven, Event::kLost}) {
    Machine room = exposed;
    room.walk({end});
    CHECK(room.drain != Drain::kProven);
    CHECK(room.last.has(Action::kQuarantine));
    CHECK_FALSE(room.last.has(Action::kRelease));
  }
  for (Event proof : {Event::kFail, Event::kFenced}) {
    Machine room = exposed;
    room.walk({proof});
    CHECK(room.is(kFailed, Drain::kProven));
    CHECK(room.last.has(Action::kRelease));
  }
}

TEST_CASE("room: after an abort only a proof gives pages back") {
  const auto aborted = receiver({Event::kOpened, Event::kAllocate, Event::kAbort});
  CHECK(aborted.is(kFailed, Drain::kPending));
  std::set<Event> proofs;
  for (Event event : all_events()) {
    Machine room = aborted;
    room.feed(event);
    if (room.last.has(Action::kRelease)) {
      CHECK(room.is(kFailed, Drain::kProven));
      proofs.insert(event);
    }
    CHECK_FALSE(room.last.has(Action::kReportCommitted));
    CHECK_FALSE(room.last.has(Action::kReportFailed));
  }
  CHECK(proofs == std::set<Event>{Event::kRefused, Event::kCommit, Event::kFail, Event::kDrained,
                                  Event::kFenced});
}

TEST_CASE("room: an abort before RoomOpened is sent when it arrives") {
  Machine room = receiver({Event::kAbort});
  CHECK_FALSE(room.last.has(Action::kSendAbort));
  CHECK(room.last.has(Action::kRelease));
  room.walk({Event::kOpened});
  CHECK(room.last == Actions{Action::kSendAbort});
  room.walk({Event::kDrained});
  CHECK(room.is(kFailed, Drain::kProven));
}

TEST_CASE("room: an unproven receiver waits for the fence and for nothing else") {
  for (const Machine& at :
       {receiver({Event::kOpened, Event::kAllocate, Event::kAbort, Event::kUnproven}),
        receiver({Event::kOpened, Event::kAllocate, Event::kFailUnproven}),
        receiver({Event::kOpened, Event::kAllocate, Event::kBadCommit})}) {
    CHECK(at.is(kFailed, Drain::kUnproven));
    CHECK(at.last.has(Action::kEndLink));
    for (Event event : all_events()) {
      Machine room = at;
      room.feed(event);
      CHECK(room.last.has(Action::kRelease) == (event == Event::kFenced));
    }
  }
}

TEST_CASE("room: answers that nobody asked for break the protocol") {
  violates(receiver({}), {Event::kDrained, Event::kUnproven});
  violates(receiver({Event::kOpened}),
           {Event::kOpened, Event::kRefused, Event::kDrained, Event::kUnproven});
  violates(receiver({Event::kOpened, Event::kAllocate}), {Event::kDrained, Event::kUnproven});
  violates(receiver({Event::kAllocate}), {Event::kDrained, Event::kUnproven});
}

TEST_CASE("room: a receiver's events of the past and the future change nothing") {
  ignores(receiver({}), {Event::kCommit, Event::kBadCommit});
  ignores(receiver({Event::kOpened}), {Event::kCommit, Event::kBadCommit});
  ignores(receiver({Event::kOpened, Event::kAllocate}), {Event::kAllocate});
  for (const Machine& over :
       {receiver({Event::kOpened, Event::kAllocate, Event::kCommit}), receiver({Event::kFail}),
        receiver({Event::kOpened, Event::kAllocate, Event::kAbort, Event::kDrained})}) {
    CHECK(is_over(over.state, over.drain));
    for (Event event : all_events()) ignores(over, {event});
  }
}

TEST_CASE("room: each ending is reported to the host exactly once") {
  // All walks of up to five events of a receiver: one report at most, none after an own abort.
  struct Node {
    Machine room;
    int reports = 0;
    bool aborted = false;
  };
  std::vector<Node> level = {{receiver({}), 0, false}};
  std::size_t walks = 0;
  for (int depth = 0; depth < 5; ++depth) {
    std::vector<Node> next;
    for (const Node& node : level) {
      for (Event event : all_events()) {
        Node child = node;
        if (child.room.feed(event) != Verdict::kTaken) continue;
        child.aborted = child.aborted || event == Event::kAbort;
        const bool report = child.room.last.has(Action::kReportCommitted) ||
                            child.room.last.has(Action::kReportFailed);
        if (report) ++child.reports;
        REQUIRE(child.reports <= 1);
        if (child.aborted) REQUIRE(child.reports == 0);
        const bool over = is_over(child.room.state, child.room.drain);
        if (over && !child.aborted) REQUIRE(child.reports == 1);
        next.push_back(child);
        ++walks;
      }
    }
    level = std::move(next);
  }
  CHECK(walks > 50);
}

TEST_CASE("room: messages are events of the role that receives them") {
  using proto::MessageType;
  CHECK(event_of(Role::kSender, MessageType::kAllocate, false) == Event::kAllocate);
  CHECK(event_of(Role::kSender, MessageType::kAbort, false) == Event::kAbort);
  CHECK_FALSE(event_of(Role::kSender, MessageType::kAbortDrained, false));
  CHECK(event_of(Role::kReceiver, MessageType::kRoomOpened, false) == Event::kOpened);
  CHECK(event_of(Role::kReceiver, MessageType::kRoomRefused, false) == Event::kRefused);
  CHECK(event_of(Role::kReceiver, MessageType::kRoomFailed, true) == Event::kFail);
  CHECK(event_of(Role::kReceiver, MessageType::kRoomFailed, false) == Event::kFailUnproven);
  CHECK(event_of(Role::kReceiver, MessageType::kAbortDrained, false) == Event::kDrained);
  CHECK(event_of(Role::kReceiver, MessageType::kAbortUnproven, false) == Event::kUnproven);
  CHECK_FALSE(event_of(Role::kReceiver, MessageType::kAllocate, false));
  CHECK_FALSE(event_of(Role::kReceiver, MessageType::kHeartbeat, false));
}

TEST_CASE("room: every name is printed and none twice") {
  std::set<std::string> names;
  for (Event event : all_events()) names.insert(std::string(to_string(event)));
  CHECK(names.size() == kEvents);
  CHECK_FALSE(names.contains("?"));
}

}  // namespace
}  // namespace kvd::room
