// What a mesh found between each pair, and which of it stands out. Pure.
//
// Rule: the figure of a peer is the median of all its pairs, both ways; the reference is the median
// of the peers' figures (of two middle values the larger one, both times, so that one slow peer of
// three does not pull the others down). A pair is slow below half of the reference, a peer when its
// figure is. A pair is downgraded when both ends offer something better than what carried it, or
// when it went by TCP and others went by RDMA.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace kvd::tools {

constexpr double kSlowShare = 0.5;

struct MeshPeer {
  std::string address, role, version;
  std::vector<std::string> providers;
  std::string scope;       // as Described.scope
  std::string error;       // why it could not be asked; empty: it could
  std::string error_code;  // as in kvd-json(5)
  bool slow = false;
  bool dials() const { return role == "probe"; }
  // A worker takes so little that its bandwidth is not compared.
  bool limited() const { return error.empty() && !dials(); }
};

struct MeshPair {
  std::size_t from = 0, to = 0;
  bool done = false;
  std::string provider, best_provider;
  double bytes_per_s = 0, latency_ns = 0, p99_ns = 0;
  bool slow = false, downgraded = false;
  std::string error, error_code;
};

struct MeshResult {
  std::vector<MeshPeer> peers;
  std::vector<MeshPair> pairs;
  double reference_bytes_per_s = 0;  // 0: nothing was measured
};

// Sets reference, slow, downgraded and best_provider.
void judge_mesh(MeshResult* result);
// The best that both offer.
std::string best_provider(const MeshPeer& a, const MeshPeer& b);
// Rounds of ordered pairs in which no peer is in two pairs; every ordered pair is in one round.
std::vector<std::vector<std::pair<std::size_t, std::size_t>>> mesh_rounds(std::size_t peers);

std::string mesh_json(const MeshResult& result);
std::string mesh_text(const MeshResult& result);
std::string mesh_html(const MeshResult& result);

}  // namespace kvd::tools
