#include "kvd-bench/plain_writes.h"

#include <algorithm>

namespace kvd::tools {
namespace {
constexpr std::size_t kPlaces = 4096;
}  // namespace

PlainWriter::PlainWriter(fabric::Domain* domain, const std::byte* source,
                         std::uint64_t source_bytes, const Clock* clock)
    : domain_(domain), source_(source), source_bytes_(source_bytes), clock_(clock) {}

Status PlainWriter::connect(const fabric::FabricAddress& target, const fabric::RemoteRegion& region,
                            std::uint64_t target_bytes) {
  auto endpoint = domain_->open_endpoint();
  if (!endpoint.ok()) return endpoint.status();
  endpoint_ = std::move(*endpoint);
  auto peer = endpoint_->insert(target);
  if (!peer.ok()) return peer.status();
  peer_ = *peer;
  region_ = region;
  target_bytes_ = target_bytes;
  return {};
}

Status PlainWriter::start(const PlainOrder& order) {
  const fabric::Capabilities& capabilities = domain_->capabilities();
  const std::uint64_t piece = order.pieces == 0 ? 0 : order.write_bytes / order.pieces;
  if (piece == 0 || order.pieces > std::min<std::size_t>(capabilities.iov_limit, kMostPieces) ||
      order.pieces > capabilities.rma_iov_limit ||
      order.write_bytes > capabilities.max_write_bytes || piece > source_bytes_ ||
      piece > target_bytes_ || order.depth == 0 || order.count == 0) {
    return invalid_argument("plain writes of this size cannot be posted");
  }
  order_ = order;
  Rng rng(order.seed);
  from_.resize(kPlaces);
  to_.resize(kPlaces);
  for (std::uint64_t& place : from_) place = rng.below(source_bytes_ / piece) * piece;
  for (std::uint64_t& place : to_) place = rng.below(target_bytes_ / piece) * piece;
  posted_ = completed_ = 0;
  began_ = clock_->now();
  return {};
}

bool PlainWriter::post() {
  const std::uint64_t piece = order_.write_bytes / order_.pieces;
  std::array<fabric::LocalPiece, kMostPieces> local;
  std::array<fabric::RemotePiece, kMostPieces> remote;
  for (std::uint32_t i = 0; i < order_.pieces; ++i) {
    const std::size_t place = (std::size_t{posted_} * order_.pieces + i) % kPlaces;
    local[i] = {source_ + from_[place], piece};
    remote[i] = {region_.base + to_[place], piece, region_.key};
  }
  const bool last = posted_ + 1 == order_.count;
  fabric::WriteRequest request{.local = {local.data(), order_.pieces},
                               .remote = {remote.data(), order_.pieces},
                               .context = posted_ + 1,
                               .delivery_complete = last};
  if (last) request.remote_data = 1;
  const Status status = endpoint_->write(peer_, request);
  if (status.code() == StatusCode::kAgain) return false;
  if (!status.ok()) {
    health_ = status;
    return false;
  }
  ++posted_;
  return true;
}

bool PlainWriter::step() {
  bool busy = false;
  while (health_.ok() && posted_ < order_.count && posted_ - completed_ < order_.depth && post()) {
    busy = true;
  }
  const std::size_t count = endpoint_->poll(completions_);
  for (std::size_t i = 0; i < count; ++i) {
    ++completed_;
    if (!completions_[i].status.ok()) health_ = completions_[i].status;
  }
  return busy || count != 0;
}

Result<std::unique_ptr<PlainTarget>> PlainTarget::open(fabric::Domain* domain, std::byte* memory,
                                                       std::uint64_t bytes) {
  auto out = std::make_unique<PlainTarget>();
  auto endpoint = domain->open_endpoint();
  if (!endpoint.ok()) return endpoint.status();
  out->endpoint_ = std::move(*endpoint);
  auto region = domain->register_memory(memory, bytes, true, out->endpoint_.get());
  if (!region.ok()) return region.status();
  out->region_ = std::move(*region);
  return out;
}

bool PlainTarget::step(bool* busy) {
  const std::size_t count = endpoint_->poll(completions_);
  *busy = count != 0;
  bool landed = false;
  for (std::size_t i = 0; i < count; ++i) {
    if (completions_[i].kind == fabric::CompletionKind::kRemoteData) landed = true;
    if (completions_[i].kind == fabric::CompletionKind::kFault) health_ = completions_[i].status;
  }
  return landed;
}

}  // namespace kvd::tools
