#include "fabric/local/local_domain.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "base/rng.h"
#include "device/host_buffer.h"

namespace kvd::fabric::local {
namespace {

class SourceRegion final : public MemoryRegion {
 public:
  SourceRegion(std::shared_ptr<SourceTable> table, const std::byte* start, std::uint64_t bytes)
      : table_(std::move(table)), start_(start), bytes_(bytes) {}
  ~SourceRegion() override {
    const auto at = std::find_if(table_->begin(), table_->end(),
                                 [&](const Source& source) { return source.data == start_; });
    if (at != table_->end() && --at->registrations == 0) table_->erase(at);
  }
  RemoteRegion remote() const override { return {.base = 0, .bytes = bytes_, .key = 0}; }

 private:
  std::shared_ptr<SourceTable> table_;
  const std::byte* start_;  // of the memfd
  std::uint64_t bytes_;
};

class WritableRegion final : public MemoryRegion {
 public:
  WritableRegion(std::shared_ptr<TargetTable> table, RemoteRegion remote)
      : table_(std::move(table)), remote_(remote) {}
  ~WritableRegion() override {
    std::erase_if(*table_, [&](const TargetRegion& region) { return region.key == remote_.key; });
  }
  RemoteRegion remote() const override { return remote_; }

 private:
  std::shared_ptr<TargetTable> table_;
  RemoteRegion remote_;
};

Status probe_write() {
  constexpr std::size_t kBytes = 4096;
  auto buffer = device::HostBuffer::allocate(kBytes, device::Backing::kSharedSmall);
  if (!buffer.ok()) return buffer.status();
  std::memset(buffer->data(), 0x5a, kBytes);
  std::array<std::byte, kBytes> memory{};
  LocalDomain domain;
  auto source = domain.register_memory(buffer->data(), kBytes, false, nullptr);
  auto from = domain.open_endpoint();
  auto to = domain.open_endpoint();
  for (const Status& status : {source.status(), from.status(), to.status()}) {
    if (!status.ok()) return status;
  }
  auto region = domain.register_memory(memory.data(), kBytes, true, to->get());
  auto peer = (*from)->insert((*to)->address());
  for (const Status& status : {region.status(), peer.status()}) {
    if (!status.ok()) return status;
  }
  const RemoteRegion remote = (*region)->remote();
  const LocalPiece local{buffer->data(), kBytes};
  const RemotePiece target{remote.base, kBytes, remote.key};
  KVD_RETURN_IF_ERROR((*from)->write(*peer, {.local = {&local, 1}, .remote = {&target, 1}}));
  std::array<Completion, 4> batch;
  // Both ends are here and nothing is waited for: a few turns are enough or nothing comes.
  for (int turn = 0; turn < 64; ++turn) {
    for (Endpoint* endpoint : {to->get(), from->get()}) {
      if (endpoint->poll(batch) == 0) continue;
      if (!batch[0].status.ok()) return batch[0].status;
      if (std::memcmp(memory.data(), buffer->data(), kBytes) == 0) return {};
      return {StatusCode::kNoProvider, "local: the bytes of a trial write did not arrive"};
    }
  }
  return {StatusCode::kNoProvider, "local: a trial write did not arrive"};
}

}  // namespace

LocalDomain::LocalDomain() {
  capabilities_.provider = "local";
  capabilities_.libfabric_name = "";
  // One ring, copied from front to back by the owner of the memory: each of these by construction.
  capabilities_.write_after_write = true;
  capabilities_.remote_cq_data = true;
  capabilities_.delivery_complete = true;
  capabilities_.endpoint_per_peer = true;
  capabilities_.endpoint_close_fences = true;
  capabilities_.region_close_fences = true;
  capabilities_.target_copies = true;
  capabilities_.remote_read = false;
  capabilities_.shared_sources = true;
  capabilities_.iov_limit = kMaxPieces;
  capabilities_.rma_iov_limit = kMaxPieces;
  capabilities_.max_write_bytes = kMaxWriteBytes;
  capabilities_.max_inflight_ops = kDepth;
}

Result<std::unique_ptr<Endpoint>> LocalDomain::open_endpoint() {
  return LocalEndpoint::open(sources_);
}

Result<std::unique_ptr<MemoryRegion>> LocalDomain::register_memory(std::byte* data,
                                                                   std::uint64_t bytes,
                                                                   bool remote_write,
                                                                   Endpoint* endpoint) {
  if (data == nullptr || bytes == 0) return invalid_argument("local: an empty region");
  if (remote_write) {
    if (endpoint == nullptr) {
      return invalid_argument("local: name the endpoint that peers will write through");
    }
    const auto& table = static_cast<LocalEndpoint*>(endpoint)->regions();
    const RemoteRegion remote{.base = 0, .bytes = bytes, .key = secure_random_u64()};
    table->push_back({remote.key, remote.base, bytes, data});
    return std::unique_ptr<MemoryRegion>(std::make_unique<WritableRegion>(table, remote));
  }
  const auto memory = device::shared_memory_at(data, bytes);
  if (!memory) {
    return Status(StatusCode::kNoProvider,
                  "local: the source is not in shared memory (device::Backing::kShared)");
  }
  const auto at = std::find_if(sources_->begin(), sources_->end(),
                               [&](const Source& source) { return source.data == memory->data; });
  if (at != sources_->end()) {
    ++at->registrations;
  } else if (sources_->size() < kMaxSources) {
    sources_->push_back({memory->data, memory->bytes, memory->fd, 1});
  } else {
    return Status(StatusCode::kResourceExhausted, "local: too many source buffers");
  }
  return std::unique_ptr<MemoryRegion>(
      std::make_unique<SourceRegion>(sources_, memory->data, bytes));
}

Status probe() {
  const Status status = probe_write();
  if (status.ok()) return {};
  const std::string& why = status.message();
  return {StatusCode::kNoProvider, why.starts_with("local: ") ? why : "local: " + why};
}

}  // namespace kvd::fabric::local
