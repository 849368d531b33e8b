// When a side that is being written to lets bytes gather before it looks for more, where only calls
// take them from a socket (fabric.h, takes_by_looks).
//
// TCP answers each look that took bytes, and within a host the sender's processor, which writing
// keeps busy, handles the answers, and wakes a reader who sleeps. A reader is the faster of the
// two: if it looks as often as it can it gets two packets a time. So after a look that took many
// bytes it waits a little, and takes ten packets. That is for long writes alone: a look takes no
// more than is missing of one write, and of short ones a pause would bring one or a part (scattered
// pages of 64 KiB, four a write, 6.0 -> 2.2 GB/s asleep). Who polls may pause for shorter ones than
// who sleeps, since its pause is half as long (128 KiB, four a write, GB/s, reno and bbr: polling
// 6.7 -> 7.1 and 6.0 -> 6.4, asleep 6.2 -> 3.7 and 5.6 -> 3.4): such a pause ends when it goes to
// sleep. How long they are is known from rooms that ended. What comes last waits, too: so a link's
// rooms must be large together.
//
// Whether it pays at all is a matter of the processor: on a Zen 5 it does (GB/s, 16 pages of 720
// KiB, polling, bbr 6.5 -> 7.0); on a Xeon with 2 MiB of L2 and, as a virtual machine, 35 us for
// each sleep it does not (polling 5.7 -> 5.4, asleep 5.4 -> 4.5). So it is tried out:
// GatheringTrial. All this was measured on the loopback, under reno and bbr, and between namespaces
// under bbr, where pauses slow it down (768 KiB a write 5.4 -> 4.4 GB/s): there nothing gathers, as
// its writes are shorter than kLongWrite (best_write_bytes). Between hosts a pause is another 25
// us.
//
// Calling thread: that of the endpoint.
#pragma once

#include <array>
#include <cstdint>

#include "base/clock.h"

namespace kvd::transfer {

class Gathering {
 public:
  // A look that takes some 40 KB or more; nothing else says what a look took. An empty one takes
  // below a microsecond, one that waits for a processor gets a pause that it did not need.
  static constexpr Duration kLongLook{3'000};
  // From the beginning of a look to the next of who polls, and of who sleeps meanwhile: waking
  // costs, too.
  static constexpr Duration kAwake{25'000}, kAsleep{50'000};
  // Several pauses' worth, of who polls and of who sleeps.
  static constexpr std::uint64_t kLongAwake = 320u << 10, kLongWrite = 1u << 20;
  // Bytes of a link's rooms: take ten times as long as a pause, or longer.
  static constexpr std::uint64_t kMuch = 4u << 20;

  // `asleep`: a sleeper gathers, too.
  void begin(TimePoint look, bool asleep) {
    since_ = look;
    asleep_ = asleep;
  }
  void end() { since_ = kNever; }
  bool active() const { return since_ != kNever; }
  bool lasts(TimePoint now) const { return active() && now < since_ + kAwake; }
  // A sleeper need not listen for bytes until wake().
  bool lasts_asleep() const { return active() && asleep_; }
  TimePoint wake() const { return lasts_asleep() ? since_ + kAsleep : kNever; }

 private:
  TimePoint since_ = kNever;
  bool asleep_ = false;
};

// Whether a link gathers, found by trying: some rooms without, twice as many with, some without, so
// that what drifts weighs on both alike. What moved bytes faster, by the sender's clock, is kept
// for a while. One trial alone changes nothing: what else the host does meanwhile may weigh more
// (pages checked on the same two processors: a wrong verdict cost 14 % for 15 GiB), so a link
// begins without and changes after kSure trials in a row that say so. Only rooms of kMuch or more
// count: a link that has no more of them keeps what it has.
class GatheringTrial {
 public:
  // Rooms that count of each of the four parts, and between two trials: one room in 32 has what is
  // worse, where trials agree. Less of them if they move so many bytes, but two.
  static constexpr std::uint32_t kRooms = 8, kKept = 15 * 4 * kRooms;
  static constexpr std::uint64_t kBytes = 256u << 20, kKeptBytes = 15 * 4 * kBytes;
  static constexpr int kSure = 3;

  bool gathers() const { return step() < kSteps ? kWith[step()] : pays_; }
  // A room counts only for the part that it began in: rooms that are open together end together,
  // and the next part begins with the first of them.
  std::uint32_t part() const { return part_; }
  // One that began in `part` has moved its bytes.
  void moved(std::uint32_t part, std::uint64_t bytes, Duration took) {
    if (part != part_) return;
    if (step() < kSteps) {
      Sum& sum = sums_[kWith[step()] ? 1 : 0];
      sum.bytes += static_cast<double>(bytes);
      sum.ns += static_cast<double>(took.count());
    }
    ++rooms_;
    bytes_ += bytes;
    const bool kept = step() == kSteps;
    if (rooms_ < (kept ? kKept : kRooms) && (rooms_ < 2 || bytes_ < (kept ? kKeptBytes : kBytes))) {
      return;
    }
    rooms_ = 0;
    bytes_ = 0;
    ++part_;
    if (step() == kSteps) decide();
    if (step() == 0) sums_ = {};
  }

 private:
  static constexpr std::uint32_t kSteps = 4;
  static constexpr std::array<bool, kSteps> kWith{false, true, true, false};
  struct Sum {
    double bytes = 0, ns = 0;
  };

  std::uint32_t step() const { return part_ % (kSteps + 1); }  // kSteps: kept
  void decide() {
    const bool faster = sums_[1].bytes * sums_[0].ns > sums_[0].bytes * sums_[1].ns;
    against_ = faster == pays_ ? 0 : against_ + 1;
    if (against_ == kSure) {
      pays_ = faster;
      against_ = 0;
    }
    if (against_ != 0) ++part_;  // nothing is kept: tried again at once
  }

  std::uint32_t part_ = 0;
  std::uint32_t rooms_ = 0;  // of this part
  std::uint64_t bytes_ = 0;
  std::array<Sum, 2> sums_;  // without, with
  bool pays_ = false;
  int against_ = 0;  // trials in a row
};

}  // namespace kvd::transfer
