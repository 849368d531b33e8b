// What the two processes of `kvd-bench pages` tell each other besides KV: memory that both map, and
// a socket whose bytes wake the other side. The measured path does not use it: the sender only
// stores its times here.
//
// The receiver (the parent, which drives) gives commands one at a time; the sender answers.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/clock.h"
#include "base/status.h"
#include "device/host_buffer.h"
#include "fabric/fabric.h"
#include "kvd-bench/far_side.h"
#include "probe/plain_writes.h"

namespace kvd::tools {

constexpr std::size_t kMaxText = 512;
constexpr std::size_t kRequestSlots = 1 << 16;

struct Mailbox {
  // Set-up, written once by each side before it says so with a byte on the socket.
  std::array<char, kMaxText> control{};  // the sender's control address
  device::HugePages sender_huge_pages = device::HugePages::kNone;
  std::array<char, kMaxText> failure{};         // why the sender ended; empty: it did not
  std::array<char, kMaxText> target_address{};  // of plain writes, bytes
  std::uint32_t target_address_bytes = 0;
  fabric::RemoteRegion target_region;
  std::uint64_t target_bytes = 0;

  std::atomic<std::uint32_t> ordered{0}, done{0};
  Order order = Order::kNone;
  probe::PlainOrder plain;
  std::int64_t plain_began_ns = 0;  // first write posted

  std::atomic<std::uint64_t> requests{0};  // entries of `times` that were written, ever
  std::array<SentTimes, kRequestSlots> times;
};

// Owns the mapping and one end of the socket each; made before fork(). One thread a side.
class MailboxPair {
 public:
  static Result<MailboxPair> make();
  MailboxPair(MailboxPair&& other) noexcept;
  MailboxPair& operator=(MailboxPair&&) = delete;
  ~MailboxPair();

  Mailbox& box() const { return *box_; }
  // After fork(): keeps one end.
  void be_parent();
  void be_child();
  int fd() const { return mine_; }
  void wake() const;
  // Takes the bytes that are there. False: the other side has gone.
  bool drain() const;
  // Blocks until the other side woke us; kUnavailable when it has gone, kDeadline.
  Status wait(Duration timeout) const;

 private:
  MailboxPair() = default;
  Mailbox* box_ = nullptr;
  int parent_ = -1, child_ = -1, mine_ = -1;
};

void put_text(std::array<char, kMaxText>* field, const std::string& text);

}  // namespace kvd::tools
