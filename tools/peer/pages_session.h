// A session of `kvd-bench pages --peer`: what `kvd-probe serve` does for it, as one more kind of
// session of its ProbeTarget. Its pages are the benchmark's; no model's KV is ever in them.
//
// Calling thread: the event loop's.
#pragma once

#include <memory>
#include <vector>

#include "peer/pages_sender.h"
#include "probe/probe_target.h"

namespace kvd::tools {

class PagesSession;

class PagesSessions final : public probe::OtherSessions {
 public:
  // `domains`, one a provider, `messenger` and `clock` must outlive it and its sessions.
  PagesSessions(std::vector<fabric::Domain*> domains, control::Messenger* messenger,
                const Clock* clock)
      : domains_(std::move(domains)), messenger_(messenger), clock_(clock) {}

  Result<std::unique_ptr<probe::OtherSession>> open(control::PeerRef peer, Incarnation client,
                                                    const proto::Probe& probe,
                                                    proto::ProbeResult* result) override;

  // A session is open, and `message` is of its client.
  bool is_client(const control::Received& message) const;
  // True if the message was one of a transfer of the session's client.
  bool on_message(const control::Received& message);
  // To the session's client this process is a prefill.
  void describe(proto::Described* out) const;
  // Control messages are part of what is measured now.
  bool eager() const;

 private:
  friend class PagesSession;
  std::vector<fabric::Domain*> domains_;
  control::Messenger* messenger_;
  const Clock* clock_;
  PagesSession* session_ = nullptr;
};

}  // namespace kvd::tools
