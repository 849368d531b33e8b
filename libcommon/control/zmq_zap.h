// The allow-list behind CURVE: ZeroMQ asks over an inproc socket (RFC 27) whether a client's key
// may talk to us. Served by the channel's own thread, so that there is no second thread to stop: a
// handshake simply waits until the loop turns. Private to control/zmq_*.cc.
#pragma once

#include <memory>

#include "base/status.h"
#include "control/keys.h"

namespace kvd::control {

class ZapServer {
 public:
  // `context` (a libzmq context) and `keys` must outlive it. Open it before any CURVE socket is
  // bound.
  static Result<std::unique_ptr<ZapServer>> open(void* context, const KeyRing* keys);
  ~ZapServer();
  ZapServer(const ZapServer&) = delete;
  ZapServer& operator=(const ZapServer&) = delete;

  int fd() const;
  // Answers everything that was asked.
  void serve();

 private:
  struct Impl;
  explicit ZapServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvd::control
