// What both ends of a connection do alike: its socket, the doorbells on it, and sleep. The rules
// are in local_ring.h.
#pragma once

#include <functional>

#include "base/status.h"
#include "fabric/local/local_ring.h"
#include "fabric/local/local_socket.h"

namespace kvd::fabric::local {

class Line {
 public:
  explicit Line(Fd socket) : socket_(std::move(socket)) {}
  int fd() const { return socket_.get(); }
  void close() { socket_.reset(); }
  Status send(std::span<const std::byte> packet, std::span<const int> descriptors) {
    return send_packet(socket_.get(), packet, descriptors);
  }
  // After work was stored: wakes the peer when its word `sleeping` says so.
  void ring(const Word& sleeping);
  // There was no memory for a doorbell: ring() is to be called again before anybody sleeps.
  bool owes() const { return owes_; }
  // Reads what is there, a bounded number of packets; all but doorbells go to `on_packet`. Not ok:
  // the connection is over, with this reason or that of `on_packet`.
  Status read(const std::function<Status(const Packet&)>& on_packet);

 private:
  Fd socket_;
  std::uint64_t rung_ = 0;
  bool owes_ = false;
};

// What a packet whose descriptors were lost means.
Status lost_descriptors();

// The owner of the word is about to block; it looks for work once more after this.
void fall_asleep(Word* sleeping);
void wake_up(Word* sleeping);

}  // namespace kvd::fabric::local
