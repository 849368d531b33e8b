// How a measuring client finds its peer: dials it, asks who it is until it answers, and says what
// is wrong when it does not.
//
// Calling thread: the one that made it, which blocks in meet().
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "control/messenger.h"
#include "node/event_loop.h"
#include "peer/raw_peer.h"
#include "proto/link_messages.h"
#include "proto/ops_messages.h"

namespace kvd::tools {

struct MeetOptions {
  std::string peer;  // HOST:PORT
  std::string keys;  // --keys FILE
  Duration timeout{30'000'000'000};
  std::function<bool()> stop;                      // true: give up; may be null
  std::function<void(const std::string&)> notice;  // what is waited for; may be null
};

// A peer that has said who it is.
struct MetPeer {
  std::unique_ptr<control::Channel> channel;
  std::unique_ptr<control::Messenger> messenger;  // over `channel`
  control::PeerRef ref = 0;
  Incarnation incarnation;
  proto::Described described;
};
// Waits for it, whoever starts first. `clock` must outlive the result. kUnavailable, kDeadline:
// nobody there; kIncompatible: not kvd, or another version; kNoProvider: it refuses our key.
Result<MetPeer> meet(const MeetOptions& options, const Clock* clock);

// What an Error of the peer means to a client that asked it for `what` ("probes").
Status error_of_peer(const std::string& peer, const proto::Error& error, const std::string& what);
// What `peer` sent could not be read.
Status unreadable_peer(const std::string& peer, const Status& why);
// What a ProbeResult that is no "done" means.
Status refusal_of_peer(const std::string& peer, const proto::ProbeResult& result);

}  // namespace kvd::tools
