#include "fabric/sim/sim_fabric.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/ids.h"

namespace kvd::fabric {
namespace {

using EndpointId = std::uint64_t;
using OpId = std::uint64_t;
using ConnKey = std::pair<EndpointId, EndpointId>;  // source, target

constexpr std::uint32_t kIovLimit = 4;
constexpr std::uint64_t kMaxWrite = 1u << 20;
// Until the first piece of a write that lands after its error: up to 2^this ns, short ones as often
// as long ones.
constexpr std::uint64_t kLatestBits = 24;

struct RegionState {
  std::uint64_t domain = 0;
  EndpointId endpoint = 0;  // 0: a source only
  std::byte* data = nullptr;
  std::uint64_t base = 0, bytes = 0;
  bool alive = true;
};

struct EndpointState {
  std::string host;
  std::uint64_t domain = 0;
  std::deque<Completion> completions{};
  std::size_t inflight = 0;
  bool open = true;
};

struct Op {
  ConnKey conn;
  std::uint64_t context = 0;
  std::vector<LocalPiece> local;
  std::vector<RemotePiece> remote;
  std::byte* read_into = nullptr;  // a read: one remote piece
  std::vector<std::byte>
      snapshot;  // once the sender was told "done" the bytes are the fabric's own
  std::vector<std::byte*>
      targets;  // where each remote piece lands; filled when the header is accepted
  std::vector<std::uint64_t> keys;
  std::uint64_t total = 0, landed = 0;
  bool delivery_complete = false;
  bool reported = false;   // its completion is scheduled
  bool delivered = false;  // its completion was handed over
  bool finished = false;   // all landed, refused, or stopped
  bool late = false;       // reported as an error; the target has its bytes, and they still land
  std::optional<std::uint64_t> remote_data;
};

struct Conn {
  std::deque<OpId> fifo;      // with order: the head is landing
  std::set<OpId> unfinished;  // all whose bytes are not all there
  bool dead = false;          // dropped, and there is no self-reconnect
};

struct Event {
  enum class Kind { kPiece, kComplete } kind = Kind::kPiece;
  OpId op = 0;
  Status status;
};

Status dropped() { return {StatusCode::kFailed, "sim: connection dropped"}; }

}  // namespace

struct SimFabric::Impl : std::enable_shared_from_this<SimFabric::Impl> {
  Impl(std::uint64_t seed, ManualClock* manual, SimFaults chosen)
      : rng(seed), clock(manual), faults(chosen) {}

  Rng rng;
  ManualClock* clock;
  SimFaults faults;
  std::uint64_t next_id = 1;
  std::map<EndpointId, EndpointState> endpoints;
  std::map<std::uint64_t, RegionState> regions;  // by key
  std::map<ConnKey, Conn> conns;
  std::unordered_map<OpId, Op> ops;
  std::map<std::pair<std::int64_t, std::uint64_t>, Event>
      events;                                    // due, then in order of scheduling
  std::map<ConnKey, std::vector<Event>> parked;  // behind a partition or a dead host
  std::set<std::pair<std::string, std::string>> cuts;
  std::unordered_set<std::string> killed, again, woken;
  std::vector<Landing> landings;
  Counts counts;

  bool cut(const std::string& a, const std::string& b) const {
    return cuts.contains({std::min(a, b), std::max(a, b)});
  }
  bool blocked(const ConnKey& key) const {
    const std::string& from = endpoints.at(key.first).host;
    const std::string& to = endpoints.at(key.second).host;
    return killed.contains(from) || killed.contains(to) || cut(from, to);
  }
  Duration piece_time(std::uint64_t bytes) const {
    const std::uint64_t wire =
        bytes * 1'000'000'000 / std::max<std::uint64_t>(faults.bytes_per_s, 1);
    return faults.latency + Duration(static_cast<std::int64_t>(wire));
  }
  void schedule(Duration after, Event event) {
    const ConnKey key = ops.at(event.op).conn;
    if (blocked(key)) {
      parked[key].push_back(std::move(event));
      return;
    }
    events.emplace(std::pair{(clock->now() + after).ns, next_id++}, std::move(event));
  }

  // Moves what is scheduled on blocked connections aside; it comes back with heal().
  void park() {
    for (auto it = events.begin(); it != events.end();) {
      const auto op = ops.find(it->second.op);
      if (op != ops.end() && blocked(op->second.conn)) {
        parked[op->second.conn].push_back(std::move(it->second));
        it = events.erase(it);
      } else {
        ++it;
      }
    }
  }
  void unpark() {
    for (auto it = parked.begin(); it != parked.end();) {
      if (blocked(it->first)) {
        ++it;
        continue;
      }
      std::vector<Event> waiting = std::move(it->second);
      it = parked.erase(it);
      for (Event& event : waiting) {
        if (ops.contains(event.op)) schedule(faults.latency, std::move(event));
      }
    }
  }

  Status post(EndpointId from, EndpointId to, Op op);
  void start_next(const ConnKey& key);
  void report(OpId id, Status status, Duration after);
  void finish(OpId id);
  void release_if_over(OpId id);
  Status accept(Op& op);
  void land(OpId id);
  void land_read(OpId id);
  void copy_piece(Op& op, std::uint64_t bytes);
  // False when a closed key stops a write that was accepted.
  bool keys_alive(const Op& op) const {
    return faults.land_after_region_close ||
           std::all_of(op.keys.begin(), op.keys.end(),
                       [&](std::uint64_t key) { return regions.at(key).alive; });
  }
  void fail(const ConnKey& key);
  void fail_direction(const ConnKey& key);
  std::set<OpId> keep_landing(const ConnKey& key);
  void land_late(OpId id);
  void close_endpoint(EndpointId id);
  void perform(Event event);
};

// --- one write from post to completion -----------------------------------------------------------

Status SimFabric::Impl::post(EndpointId from, EndpointId to, Op op) {
  EndpointState& source = endpoints.at(from);
  if (again.contains(source.host)) {
    ++counts.refused_posts;
    return {StatusCode::kAgain, "sim: told to refuse every post"};
  }
  if (source.inflight >= faults.max_inflight_ops) return {StatusCode::kAgain, "sim: queue full"};
  const OpId id = next_id++;
  const ConnKey key{from, to};
  op.conn = key;
  ++source.inflight;
  ops.emplace(id, std::move(op));
  Conn& conn = conns[key];
  conn.unfinished.insert(id);
  if (conn.dead) {
    finish(id);
    report(id, dropped(), faults.latency);
    return {};
  }
  if (faults.ordered) {
    conn.fifo.push_back(id);
    if (conn.fifo.size() == 1) start_next(key);
  } else {
    // Each write on its own way: up to 16 others overtake it.
    const auto detour = static_cast<std::int64_t>(rng.below(16)) * faults.latency.count();
    schedule(piece_time(0) + Duration(detour), {Event::Kind::kPiece, id, {}});
  }
  return {};
}

void SimFabric::Impl::start_next(const ConnKey& key) {
  Conn& conn = conns[key];
  if (conn.fifo.empty()) return;
  const OpId id = conn.fifo.front();
  const Op& op = ops.at(id);
  schedule(piece_time(std::min(op.total, faults.piece_bytes)), {Event::Kind::kPiece, id, {}});
}

// Queues the completion of `id`; only the first call counts.
void SimFabric::Impl::report(OpId id, Status status, Duration after) {
  Op& op = ops.at(id);
  if (op.reported) return;
  op.reported = true;
  schedule(after, {Event::Kind::kComplete, id, std::move(status)});
}

void SimFabric::Impl::finish(OpId id) {
  Op& op = ops.at(id);
  op.finished = true;
  Conn& conn = conns[op.conn];
  conn.unfinished.erase(id);
  const bool head = !conn.fifo.empty() && conn.fifo.front() == id;
  std::erase(conn.fifo, id);
  if (head) start_next(op.conn);
}

void SimFabric::Impl::release_if_over(OpId id) {
  const auto it = ops.find(id);
  if (it != ops.end() && it->second.finished && it->second.delivered) ops.erase(it);
}

// The target looks at the header: keys and bounds are checked once, here.
Status SimFabric::Impl::accept(Op& op) {
  const EndpointState& target = endpoints.at(op.conn.second);
  std::vector<std::byte*> targets;
  std::vector<std::uint64_t> keys;
  for (const RemotePiece& piece : op.remote) {
    const auto it = regions.find(piece.key);
    if (it == regions.end() || !it->second.alive || it->second.endpoint != op.conn.second ||
        it->second.domain != target.domain || piece.address < it->second.base) {
      return {StatusCode::kFailed, "sim: refused by the target"};
    }
    const std::uint64_t offset = piece.address - it->second.base;
    if (offset > it->second.bytes || piece.bytes > it->second.bytes - offset) {
      return {StatusCode::kFailed, "sim: refused by the target"};
    }
    targets.push_back(it->second.data + offset);
    keys.push_back(piece.key);
  }
  op.targets = std::move(targets);
  op.keys = std::move(keys);
  return {};
}

namespace {
void take_snapshot(Op* op) {
  op->snapshot.reserve(op->total);
  for (const LocalPiece& piece : op->local) {
    op->snapshot.insert(op->snapshot.end(), piece.address, piece.address + piece.bytes);
  }
}
}  // namespace

void SimFabric::Impl::copy_piece(Op& op, std::uint64_t bytes) {
  while (bytes > 0) {
    std::uint64_t to_at = op.landed, from_at = op.landed;
    std::size_t to = 0, from = 0;
    while (to_at >= op.remote[to].bytes) to_at -= op.remote[to++].bytes;
    std::uint64_t run = std::min(op.remote[to].bytes - to_at, bytes);
    const std::byte* source = op.snapshot.data() + op.landed;
    if (op.snapshot.empty()) {
      while (from_at >= op.local[from].bytes) from_at -= op.local[from++].bytes;
      run = std::min(run, op.local[from].bytes - from_at);
      source = op.local[from].address + from_at;
    }
    std::memcpy(op.targets[to] + to_at, source, run);
    landings.push_back({op.targets[to] + to_at, run});
    op.landed += run;
    bytes -= run;
  }
}

void SimFabric::Impl::land_read(OpId id) {
  Op& op = ops.at(id);
  const Status accepted = accept(op);
  if (!accepted.ok() || !endpoints.at(op.conn.second).open) {
    fail(op.conn);
    return;
  }
  std::memcpy(op.read_into, op.targets[0], op.total);
  finish(id);
  report(id, {}, faults.latency);
}

// The next piece of `id` lands, or the target refuses it.
void SimFabric::Impl::land(OpId id) {
  Op& op = ops.at(id);
  if (op.finished) return;
  if (op.read_into != nullptr) return land_read(id);
  if (op.late) return land_late(id);
  const bool target_open = endpoints.at(op.conn.second).open;
  bool refused = !target_open && (faults.endpoint_close_is_fence || op.targets.empty());
  if (!refused && op.targets.empty()) refused = !accept(op).ok();
  if (!refused) refused = !keys_alive(op);
  if (refused) {
    ++counts.refused_by_target;
    fail(op.conn);
    return;
  }
  if (!faults.ordered && *conns[op.conn].unfinished.begin() < id) ++counts.overtaken;
  copy_piece(op, std::min(op.total - op.landed, faults.piece_bytes));
  if (!op.delivery_complete && !op.reported) {
    // As on TCP: "done" only means that the fabric has the bytes.
    take_snapshot(&op);
    report(id, {}, Duration(0));
  }
  if (op.landed < op.total) {
    schedule(piece_time(std::min(op.total - op.landed, faults.piece_bytes)),
             {Event::Kind::kPiece, id, {}});
    return;
  }
  if (op.remote_data && target_open) {
    EndpointState& target = endpoints.at(op.conn.second);
    target.completions.push_back({.kind = CompletionKind::kRemoteData, .data = *op.remote_data});
    woken.insert(target.host);
  }
  finish(id);
  report(id, {}, faults.latency);
  release_if_over(id);
}

// Of the writes that end with their connection: those that the target has in its buffers. Only what
// ends in an error; where order is kept, what is behind a write that is lost is lost as well.
std::set<OpId> SimFabric::Impl::keep_landing(const ConnKey& key) {
  std::set<OpId> late;
  if (!faults.land_after_error || blocked(key) || !endpoints.at(key.second).open) return late;
  for (const OpId id : conns[key].unfinished) {
    Op& op = ops.at(id);
    const bool lie = faults.false_ok && !op.delivery_complete;
    const bool reads = op.read_into != nullptr;
    const bool there = !reads && (!op.targets.empty() || accept(op).ok()) && keys_alive(op);
    if (there && op.reported && faults.ordered) {
      // Its sender knows it as done: what is left of it is before everything else.
      copy_piece(op, op.total - op.landed);
      continue;
    }
    const bool lands = there && !op.reported && !lie && rng.chance(0.8);
    if (lands) late.insert(id);
    if (!lands && faults.ordered) break;
  }
  return late;
}

// A piece of a write whose sender was told that it failed.
void SimFabric::Impl::land_late(OpId id) {
  Op& op = ops.at(id);
  EndpointState& target = endpoints.at(op.conn.second);
  if (keys_alive(op) && (target.open || !faults.endpoint_close_is_fence)) {
    const std::uint64_t left = op.total - op.landed;
    copy_piece(op, faults.ordered ? left : std::min(left, faults.piece_bytes));
    ++counts.landed_late;
    if (op.landed < op.total) {
      return schedule(piece_time(faults.piece_bytes), {Event::Kind::kPiece, id, {}});
    }
    if (op.remote_data && target.open) {
      target.completions.push_back({.kind = CompletionKind::kRemoteData, .data = *op.remote_data});
      woken.insert(target.host);
    }
  }
  op.finished = true;
  release_if_over(id);
}

// A connection is dropped as a whole, both ways: nothing of it lands any more. `key` is a copy: it
// often lives in an operation that ends here.
void SimFabric::Impl::fail(const ConnKey& key) {
  const ConnKey forth = key, back{key.second, key.first};
  fail_direction(forth);
  if (conns.contains(back)) fail_direction(back);
}

void SimFabric::Impl::fail_direction(const ConnKey& key) {
  Conn& conn = conns[key];
  conn.dead = !faults.self_reconnect;
  conn.fifo.clear();
  const std::set<OpId> late = keep_landing(key);
  Duration delay{0};
  const std::set<OpId> ids = std::exchange(conn.unfinished, {});
  for (const OpId id : ids) {
    Op& op = ops.at(id);
    op.late = late.contains(id);
    op.finished = !op.late;
    const bool lie = faults.false_ok && !op.delivery_complete && op.read_into == nullptr;
    if (!op.reported) ++(lie ? counts.false_ok : counts.errors);
    report(id, lie ? Status() : dropped(), faults.latency);
    if (op.late) {
      take_snapshot(&op);
      const Duration more{static_cast<std::int64_t>(rng.below(2u << rng.below(kLatestBits)))};
      delay = faults.ordered ? delay + more : more;
      schedule(delay, {Event::Kind::kPiece, id, {}});
    }
    release_if_over(id);
  }
  // Landed, but the answer that says so is lost with the connection.
  const auto lose = [&](Event& event) {
    const auto op = ops.find(event.op);
    if (event.kind == Event::Kind::kComplete && event.status.ok() && op != ops.end() &&
        op->second.conn == key && op->second.delivery_complete) {
      event.status = dropped();
    }
  };
  for (auto& [due, event] : events) lose(event);
  if (const auto waiting = parked.find(key); waiting != parked.end()) {
    for (Event& event : waiting->second) lose(event);
  }
}

void SimFabric::Impl::close_endpoint(EndpointId id) {
  EndpointState& state = endpoints.at(id);
  state.open = false;
  state.completions.clear();
  for (auto& [key, conn] : conns) {
    if (key.first != id) continue;
    // What the sender was told is done goes on landing (it is in the socket buffer); the rest
    // stops, since its source may now be reused.
    const std::set<OpId> unfinished = conn.unfinished;
    for (const OpId op_id : unfinished) {
      if (!ops.at(op_id).snapshot.empty()) continue;
      conn.unfinished.erase(op_id);
      std::erase(conn.fifo, op_id);
      ops.erase(op_id);
    }
  }
}

void SimFabric::Impl::perform(Event event) {
  const auto it = ops.find(event.op);
  if (it == ops.end()) return;
  if (event.kind == Event::Kind::kPiece) return land(event.op);
  Op& op = it->second;
  EndpointState& source = endpoints.at(op.conn.first);
  --source.inflight;
  if (source.open) {
    source.completions.push_back(
        {.kind = CompletionKind::kWrite, .context = op.context, .status = std::move(event.status)});
    woken.insert(source.host);
  }
  op.delivered = true;
  release_if_over(event.op);
}

// --- the public objects
// ----------------------------------------------------------------------------

namespace {

using ImplPtr = std::shared_ptr<SimFabric::Impl>;

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
        op.total > kMaxWrite || (request.remote_data && !impl_->faults.remote_cq_data) ||
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
    std::deque<Completion>& queue = impl_->endpoints.at(id_).completions;
    const std::size_t count = std::min(out.size(), queue.size());
    for (std::size_t i = 0; i < count; ++i) {
      out[i] = std::move(queue.front());
      queue.pop_front();
    }
    return count;
  }

  int wait_fd() const override { return -1; }
  bool may_wait() override { return impl_->endpoints.at(id_).completions.empty(); }

 private:
  ImplPtr impl_;
  EndpointId id_;
};

class SimDomain final : public Domain {
 public:
  SimDomain(ImplPtr impl, std::string host)
      : impl_(std::move(impl)), host_(std::move(host)), id_(impl_->next_id++) {
    const SimFaults& faults = impl_->faults;
    capabilities_.provider = "sim";
    capabilities_.libfabric_name = "sim";
    capabilities_.write_after_write = faults.ordered;
    capabilities_.remote_cq_data = faults.remote_cq_data;
    capabilities_.delivery_complete = true;
    capabilities_.endpoint_per_peer = true;
    capabilities_.endpoint_close_fences = faults.endpoint_close_is_fence;
    capabilities_.region_close_fences = !faults.land_after_region_close;
    capabilities_.iov_limit = kIovLimit;
    capabilities_.rma_iov_limit = kIovLimit;
    capabilities_.max_write_bytes = kMaxWrite;
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
  Event event = std::move(it->second);
  impl_->events.erase(it);
  impl_->perform(std::move(event));
  return true;
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
  std::vector<ConnKey> keys;
  for (const auto& [key, conn] : impl_->conns) {
    if (impl_->endpoints.at(key.first).host == host ||
        impl_->endpoints.at(key.second).host == host) {
      keys.push_back(key);
    }
  }
  for (const ConnKey& key : keys) impl_->fail_direction(key);
}

void SimFabric::kill(const std::string& host) {
  impl_->killed.insert(host);
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
