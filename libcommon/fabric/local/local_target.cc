#include "fabric/local/local_target.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "fabric/local/local_copy.h"

namespace kvd::fabric::local {
namespace {

// Bytes after which no further write is begun, of which each may be 1 MiB: poll() returns to its
// event loop after some 100 us.
constexpr std::uint64_t kCopyBudget = 512 * 1024;

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

Status check_hello(const Hello& hello, const Packet& packet) {
  if (hello.version != kVersion) {
    return {StatusCode::kNoProvider, "local: the peer speaks version " +
                                         std::to_string(hello.version) + ", and this one version " +
                                         std::to_string(kVersion)};
  }
  if (packet.descriptors_lost) return lost_descriptors();
  if (hello.sources > kMaxSources || packet.descriptors.size() != hello.sources + 1) {
    return {StatusCode::kNoProvider, "local: not all of the peer's memory arrived"};
  }
  return {};
}

}  // namespace

Status Target::prepare(const Hello& hello, const Packet& packet, Fd* ack) {
  KVD_RETURN_IF_ERROR(check_hello(hello, packet));
  epoch_ = hello.epoch;
  auto ring = Mapping::of_peer(packet.descriptors[0].get(), sizeof(SubmitRing));
  if (!ring.ok()) return ring.status();
  ring_ = std::move(*ring);
  for (std::size_t i = 1; i < packet.descriptors.size(); ++i) {
    auto source = Mapping::of_peer(packet.descriptors[i].get(), 1);
    if (!source.ok()) return source.status();
    sources_.push_back(std::move(*source));
  }
  auto made = Mapping::create(sizeof(AckBlock), ack);
  if (!made.ok()) return made.status();
  ack_ = std::move(*made);
  new (ack_.data()) AckBlock;
  return {};
}

Status Target::answer(const Hello& hello, const Packet& packet) {
  Fd ack;
  const Status prepared = prepare(hello, packet, &ack);
  Welcome welcome{.magic = kWelcomeMagic, .version = kVersion};
  const auto bytes = std::as_bytes(std::span(&welcome, 1));
  if (!prepared.ok()) {
    const bool for_now = prepared.code() == StatusCode::kResourceExhausted;
    welcome.refused = for_now ? kRefusedForNow : kRefusedForGood;
    prepared.message().copy(welcome.why, sizeof welcome.why - 1);
    (void)line_.send(bytes, {}).ok();
    return prepared;
  }
  const int passed[] = {ack.get()};
  return line_.send(bytes, passed);
}

Result<std::unique_ptr<Target>> Target::accept(Fd socket, const Hello& hello,
                                               const Packet& packet) {
  auto out = std::make_unique<Target>(std::move(socket));
  KVD_RETURN_IF_ERROR(out->answer(hello, packet));
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
  if (line_.owes()) line_.ring(ring()->sleeping);
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
    line_.ring(ring()->sleeping);
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

void Target::break_off(Fault fault, Status why) {
  if (!broken_.ok()) return;
  broken_ = std::move(why);
  fault_owed_ = true;
  ack()->fault.store(static_cast<std::uint64_t>(fault), std::memory_order_release);
  // The peer reads its end; its pages are not looked at again.
  line_.close();
  sources_.clear();
}

void Target::service() {
  if (!broken_.ok()) return;
  bool malformed = false;
  Status status = line_.read([&](const Packet&) {
    malformed = true;
    return Status(StatusCode::kFailed, "local: the peer sent what no peer sends");
  });
  if (!status.ok()) break_off(malformed ? Fault::kMalformed : Fault::kNone, std::move(status));
}

bool Target::has_work() const {
  if (!broken_.ok()) return fault_owed_;
  return line_.owes() || ring()->posted.load(std::memory_order_relaxed) != done_;
}

void Target::fall_asleep() {
  if (broken_.ok()) local::fall_asleep(&ack()->sleeping);
}

void Target::wake_up() { local::wake_up(&ack()->sleeping); }

}  // namespace kvd::fabric::local
