#include "fabric/sim/sim_impl.h"

#include <cstring>

namespace kvd::fabric {
namespace {

// Until the first piece of a write that lands after its error: up to 2^this ns, short ones as often
// as long ones.
constexpr std::uint64_t kLatestBits = 24;

Status dropped() { return {StatusCode::kFailed, "sim: connection dropped"}; }

}  // namespace

// --- one write from post to completion -----------------------------------------------------------

Status SimFabric::Impl::post(EndpointId from, EndpointId to, Op op) {
  EndpointState& source = endpoints.at(from);
  if (again.contains(source.host)) {
    ++counts.refused_posts;
    return {StatusCode::kAgain, "sim: told to refuse every post"};
  }
  if (source.inflight >= faults.max_inflight_ops) return {StatusCode::kAgain, "sim: queue full"};
  if (faults.target_pulls) {
    const auto conn = conns.find({from, to});
    const bool gone = !endpoints.at(to).open || killed.contains(endpoints.at(to).host);
    if (gone || (conn != conns.end() && conn->second.dead)) return dropped();
  }
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
void take_snapshot(SimFabric::Impl::Op* op) {
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
std::set<SimFabric::Impl::OpId> SimFabric::Impl::keep_landing(const ConnKey& key) {
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
  if (faults.target_pulls) return close_pulling(id);
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
  Op& op = it->second;
  if (event.kind == Event::Kind::kPiece && faults.target_pulls) {
    op.may_copy = true;
    woken.insert(endpoints.at(op.conn.second).host);
    return;
  }
  if (event.kind == Event::Kind::kPiece) return land(event.op);
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

}  // namespace kvd::fabric
