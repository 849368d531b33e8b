#include "fabric/sim/sim_fabric.h"

#include "base/ids.h"
#include "fabric/sim/sim_impl.h"

namespace kvd::fabric {
namespace {

constexpr std::uint32_t kIovLimit = 4;

using Impl = SimFabric::Impl;
using ImplPtr = std::shared_ptr<Impl>;
using EndpointId = Impl::EndpointId;
using EndpointState = Impl::EndpointState;
using RegionState = Impl::RegionState;
using Op = Impl::Op;

class SimRegion final : public MemoryRegion {
 public:
  SimRegion(ImplPtr impl, RemoteRegion remote) : impl_(std::move(impl)), remote_(remote) {}
  ~SimRegion() override { impl_->regions.at(remote_.key).alive = false; }
  RemoteRegion remote() const override { return remote_; }

 private:
  ImplPtr impl_;
  RemoteRegion remote_;
};

class SimEndpoint final : public Endpoint {
 public:
  SimEndpoint(ImplPtr impl, EndpointId id) : impl_(std::move(impl)), id_(id) {}
  ~SimEndpoint() override { impl_->close_endpoint(id_); }
  EndpointId id() const { return id_; }

  FabricAddress address() const override { return "sim:" + hex(id_); }

  Result<PeerHandle> insert(const FabricAddress& peer) override {
    for (const auto& [id, state] : impl_->endpoints) {
      if (peer == "sim:" + hex(id)) return PeerHandle{id};
    }
    return invalid_argument("sim: not an address of this fabric");
  }

  Status write(PeerHandle peer, const WriteRequest& request) override {
    Op op;
    std::uint64_t remote_bytes = 0;
    for (const LocalPiece& piece : request.local) op.total += piece.bytes;
    for (const RemotePiece& piece : request.remote) remote_bytes += piece.bytes;
    if (request.local.empty() || request.local.size() > kIovLimit || request.remote.empty() ||
        request.remote.size() > kIovLimit || op.total == 0 || op.total != remote_bytes ||
        op.total > impl_->faults.max_write_bytes ||
        (request.remote_data && !impl_->faults.remote_cq_data) ||
        !impl_->endpoints.contains(peer)) {
      return invalid_argument("sim: a write that no provider would take");
    }
    op.context = request.context;
    op.local.assign(request.local.begin(), request.local.end());
    op.remote.assign(request.remote.begin(), request.remote.end());
    op.delivery_complete = request.delivery_complete;
    op.remote_data = request.remote_data;
    return impl_->post(id_, peer, std::move(op));
  }

  Status read(PeerHandle peer, std::byte* into, const RemotePiece& from,
              std::uint64_t context) override {
    if (impl_->faults.target_pulls) return {StatusCode::kNoProvider, "sim: has no reads"};
    if (into == nullptr || from.bytes == 0 || !impl_->endpoints.contains(peer)) {
      return invalid_argument("sim: a read that no provider would take");
    }
    Op op;
    op.context = context;
    op.remote.push_back(from);
    op.read_into = into;
    op.total = from.bytes;
    return impl_->post(id_, peer, std::move(op));
  }

  std::size_t poll(std::span<Completion> out) override {
    impl_->clock->advance(impl_->faults.look_time);
    impl_->pull(id_);
    std::deque<Completion>& queue = impl_->endpoints.at(id_).completions;
    const std::size_t count = std::min(out.size(), queue.size());
    for (std::size_t i = 0; i < count; ++i) {
      out[i] = std::move(queue.front());
      queue.pop_front();
    }
    return count;
  }

  int wait_fd() const override { return -1; }
  bool may_wait() override {
    return impl_->endpoints.at(id_).completions.empty() && !impl_->may_pull(id_);
  }

 private:
  ImplPtr impl_;
  EndpointId id_;
};

class SimDomain final : public Domain {
 public:
  SimDomain(ImplPtr impl, std::string host)
      : impl_(std::move(impl)), host_(std::move(host)), id_(impl_->next_id++) {
    const SimFaults& faults = impl_->faults;
    capabilities_.provider = faults.target_pulls ? "local" : "sim";
    capabilities_.target_copies = faults.target_pulls;
    capabilities_.remote_read = !faults.target_pulls;
    capabilities_.libfabric_name = "sim";
    capabilities_.write_after_write = faults.ordered;
    capabilities_.remote_cq_data = faults.remote_cq_data;
    capabilities_.delivery_complete = true;
    capabilities_.endpoint_per_peer = true;
    capabilities_.endpoint_close_fences = faults.endpoint_close_is_fence;
    capabilities_.region_close_fences = !faults.land_after_region_close;
    capabilities_.iov_limit = kIovLimit;
    capabilities_.rma_iov_limit = kIovLimit;
    capabilities_.max_write_bytes = faults.max_write_bytes;
    capabilities_.best_write_bytes = faults.best_write_bytes;
    capabilities_.max_inflight_ops = faults.max_inflight_ops;
  }

  const Capabilities& capabilities() const override { return capabilities_; }

  Result<std::unique_ptr<Endpoint>> open_endpoint() override {
    const EndpointId id = impl_->next_id++;
    impl_->endpoints[id] = EndpointState{.host = host_, .domain = id_};
    return std::unique_ptr<Endpoint>(std::make_unique<SimEndpoint>(impl_, id));
  }

  Result<std::unique_ptr<MemoryRegion>> register_memory(std::byte* data, std::uint64_t bytes,
                                                        bool remote_write,
                                                        Endpoint* endpoint) override {
    if (data == nullptr || bytes == 0) return invalid_argument("sim: an empty region");
    if (remote_write && endpoint == nullptr) {
      return invalid_argument("sim: name the endpoint that peers will write through");
    }
    RemoteRegion remote;
    do {
      remote.key = impl_->rng.next();
    } while (impl_->regions.contains(remote.key));
    // Neither 0 nor the address: whoever forgets RemoteRegion::base finds out.
    remote.base = (1 + impl_->rng.below(1u << 20)) * 4096;
    remote.bytes = bytes;
    const EndpointId target = remote_write ? static_cast<SimEndpoint*>(endpoint)->id() : 0;
    impl_->regions[remote.key] = RegionState{
        .domain = id_, .endpoint = target, .data = data, .base = remote.base, .bytes = bytes};
    return std::unique_ptr<MemoryRegion>(std::make_unique<SimRegion>(impl_, remote));
  }

 private:
  ImplPtr impl_;
  std::string host_;
  std::uint64_t id_;
  Capabilities capabilities_;
};

}  // namespace

SimFabric::SimFabric(std::uint64_t seed, ManualClock* clock, SimFaults faults)
    : impl_(std::make_shared<Impl>(seed, clock, faults)) {}
SimFabric::~SimFabric() = default;

std::unique_ptr<Domain> SimFabric::open_domain(const std::string& host) {
  return std::make_unique<SimDomain>(impl_, host);
}

bool SimFabric::step() {
  impl_->landings.clear();
  const auto it = impl_->events.begin();
  if (it == impl_->events.end() || it->first.first > impl_->clock->now().ns) return false;
  Impl::Event event = std::move(it->second);
  impl_->events.erase(it);
  impl_->perform(std::move(event));
  return true;
}

void SimFabric::on_pulled(std::function<void(const Landing&)> seen) {
  impl_->pulled = std::move(seen);
}
const std::vector<SimFabric::Landing>& SimFabric::landed() const { return impl_->landings; }
const SimFabric::Counts& SimFabric::counts() const { return impl_->counts; }
std::size_t SimFabric::in_flight(const std::string& host) const {
  std::size_t count = 0;
  for (const auto& [id, endpoint] : impl_->endpoints) {
    if (endpoint.host == host && endpoint.open) count += endpoint.inflight;
  }
  return count;
}
bool SimFabric::take_woken(const std::string& host) { return impl_->woken.erase(host) != 0; }

TimePoint SimFabric::next_event() const {
  return impl_->events.empty() ? kNever : TimePoint{impl_->events.begin()->first.first};
}

void SimFabric::partition(const std::string& a, const std::string& b) {
  impl_->cuts.insert({std::min(a, b), std::max(a, b)});
  impl_->park();
}

void SimFabric::heal(const std::string& a, const std::string& b) {
  impl_->cuts.erase({std::min(a, b), std::max(a, b)});
  impl_->unpark();
}

void SimFabric::drop_connections(const std::string& host) {
  std::vector<Impl::ConnKey> keys;
  for (const auto& [key, conn] : impl_->conns) {
    if (impl_->endpoints.at(key.first).host == host ||
        impl_->endpoints.at(key.second).host == host) {
      keys.push_back(key);
    }
  }
  for (const Impl::ConnKey& key : keys) {
    if (impl_->faults.target_pulls) {
      impl_->end_pull(key);
    } else {
      impl_->fail_direction(key);
    }
  }
}

void SimFabric::kill(const std::string& host) {
  impl_->killed.insert(host);
  if (impl_->faults.target_pulls) impl_->kill_pulling(host);
  impl_->park();
}

void SimFabric::endless_again(const std::string& host, bool on) {
  if (on) {
    impl_->again.insert(host);
  } else {
    impl_->again.erase(host);
  }
}

}  // namespace kvd::fabric
