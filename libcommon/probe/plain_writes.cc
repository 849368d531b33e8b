#include "probe/plain_writes.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace kvd::probe {
namespace {
// Many, so that small pieces do not come from the caches again and again: 256 MiB in 4 KiB pieces.
constexpr std::size_t kPlaces = 65536, kFewPlaces = 4096;
}  // namespace

PlainWriter::PlainWriter(fabric::Domain* domain, std::byte* memory, std::uint64_t bytes,
                         const Clock* clock)
    : domain_(domain), memory_(memory), bytes_(bytes), clock_(clock) {}

Status PlainWriter::open() {
  auto endpoint = domain_->open_endpoint();
  if (!endpoint.ok()) return endpoint.status();
  endpoint_ = std::move(*endpoint);
  return {};
}

Status PlainWriter::connect(const fabric::FabricAddress& target, const fabric::RemoteRegion& region,
                            std::uint64_t target_bytes) {
  if (endpoint_ == nullptr) KVD_RETURN_IF_ERROR(open());
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
      order.pieces > capabilities.rma_iov_limit || (order.read && order.pieces != 1) ||
      order.write_bytes > capabilities.max_write_bytes || piece > bytes_ || piece > target_bytes_ ||
      order.depth == 0 || order.count == 0) {
    return invalid_argument("plain writes of this size cannot be posted");
  }
  if (order.in_place &&
      (order.pieces != 1 || order.count > bytes_ / piece || order.count > target_bytes_ / piece)) {
    return invalid_argument("the memory holds fewer pages than are to be written");
  }
  const bool same_places = !from_.empty() && !order.in_place && !order_.in_place &&
                           order.seed == order_.seed && order.write_bytes == order_.write_bytes &&
                           order.pieces == order_.pieces;
  order_ = order;
  if (!same_places) draw_places(piece);
  posted_ = completed_ = 0;
  began_ = clock_->now();
  return {};
}

void PlainWriter::draw_places(std::uint64_t piece) {
  Rng rng(order_.seed);
  place_ = 0;
  if (order_.in_place) {
    from_.resize(order_.count);
    std::iota(from_.begin(), from_.end(), 0);
    for (std::size_t i = from_.size(); i > 1; --i) std::swap(from_[i - 1], from_[rng.below(i)]);
    for (std::uint64_t& place : from_) place *= piece;
    to_ = from_;
    return;
  }
  const std::uint64_t here = bytes_ / piece, there = target_bytes_ / piece;
  const std::size_t places = std::clamp<std::uint64_t>(std::max(here, there), kFewPlaces, kPlaces);
  from_.resize(places);
  to_.resize(places);
  for (std::uint64_t& place : from_) place = rng.below(here) * piece;
  for (std::uint64_t& place : to_) place = rng.below(there) * piece;
}

Status PlainWriter::post_write(std::uint64_t piece, bool last) {
  std::array<fabric::LocalPiece, kMostPieces> local;
  std::array<fabric::RemotePiece, kMostPieces> remote;
  for (std::uint32_t i = 0; i < order_.pieces; ++i) {
    const std::size_t place = (place_ + i) % from_.size();
    local[i] = {memory_ + from_[place], piece};
    remote[i] = {region_.base + to_[place], piece, region_.key};
  }
  if (order_.read) {
    return endpoint_->read(peer_, memory_ + from_[place_ % from_.size()], remote[0], posted_ + 1);
  }
  const fabric::Capabilities& capabilities = domain_->capabilities();
  const bool proves = last || !capabilities.write_after_write;
  fabric::WriteRequest request{.local = {local.data(), order_.pieces},
                               .remote = {remote.data(), order_.pieces},
                               .context = posted_ + 1,
                               .delivery_complete = proves && capabilities.delivery_complete};
  if (last && order_.signal) request.remote_data = 1;
  return endpoint_->write(peer_, request);
}

bool PlainWriter::post() {
  const Status status = post_write(order_.write_bytes / order_.pieces, posted_ + 1 == order_.count);
  if (status.code() == StatusCode::kAgain) return false;
  if (!status.ok()) {
    health_ = status;
    return false;
  }
  ++posted_;
  place_ = (place_ + order_.pieces) % from_.size();
  return true;
}

bool PlainWriter::step() {
  bool busy = false;
  while (health_.ok() && posted_ < order_.count && posted_ - completed_ < order_.depth && post()) {
    busy = true;
  }
  const std::size_t count = endpoint_->poll(completions_);
  for (std::size_t i = 0; i < count; ++i) {
    // What others write to this endpoint is none of ours.
    if (completions_[i].kind == fabric::CompletionKind::kRemoteData) continue;
    ++completed_;
    if (!completions_[i].status.ok()) health_ = completions_[i].status;
  }
  return busy || count != 0;
}

Result<std::unique_ptr<PlainTarget>> PlainTarget::open(fabric::Domain* domain, std::byte* memory,
                                                       std::uint64_t bytes) {
  auto out = std::make_unique<PlainTarget>();
  out->looks_ = fabric::looks_for_data(domain->capabilities());
  auto endpoint = domain->open_endpoint();
  if (!endpoint.ok()) return endpoint.status();
  out->endpoint_ = std::move(*endpoint);
  auto region = domain->register_memory(memory, bytes, true, out->endpoint_.get());
  if (!region.ok()) return region.status();
  out->region_ = std::move(*region);
  return out;
}

Status PlainTarget::insert(const fabric::FabricAddress& writer) {
  return endpoint_->insert(writer).status();
}

bool PlainTarget::step(bool* busy) {
  std::size_t count = 0;
  for (int look = 0; look < looks_ && count == 0; ++look) {
    count = endpoint_->poll(completions_);
  }
  *busy = count != 0;
  bool landed = false;
  for (std::size_t i = 0; i < count; ++i) {
    if (completions_[i].kind == fabric::CompletionKind::kRemoteData) landed = true;
    if (completions_[i].kind == fabric::CompletionKind::kFault) health_ = completions_[i].status;
  }
  return landed;
}

}  // namespace kvd::probe
