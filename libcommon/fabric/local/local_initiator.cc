#include "fabric/local/local_initiator.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace kvd::fabric::local {
namespace {

constexpr std::uint64_t kFirstEpoch = 1;

std::string text_of(Fault fault) {
  switch (fault) {
    case Fault::kNone:
      break;
    case Fault::kMalformed:
      return "local: the peer found the submission ring malformed";
    case Fault::kRefused:
      return "local: the peer refused a write: its key or its range";
    case Fault::kVoid:
      return "local: the peer saw the epoch end under its copy";
  }
  return "local: the peer ended the connection";
}

}  // namespace

Result<std::unique_ptr<Initiator>> Initiator::connect(const Address& peer,
                                                      const SourceTable& sources) {
  KVD_RETURN_IF_ERROR(check_scope(Scope::here(), to_string(peer.scope)));
  auto socket = connect_to(peer.name);
  if (!socket.ok()) return socket.status();
  Fd ring_fd;
  auto ring = Mapping::create(sizeof(SubmitRing), &ring_fd);
  if (!ring.ok()) return ring.status();
  auto out = std::make_unique<Initiator>(std::move(*socket));
  out->ring_ = std::move(*ring);
  new (out->ring_.data()) SubmitRing;
  out->ring()->epoch.store(kFirstEpoch, std::memory_order_relaxed);
  std::vector<int> descriptors{ring_fd.get()};
  for (const Source& source : sources) {
    out->sources_.push_back({source.data, source.bytes});
    descriptors.push_back(source.fd);
  }
  const Hello hello{.magic = kHelloMagic,
                    .version = kVersion,
                    .sources = static_cast<std::uint32_t>(sources.size()),
                    .token = peer.token,
                    .epoch = kFirstEpoch};
  KVD_RETURN_IF_ERROR(out->line_.send(std::as_bytes(std::span(&hello, 1)), descriptors));
  return out;
}

Initiator::~Initiator() {
  if (ring_.data() != nullptr) ring()->epoch.fetch_add(1, std::memory_order_seq_cst);
}

bool Initiator::locate(const std::byte* data, std::uint64_t bytes, Segment* segment) const {
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    if (data < sources_[i].data) continue;
    const auto offset = static_cast<std::uint64_t>(data - sources_[i].data);
    if (offset > sources_[i].bytes || bytes > sources_[i].bytes - offset) continue;
    segment->source = static_cast<std::uint32_t>(i);
    segment->offset = offset;
    return true;
  }
  return false;
}

// Cuts the write into runs that are contiguous on both sides.
Status Initiator::fill(const WriteRequest& request, Entry* entry) const {
  std::uint64_t local_bytes = 0, remote_bytes = 0;
  for (const LocalPiece& piece : request.local) local_bytes += piece.bytes;
  for (const RemotePiece& piece : request.remote) remote_bytes += piece.bytes;
  if (request.local.size() > kMaxPieces || request.remote.size() > kMaxPieces || local_bytes == 0 ||
      local_bytes != remote_bytes || local_bytes > kMaxWriteBytes) {
    return invalid_argument(
        "local: a write has 1 to 16 pieces on both sides, equal sums, and at most 1 MiB");
  }
  std::size_t from = 0, to = 0;
  std::uint64_t from_at = 0, to_at = 0;
  entry->segments = 0;
  while (from < request.local.size() && to < request.remote.size()) {
    const LocalPiece& local = request.local[from];
    const RemotePiece& remote = request.remote[to];
    const std::uint64_t bytes = std::min(local.bytes - from_at, remote.bytes - to_at);
    if (bytes > 0) {
      Segment& segment = entry->segment[entry->segments++];
      if (!locate(local.address + from_at, bytes, &segment)) {
        return invalid_argument("local: a write's source was not registered before its peer");
      }
      segment.bytes = static_cast<std::uint32_t>(bytes);
      segment.address = remote.address + to_at;
      segment.key = remote.key;
    }
    from_at += bytes;
    to_at += bytes;
    if (from_at == local.bytes) ++from, from_at = 0;
    if (to_at == remote.bytes) ++to, to_at = 0;
  }
  entry->has_remote_data = request.remote_data.has_value() ? 1 : 0;
  entry->remote_data = request.remote_data.value_or(0);
  return {};
}

Status Initiator::write(const WriteRequest& request) {
  if (!broken_.ok()) return broken_;
  if (posted_ - reaped_ >= kDepth) return {StatusCode::kAgain, "local: the ring is full"};
  const std::size_t index = posted_ % kDepth;
  KVD_RETURN_IF_ERROR(fill(request, &ring()->entries[index]));
  contexts_[index] = request.context;
  ring()->posted.store(++posted_, std::memory_order_release);
  ring_doorbell();
  return {};
}

void Initiator::ring_doorbell() {
  if (ack_.data() != nullptr) line_.ring(ack()->sleeping);  // else the Hello wakes it
}

// Takes over how many writes the peer says it has copied; breaks off when it says what cannot be.
void Initiator::look_at_acks() {
  if (ack_.data() == nullptr) return;
  const std::uint64_t fault = ack()->fault.load(std::memory_order_acquire);
  const std::uint64_t completed = ack()->completed.load(std::memory_order_acquire);
  if (completed < completed_ || completed > posted_) {
    ack_.reset();
    return break_off({StatusCode::kFailed, "local: the peer acknowledged what was never written"});
  }
  completed_ = completed;
  if (fault != 0) break_off({StatusCode::kFailed, text_of(static_cast<Fault>(fault))});
}

void Initiator::break_off(Status why) {
  if (!broken_.ok()) return;
  broken_ = std::move(why);
  // Before any error completion gives a source back: what the peer copies from here on is void.
  ring()->epoch.fetch_add(1, std::memory_order_seq_cst);
  // What it has copied under the old word is complete; what it says after this is for nobody, or
  // the last write could still complete and nothing would tell of the break.
  look_at_acks();
  ack_.reset();
  line_.close();
  fault_owed_ = completed_ == posted_;
}

std::size_t Initiator::reap(std::span<Completion> out) {
  look_at_acks();
  if (line_.owes()) ring_doorbell();
  std::size_t count = 0;
  while (count < out.size() && reaped_ < completed_) {
    out[count++] = {.kind = CompletionKind::kWrite, .context = contexts_[reaped_++ % kDepth]};
  }
  if (broken_.ok()) return count;
  while (count < out.size() && reaped_ < posted_) {
    out[count++] = {.kind = CompletionKind::kWrite,
                    .context = contexts_[reaped_++ % kDepth],
                    .status = broken_};
  }
  if (count < out.size() && fault_owed_) {
    fault_owed_ = false;
    out[count++] = {.kind = CompletionKind::kFault, .status = broken_};
  }
  return count;
}

Status Initiator::take(const Packet& packet) {
  if (packet.bytes.size() != sizeof(Welcome) || ack_.data() != nullptr) {
    return {StatusCode::kFailed, "local: the peer sent what no peer sends"};
  }
  Welcome welcome;
  std::memcpy(&welcome, packet.bytes.data(), sizeof welcome);
  if (welcome.magic != kWelcomeMagic || welcome.version != kVersion) {
    return {StatusCode::kNoProvider, "local: the peer speaks another version"};
  }
  if (welcome.refused != 0) {
    welcome.why[sizeof welcome.why - 1] = 0;
    std::string why = welcome.why;
    // It goes into one line of the log.
    std::replace_if(
        why.begin(), why.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
    const bool for_now = welcome.refused == kRefusedForNow;
    return {for_now ? StatusCode::kResourceExhausted : StatusCode::kNoProvider,
            "local: refused by the peer: " + why};
  }
  if (packet.descriptors_lost) return lost_descriptors();
  if (packet.descriptors.size() != 1) {
    return {StatusCode::kNoProvider, "local: the peer passed no memory"};
  }
  auto ack = Mapping::of_peer(packet.descriptors[0].get(), sizeof(AckBlock));
  if (!ack.ok()) return ack.status();
  ack_ = std::move(*ack);
  // What was posted before it could be rung for: the target may have gone to sleep since its
  // Welcome.
  if (posted_ != 0) ring_doorbell();
  return {};
}

void Initiator::service() {
  if (!broken_.ok()) return;
  Status status = line_.read([this](const Packet& packet) { return take(packet); });
  if (!status.ok()) break_off(std::move(status));
}

bool Initiator::has_work() const {
  if (!broken_.ok()) return reaped_ < posted_ || fault_owed_;
  if (ack_.data() == nullptr) return false;  // the Welcome makes the socket readable
  return line_.owes() || ack()->completed.load(std::memory_order_relaxed) != reaped_ ||
         ack()->fault.load(std::memory_order_relaxed) != 0;
}

void Initiator::fall_asleep() {
  if (broken_.ok()) local::fall_asleep(&ring()->sleeping);
}

void Initiator::wake_up() { local::wake_up(&ring()->sleeping); }

}  // namespace kvd::fabric::local
