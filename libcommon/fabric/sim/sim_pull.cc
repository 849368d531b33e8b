// SimFabric with target_pulls: the `local` transport (fabric/local) as the simulation sees it.
//
// The target copies in its own poll(), piece by piece, from the sender's memory; after the last
// piece it looks whether the sender has given the connection up. The end of either side is known to
// the other at once, and a connection is never made anew.
#include <utility>

#include "fabric/sim/sim_impl.h"

namespace kvd::fabric {
namespace {

Status closed() { return {StatusCode::kUnavailable, "sim: the peer closed its connection"}; }

}  // namespace

bool SimFabric::Impl::may_pull(EndpointId target) const {
  for (const auto& [key, conn] : conns) {
    if (key.second != target || conn.fifo.empty()) continue;
    if (ops.at(conn.fifo.front()).may_copy) return true;
  }
  return false;
}

void SimFabric::Impl::pull(EndpointId target) {
  if (!faults.target_pulls) return;
  std::vector<ConnKey> ready;
  for (const auto& [key, conn] : conns) {
    if (key.second != target || conn.fifo.empty()) continue;
    if (ops.at(conn.fifo.front()).may_copy) ready.push_back(key);
  }
  for (const ConnKey& key : ready) pull_piece(key);
}

void SimFabric::Impl::pull_piece(const ConnKey& key) {
  Conn& conn = conns.at(key);
  const OpId id = conn.fifo.front();
  Op& op = ops.at(id);
  op.may_copy = false;
  // It looks at its sockets now and then: the end is seen before the next copy, or after it.
  if (conn.given_up && rng.chance(0.2)) return end_pull(key);
  if ((op.targets.empty() && !accept(op).ok()) || !keys_alive(op)) {
    ++counts.refused_by_target;
    return end_pull(key);
  }
  landings.clear();
  copy_piece(op, std::min(op.total - op.landed, faults.piece_bytes));
  for (Landing& landing : landings) {
    landing.stale = conn.given_up;
    if (pulled) pulled(landing);
  }
  landings.clear();
  if (op.landed < op.total) {
    return schedule(piece_time(std::min(op.total - op.landed, faults.piece_bytes)),
                    {Event::Kind::kPiece, id, {}});
  }
  if (conn.given_up) {
    ++counts.void_copies;
    if (faults.epoch_is_checked) return end_pull(key);
  }
  if (op.remote_data) {
    EndpointState& target = endpoints.at(key.second);
    target.completions.push_back({.kind = CompletionKind::kRemoteData, .data = *op.remote_data});
    woken.insert(target.host);
  }
  finish(id);
  report(id, {}, faults.latency);
  release_if_over(id);
}

// The connection is over for both sides: what was copied completes, the rest is an error, and who
// has nothing to be told of otherwise gets a fault.
void SimFabric::Impl::end_pull(const ConnKey& key) {
  Conn& conn = conns.at(key);
  if (std::exchange(conn.dead, true)) return;
  conn.fifo.clear();
  conn.unfinished.clear();
  EndpointState& source = endpoints.at(key.first);
  EndpointState& target = endpoints.at(key.second);
  std::map<OpId, Completion> ends;  // in the order of posting
  for (const auto& [id, op] : ops) {
    if (op.conn != key || op.delivered) continue;
    if (!op.finished) ++counts.errors;
    ends[id] = {.kind = CompletionKind::kWrite,
                .context = op.context,
                .status = op.finished ? Status() : closed()};
  }
  bool told = false;
  for (auto& [id, end] : ends) {
    told = told || !end.status.ok();
    --source.inflight;
    source.completions.push_back(std::move(end));
    ops.erase(id);
  }
  if (!told) source.completions.push_back({.kind = CompletionKind::kFault, .status = closed()});
  target.completions.push_back({.kind = CompletionKind::kFault, .status = closed()});
  for (EndpointState* side : {&source, &target}) {
    if (side->open) {
      woken.insert(side->host);
    } else {
      side->completions.clear();
    }
  }
}

void SimFabric::Impl::close_pulling(EndpointId id) {
  for (auto& [key, conn] : conns) {
    if (conn.dead) continue;
    if (key.second == id) {
      end_pull(key);
    } else if (key.first == id) {
      // The target may be in the middle of a copy; then it finds out by the epoch word.
      conn.given_up = true;
      if (conn.fifo.empty()) end_pull(key);
    }
  }
}

void SimFabric::Impl::kill_pulling(const std::string& host) {
  for (auto& [key, conn] : conns) {
    const bool dies = endpoints.at(key.first).host == host || endpoints.at(key.second).host == host;
    if (dies) end_pull(key);
  }
}

}  // namespace kvd::fabric
