#include "fabric/local/local_target.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "fabric/local/local_copy.h"

namespace kvd::fabric::local {
namespace {

// Bytes after which poll() returns to its event loop: some 100 us.
constexpr std::uint64_t kCopyBudget = 512 * 1024;
constexpr int kPacketsPerLook = 16;

// One load of each word: the peer may be writing to it.
template <std::size_t kWords>
void take_words(const void* shared, std::uint64_t (&words)[kWords]) {
  const auto* from = static_cast<const std::uint64_t*>(shared);
  for (std::size_t i = 0; i < kWords; ++i) words[i] = __atomic_load_n(from + i, __ATOMIC_RELAXED);
}

std::byte* find(const TargetTable& regions, const Segment& segment) {
  for (const TargetRegion& region : regions) {
    if (region.key != segment.key || segment.address < region.base) continue;
    const std::uint64_t offset = segment.address - region.base;
    if (offset > region.bytes || segment.bytes > region.bytes - offset) continue;
    return region.data + offset;
  }
  return nullptr;
}

Status check_hello(const Hello& hello, const std::vector<Fd>& descriptors) {
  if (hello.version != kVersion) {
    return {StatusCode::kNoProvider, "local: the peer speaks version " +
                                         std::to_string(hello.version) + ", and this one version " +
                                         std::to_string(kVersion)};
  }
  if (hello.sources > kMaxSources || descriptors.size() != hello.sources + 1) {
    return {StatusCode::kNoProvider, "local: not all of the peer's memory arrived"};
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Target>> Target::accept(Fd socket, const Hello& hello,
                                               const std::vector<Fd>& descriptors) {
  auto out = std::make_unique<Target>();
  Fd ack_fd;
  const auto prepare = [&]() -> Status {
    KVD_RETURN_IF_ERROR(check_hello(hello, descriptors));
    auto ring = Mapping::of_peer(descriptors[0].get(), sizeof(SubmitRing));
    if (!ring.ok()) return ring.status();
    out->ring_ = std::move(*ring);
    for (std::size_t i = 1; i < descriptors.size(); ++i) {
      auto source = Mapping::of_peer(descriptors[i].get(), 1);
      if (!source.ok()) return source.status();
      out->sources_.push_back(std::move(*source));
    }
    auto ack = Mapping::create(sizeof(AckBlock), &ack_fd);
    if (!ack.ok()) return ack.status();
    out->ack_ = std::move(*ack);
    new (out->ack_.data()) AckBlock;
    return {};
  };
  const Status prepared = prepare();
  Welcome welcome{.magic = kWelcomeMagic, .version = kVersion};
  if (!prepared.ok()) {
    welcome.refused = 1;
    prepared.message().copy(welcome.why, sizeof welcome.why - 1);
    (void)send_packet(socket.get(), std::as_bytes(std::span(&welcome, 1)), {}).ok();
    return prepared;
  }
  out->epoch_ = hello.epoch;
  out->socket_ = std::move(socket);
  const int passed[] = {ack_fd.get()};
  KVD_RETURN_IF_ERROR(
      send_packet(out->socket_.get(), std::as_bytes(std::span(&welcome, 1)), passed));
  return out;
}

// Takes the next entry over and checks all of it.
Fault Target::take(const TargetTable& regions, Job* job) const {
  const Entry& shared = ring()->entries[done_ % kDepth];
  std::uint64_t head[2];
  take_words(&shared, head);
  const auto segments = static_cast<std::uint32_t>(head[0]);
  if (segments == 0 || segments > kMaxSegments) return Fault::kMalformed;
  if ((head[0] >> 32) != 0) job->remote_data = head[1];
  for (std::uint32_t i = 0; i < segments; ++i) {
    std::uint64_t words[sizeof(Segment) / 8];
    take_words(&shared.segment[i], words);
    Segment segment;
    std::memcpy(&segment, words, sizeof segment);
    if (segment.bytes == 0 || segment.source >= sources_.size()) return Fault::kMalformed;
    const Mapping& source = sources_[segment.source];
    if (segment.offset > source.bytes() || segment.bytes > source.bytes() - segment.offset) {
      return Fault::kMalformed;
    }
    std::byte* to = find(regions, segment);
    if (to == nullptr) return Fault::kRefused;
    job->pieces[job->count++] = {to, source.data() + segment.offset, segment.bytes};
    job->bytes += segment.bytes;
  }
  return job->bytes <= kMaxWriteBytes ? Fault::kNone : Fault::kMalformed;
}

std::size_t Target::copy(const TargetTable& regions, std::span<Completion> out) {
  std::size_t count = 0;
  std::uint64_t copied = 0;
  while (broken_.ok() && copied < kCopyBudget && count < out.size()) {
    const std::uint64_t posted = ring()->posted.load(std::memory_order_acquire);
    if (posted == done_) break;
    Job job;
    const Fault fault = posted - done_ <= kDepth ? take(regions, &job) : Fault::kMalformed;
    if (fault != Fault::kNone) {
      break_off(fault, {StatusCode::kFailed,
                        fault == Fault::kRefused
                            ? "local: the peer wrote with a key or to a range that is not its own"
                            : "local: the peer's submission ring is malformed"});
      break;
    }
    for (std::uint32_t i = 0; i < job.count; ++i) {
      const Piece& piece = job.pieces[i];
      if (i + 1 < job.count) prefetch(job.pieces[i + 1].from, job.pieces[i + 1].bytes);
      copy_bytes(piece.to, piece.from, piece.bytes);
    }
    copied += job.bytes;
    // All reads of the copy come before this load: what it read was the peer's as posted, or the
    // word has changed.
    std::atomic_thread_fence(std::memory_order_acquire);
    if (ring()->epoch.load(std::memory_order_relaxed) != epoch_) {
      break_off(Fault::kVoid, unavailable("local: the peer has given the connection up"));
      break;
    }
    ++done_;
    ack()->completed.store(done_, std::memory_order_release);
    ring_doorbell();
    if (job.remote_data) {
      out[count++] = {.kind = CompletionKind::kRemoteData, .data = *job.remote_data};
    }
  }
  if (fault_owed_ && count < out.size()) {
    fault_owed_ = false;
    out[count++] = {.kind = CompletionKind::kFault, .status = broken_};
  }
  return count;
}

void Target::ring_doorbell() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const std::uint64_t sleeping = ring()->sleeping.load(std::memory_order_relaxed);
  if (sleeping % 2 == 0 || sleeping == rung_) return;
  rung_ = sleeping;
  (void)send_packet(socket_.get(), std::as_bytes(std::span(&kDoorbell, 1)), {}).ok();
}

void Target::break_off(Fault fault, Status why) {
  if (!broken_.ok()) return;
  broken_ = std::move(why);
  fault_owed_ = true;
  ack()->fault.store(static_cast<std::uint64_t>(fault), std::memory_order_release);
  // The peer reads its end; its pages are not looked at again.
  socket_.reset();
  sources_.clear();
}

void Target::service() {
  for (int i = 0; i < kPacketsPerLook && broken_.ok(); ++i) {
    std::byte packet[sizeof(Welcome)];
    std::vector<Fd> descriptors;
    const auto got = receive_packet(socket_.get(), packet, &descriptors);
    if (!got.ok()) {
      if (got.status().code() == StatusCode::kAgain) return;
      break_off(Fault::kNone, got.status());
    } else if (*got != sizeof kDoorbell) {
      break_off(Fault::kMalformed,
                {StatusCode::kFailed, "local: the peer sent what no peer sends"});
    }
  }
}

bool Target::may_wait() {
  if (!broken_.ok()) return !fault_owed_;
  Word& sleeping = ack()->sleeping;
  const std::uint64_t value = sleeping.load(std::memory_order_relaxed);
  sleeping.store(value | 1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return ring()->posted.load(std::memory_order_relaxed) == done_;
}

void Target::wake_up() {
  Word& sleeping = ack()->sleeping;
  const std::uint64_t value = sleeping.load(std::memory_order_relaxed);
  if (value % 2 != 0) sleeping.store(value + 1, std::memory_order_relaxed);
}

}  // namespace kvd::fabric::local
