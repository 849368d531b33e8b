#include "kvd-probe/mesh_result.h"

#include <algorithm>

#include "fabric/fabric.h"

namespace kvd::tools {
namespace {

// Of an even number the larger of the two in the middle.
double upper_median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

bool is_tcp(const std::string& provider) { return provider.starts_with("tcp"); }

std::size_t rank_of(const std::string& provider) {
  const auto names = fabric::provider_preference();
  return static_cast<std::size_t>(std::find(names.begin(), names.end(), provider) - names.begin());
}

}  // namespace

std::string best_provider(const MeshPeer& a, const MeshPeer& b) {
  for (const std::string_view name : fabric::provider_preference()) {
    const auto offers = [&](const MeshPeer& peer) {
      return std::find(peer.providers.begin(), peer.providers.end(), name) != peer.providers.end();
    };
    if (!offers(a) || !offers(b)) continue;
    if (name == "local" && (a.scope.empty() || a.scope != b.scope)) continue;
    return std::string(name);
  }
  return "";
}

std::vector<std::vector<std::pair<std::size_t, std::size_t>>> mesh_rounds(std::size_t peers) {
  // The circle method: one place stands still, the others turn; of an odd number one rests.
  const std::size_t places = peers + peers % 2;
  std::vector<std::size_t> circle(places);
  for (std::size_t i = 0; i < places; ++i) circle[i] = i;
  std::vector<std::vector<std::pair<std::size_t, std::size_t>>> out;
  for (std::size_t turn = 0; turn + 1 < places; ++turn) {
    std::vector<std::pair<std::size_t, std::size_t>> there, back;
    for (std::size_t i = 0; i < places / 2; ++i) {
      const std::size_t a = circle[i], b = circle[places - 1 - i];
      if (a >= peers || b >= peers) continue;
      there.emplace_back(a, b);
      back.emplace_back(b, a);
    }
    out.push_back(std::move(there));
    out.push_back(std::move(back));
    std::rotate(circle.begin() + 1, circle.end() - 1, circle.end());
  }
  return out;
}

void judge_mesh(MeshResult* result) {
  std::vector<std::vector<double>> of_peer(result->peers.size());
  bool rdma = false;
  for (MeshPair& pair : result->pairs) {
    pair.best_provider = best_provider(result->peers[pair.from], result->peers[pair.to]);
    if (!pair.done) continue;
    rdma = rdma || (!is_tcp(pair.provider) && pair.provider != "local");
    if (result->peers[pair.to].limited()) continue;
    of_peer[pair.from].push_back(pair.bytes_per_s);
    of_peer[pair.to].push_back(pair.bytes_per_s);
  }
  std::vector<double> figures;
  for (const auto& rates : of_peer) {
    if (!rates.empty()) figures.push_back(upper_median(rates));
  }
  result->reference_bytes_per_s = upper_median(figures);
  const double limit = kSlowShare * result->reference_bytes_per_s;
  for (std::size_t i = 0; i < of_peer.size(); ++i) {
    result->peers[i].slow = !of_peer[i].empty() && upper_median(of_peer[i]) < limit;
  }
  for (MeshPair& pair : result->pairs) {
    if (!pair.done) continue;
    pair.slow = !result->peers[pair.to].limited() && pair.bytes_per_s < limit;
    pair.downgraded =
        rank_of(pair.provider) > rank_of(pair.best_provider) || (rdma && is_tcp(pair.provider));
  }
}

}  // namespace kvd::tools
