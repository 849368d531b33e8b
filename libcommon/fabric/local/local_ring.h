// What the two processes of a `local` connection share: the submission ring, in a memfd of the
// initiator (prefill), and the acknowledgements, in a memfd of the target (decode). Each maps the
// other's read-only, so neither can spoil what it only reads; what it reads is checked before use.
//
// Order. The initiator fills an entry, then stores `posted` (release). The target copies, issues an
// acquire fence, loads `epoch`, and only if that is what the Hello said stores `completed`
// (release). The initiator raises `epoch` before its sources may be reused without an
// acknowledgement: a copy that read reused bytes is followed by a load that sees the new epoch (as
// with a sequence lock).
//
// Sleep. Whoever has no work and is about to block stores an odd number in its `sleeping`, then
// looks once more whether there is work; whoever has stored work then looks at the other's
// `sleeping` and, when it is odd and not the number it has rung for already, sends one byte. Both
// have a full fence between store and load, so that at least one of them sees the other. While
// nobody sleeps nobody rings: a system call is then made only now and then, to see whether the peer
// is still there.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace kvd::fabric::local {

constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kDepth = 64;      // entries: at least Capabilities::max_inflight_ops
constexpr std::uint32_t kMaxPieces = 16;  // of each side of one write
constexpr std::uint32_t kMaxSegments = 2 * kMaxPieces - 1;
constexpr std::uint64_t kMaxWriteBytes = 1u << 20;
constexpr std::uint32_t kMaxSources = 8;
constexpr std::size_t kCacheLine = 64;

// A run of bytes that is contiguous on both sides.
struct Segment {
  std::uint32_t source = 0;  // index of the memfd, in the order of the Hello
  std::uint32_t bytes = 0;
  std::uint64_t offset = 0;   // in that memfd
  std::uint64_t address = 0;  // RemoteRegion::base + offset at the target
  std::uint64_t key = 0;
};
static_assert(sizeof(Segment) == 32);

struct Entry {
  std::uint32_t segments = 0;
  std::uint32_t has_remote_data = 0;
  std::uint64_t remote_data = 0;
  std::uint64_t unused[2] = {};
  Segment segment[kMaxSegments];
};
static_assert(sizeof(Entry) == 1024);

using Word = std::atomic<std::uint64_t>;
static_assert(Word::is_always_lock_free && sizeof(Word) == 8);

struct SubmitRing {
  alignas(kCacheLine) Word posted{0};    // entries ever stored
  alignas(kCacheLine) Word epoch{0};     // see above; starts at the Hello's value
  alignas(kCacheLine) Word sleeping{0};  // odd: the initiator blocks on its socket
  alignas(kCacheLine) Entry entries[kDepth];
};

enum class Fault : std::uint64_t {
  kNone,
  kMalformed,  // an entry that no initiator of this version makes
  kRefused,    // a key or range that is not the peer's to write
  kVoid,       // the epoch word changed under a copy
};

struct AckBlock {
  alignas(kCacheLine) Word completed{0};  // entries copied: they complete in the order of posting
  Word fault{0};                          // Fault: nothing after `completed` was or will be copied
  alignas(kCacheLine) Word sleeping{0};   // odd: the target blocks on its socket
};

// First packet of the initiator; with it come the ring's and the sources' descriptors.
struct Hello {
  std::uint64_t magic = 0;
  std::uint32_t version = 0;
  std::uint32_t sources = 0;
  std::uint64_t token = 0;  // from the target's address: shows that the control channel told it
  std::uint64_t epoch = 0;
};

// The target's answer; with it comes the descriptor of the acknowledgements unless it refuses.
struct Welcome {
  std::uint64_t magic = 0;
  std::uint32_t version = 0;
  std::uint32_t refused = 0;  // kRefused...
  char why[160] = {};
};

constexpr std::uint32_t kRefusedForGood = 1;
constexpr std::uint32_t kRefusedForNow = 2;  // for want of descriptors or memory

constexpr std::uint64_t kHelloMagic = 0x6f6c6c65482d766bULL;    // "kv-Hello"
constexpr std::uint64_t kWelcomeMagic = 0x656d636c65572d6bULL;  // "k-Welcme"
constexpr char kDoorbell = 'd';

}  // namespace kvd::fabric::local
