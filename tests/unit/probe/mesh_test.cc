#include <catch2/catch.hpp>
#include <functional>
#include <set>

#include "kvd-probe/mesh_result.h"

namespace kvd::tools {
namespace {

MeshResult mesh(std::size_t peers, const std::function<double(std::size_t, std::size_t)>& rate) {
  MeshResult out;
  for (std::size_t i = 0; i < peers; ++i) {
    MeshPeer peer;
    peer.address = "10.0.0." + std::to_string(i + 1) + ":7300";
    peer.role = "probe";
    peer.providers = {"tcp", "tcp;ofi_rxm"};
    out.peers.push_back(peer);
  }
  for (std::size_t from = 0; from < peers; ++from) {
    for (std::size_t to = 0; to < peers; ++to) {
      if (from == to) continue;
      MeshPair pair;
      pair.from = from;
      pair.to = to;
      pair.done = true;
      pair.provider = "tcp";
      pair.bytes_per_s = rate(from, to);
      out.pairs.push_back(pair);
    }
  }
  return out;
}

std::set<std::size_t> slow_peers(const MeshResult& result) {
  std::set<std::size_t> out;
  for (std::size_t i = 0; i < result.peers.size(); ++i) {
    if (result.peers[i].slow) out.insert(i);
  }
  return out;
}

std::size_t slow_pairs(const MeshResult& result) {
  std::size_t out = 0;
  for (const MeshPair& pair : result.pairs) out += pair.slow ? 1 : 0;
  return out;
}

TEST_CASE("mesh: every ordered pair is in one round, and no peer twice in a round") {
  for (std::size_t peers = 2; peers <= 9; ++peers) {
    std::set<std::pair<std::size_t, std::size_t>> seen;
    for (const auto& round : mesh_rounds(peers)) {
      std::set<std::size_t> busy;
      for (const auto& [from, to] : round) {
        CHECK(seen.insert({from, to}).second);
        CHECK(busy.insert(from).second);
        CHECK(busy.insert(to).second);
      }
    }
    CHECK(seen.size() == peers * (peers - 1));
  }
}

TEST_CASE("mesh: one slow peer of three, four or eight is marked, and no other") {
  for (const std::size_t peers : {3, 4, 8}) {
    MeshResult result = mesh(peers, [](std::size_t from, std::size_t to) {
      return from == 1 || to == 1 ? 12e6 : 3e9 - 1e8 * static_cast<double>(from + to);
    });
    judge_mesh(&result);
    CHECK(slow_peers(result) == std::set<std::size_t>{1});
    CHECK(slow_pairs(result) == 2 * (peers - 1));
  }
}

TEST_CASE("mesh: one slow direction of one pair is no slow peer") {
  MeshResult result =
      mesh(4, [](std::size_t from, std::size_t to) { return from == 0 && to == 3 ? 1e8 : 3e9; });
  judge_mesh(&result);
  CHECK(slow_peers(result).empty());
  CHECK(slow_pairs(result) == 1);
  CHECK(mesh_text(result).find("10.0.0.1:7300 -> 10.0.0.4:7300 alone") != std::string::npos);
}

TEST_CASE("mesh: peers that are alike are not marked") {
  MeshResult result = mesh(5, [](std::size_t from, std::size_t to) {
    return 2e9 * (1 + 0.3 * static_cast<double>((from * 7 + to * 3) % 4));
  });
  judge_mesh(&result);
  CHECK(slow_peers(result).empty());
  CHECK(slow_pairs(result) == 0);
}

TEST_CASE("mesh: TCP among RDMA, and a worse provider than both offer, are downgraded") {
  MeshResult result = mesh(3, [](std::size_t, std::size_t) { return 1e9; });
  for (MeshPeer& peer : result.peers) peer.providers = {"verbs;ofi_rxm", "tcp"};
  for (MeshPair& pair : result.pairs) pair.provider = "verbs;ofi_rxm";
  result.pairs[0].provider = "tcp";
  judge_mesh(&result);
  CHECK(result.pairs[0].downgraded);
  CHECK(result.pairs[0].best_provider == "verbs;ofi_rxm");
  CHECK_FALSE(result.pairs[1].downgraded);
  result.peers[0].providers = {"tcp"};  // it has no RDMA, others have
  result.pairs[1].provider = "tcp";
  judge_mesh(&result);
  CHECK(result.pairs[1].downgraded);
}

TEST_CASE("mesh: local is no best provider between two scopes") {
  MeshPeer a, b;
  a.providers = b.providers = {"local", "tcp"};
  a.scope = "1/2/3/";
  b.scope = "1/9/3/";
  CHECK(best_provider(a, b) == "tcp");
  b.scope = a.scope;
  CHECK(best_provider(a, b) == "local");
  b.providers = {};
  CHECK(best_provider(a, b).empty());
}

TEST_CASE("mesh: what came from peers is escaped in the page") {
  MeshResult result = mesh(2, [](std::size_t, std::size_t) { return 1e9; });
  result.peers[1].error = "says <script>";
  result.pairs[0].provider = "<b>";
  judge_mesh(&result);
  const std::string page = mesh_html(result);
  CHECK(page.find("<script") == std::string::npos);
  CHECK(page.find("<b>") == std::string::npos);
}

}  // namespace
}  // namespace kvd::tools
