#include "fabric/write_pipeline.h"

#include <algorithm>
#include <atomic>
#include <bit>

#include "base/units.h"

namespace kvd::fabric {
namespace {

// Pipelines may share an endpoint (RDMA NICs): the upper bits keep their contexts apart.
std::uint64_t first_context() {
  static std::atomic<std::uint64_t> pipelines{0};
  return ((pipelines.fetch_add(1, std::memory_order_relaxed) + 1) << 40) | 1;
}

std::uint64_t bytes_of(const QueuedWrite& write) {
  std::uint64_t bytes = 0;
  for (const LocalPiece& piece : write.local) bytes += piece.bytes;
  return bytes;
}

}  // namespace

WritePipeline::WritePipeline(Endpoint* endpoint, PeerHandle peer, const Capabilities& capabilities,
                             const Clock* clock, Duration post_timeout)
    : endpoint_(endpoint),
      peer_(peer),
      capabilities_(capabilities),
      clock_(clock),
      post_timeout_(post_timeout),
      posted_(std::bit_ceil(2 * std::size_t{std::max(1u, capabilities.max_inflight_ops)})),
      next_context_(first_context()) {}

void WritePipeline::enqueue(StreamId stream, QueuedWrite write) {
  Stream& entry = streams_[stream];
  if (entry.queued() == 0) turn_.insert(write.urgent ? turn_.begin() : turn_.end(), stream);
  entry.queue.push_back(std::move(write));
  ++queued_ops_;
}

std::size_t WritePipeline::purge(StreamId stream) {
  auto it = streams_.find(stream);
  if (it == streams_.end()) return 0;
  const std::size_t dropped = it->second.queued();
  queued_ops_ -= dropped;
  it->second.clear();
  std::erase(turn_, stream);
  // What EAGAIN held up may have been one of these.
  if (turn_.empty()) stuck_since_ = {0};
  if (it->second.inflight == 0) streams_.erase(it);
  return dropped;
}

std::size_t WritePipeline::inflight(StreamId stream) const {
  auto it = streams_.find(stream);
  return it == streams_.end() ? 0 : it->second.inflight;
}

std::size_t WritePipeline::queued(StreamId stream) const {
  auto it = streams_.find(stream);
  return it == streams_.end() ? 0 : it->second.queued();
}

void WritePipeline::pump() {
  while (health_.ok() && !turn_.empty()) {
    const StreamId id = turn_.front();
    Stream& stream = streams_.at(id);
    const QueuedWrite& write = stream.queue[stream.next];
    const std::uint64_t bytes = bytes_of(write);
    if (bytes > capabilities_.max_inflight_bytes) {
      health_ = invalid_argument("a write of " + format_bytes(bytes) + " is above the limit of " +
                                 format_bytes(capabilities_.max_inflight_bytes) + " in flight");
      return;
    }
    const std::uint64_t counted = write.urgent ? 0 : bytes;
    if (inflight_ops_ >= capabilities_.max_inflight_ops ||
        inflight_bytes_ + counted > capabilities_.max_inflight_bytes) {
      return;
    }
    // Where writes complete out of order an old one may still hold the next cell.
    while (cell_of(next_context_).context != 0) ++next_context_;
    WriteRequest request{.local = {write.local.data(), write.local.size()},
                         .remote = {write.remote.data(), write.remote.size()},
                         .context = next_context_,
                         .delivery_complete = write.delivery_complete,
                         .remote_data = write.remote_data};
    const TimePoint now = clock_->now();
    const Status status = endpoint_->write(peer_, request);
    if (status.code() == StatusCode::kAgain) {
      if (stuck_since_.ns == 0) stuck_since_ = now;
      if (now - stuck_since_ > post_timeout_) {
        health_ = Status(StatusCode::kDeadline, "the provider accepted no write for " +
                                                    format_duration(now - stuck_since_));
      }
      return;
    }
    if (!status.ok()) {
      health_ = status;
      return;
    }
    stuck_since_ = {0};
    cell_of(next_context_) = {next_context_, id, write.tag, bytes, write.urgent, now};
    ++next_context_;
    ++inflight_ops_;
    inflight_bytes_ += counted;
    ++stream.inflight;
    ++stream.next;
    --queued_ops_;
    turn_.pop_front();
    if (stream.queued() != 0) {
      turn_.push_back(id);
    } else {
      stream.clear();
    }
  }
}

std::optional<WriteResult> WritePipeline::on_completion(const Completion& completion) {
  if (completion.kind != CompletionKind::kWrite) return std::nullopt;
  Posted& cell = cell_of(completion.context);
  if (completion.context == 0 || cell.context != completion.context) return std::nullopt;
  const Posted posted = cell;
  cell.context = 0;
  --inflight_ops_;
  if (!posted.urgent) inflight_bytes_ -= posted.bytes;
  // Something moves: EAGAIN starts to count anew.
  stuck_since_ = {0};
  if (auto stream = streams_.find(posted.stream); stream != streams_.end()) {
    --stream->second.inflight;
    if (stream->second.inflight == 0 && stream->second.queued() == 0) streams_.erase(stream);
  }
  if (completion.status.ok()) {
    bytes_completed_ += posted.bytes;
    ++writes_completed_;
  } else if (health_.ok()) {
    health_ = completion.status;
  }
  return WriteResult{posted.stream, posted.tag, posted.bytes, completion.status, posted.posted};
}

}  // namespace kvd::fabric
