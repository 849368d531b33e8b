#include <algorithm>
#include <cstdio>

#include "base/units.h"
#include "cli/output.h"
#include "cli/version.h"
#include "common/html.h"
#include "kvd-probe/mesh_result.h"

namespace kvd::tools {
namespace {

std::string format(const char* pattern, double value) {
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

const MeshPair* find_pair(const MeshResult& result, std::size_t from, std::size_t to) {
  for (const MeshPair& pair : result.pairs) {
    if (pair.from == from && pair.to == to) return &pair;
  }
  return nullptr;
}

std::string marks(const MeshPair& pair) {
  return std::string(pair.slow ? " SLOW" : "") +
         (pair.downgraded ? " DOWNGRADED:" + pair.provider : "");
}

std::string cell_text(const MeshPair* pair) {
  if (pair == nullptr) return "-";
  if (!pair->done) return "ERROR";
  return format("%.3f GB/s", pair->bytes_per_s / 1e9) + format(" %.0f us", pair->latency_ns / 1e3) +
         marks(*pair);
}

// What is wrong, a line each; a peer of which all is slow in place of its pairs.
std::vector<std::string> verdicts(const MeshResult& r) {
  std::vector<std::string> out;
  const auto rate = [](double value) { return format("%.3f GB/s", value / 1e9); };
  for (const MeshPeer& peer : r.peers) {
    if (!peer.error.empty()) out.push_back("error: " + peer.address + ": " + peer.error);
    if (peer.slow) {
      out.push_back("slow: " + peer.address + ", against " + rate(r.reference_bytes_per_s) +
                    " of the others; kvd-probe doctor there: link, MTU, congestion control");
    }
  }
  for (const MeshPair& pair : r.pairs) {
    const MeshPeer &from = r.peers[pair.from], &to = r.peers[pair.to];
    const std::string name = from.address + " -> " + to.address;
    if (!pair.error.empty() && from.error.empty() && to.error.empty()) {
      out.push_back("error: " + name + ": " + pair.error);
    }
    if (pair.slow && !from.slow && !to.slow) {
      out.push_back("slow: " + name + " alone, " + rate(pair.bytes_per_s) + " against " +
                    rate(r.reference_bytes_per_s) + "; kvd-probe ping between the two says more");
    }
    if (pair.downgraded) {
      out.push_back("downgraded: " + name + " went by " + pair.provider +
                    (pair.best_provider == "local" ? "; kvd-probe ping from there says why"
                                                   : "; kvd-probe ping --require-rdma from there "
                                                     "says why"));
    }
  }
  return out;
}

void text_or_null(cli::JsonWriter* json, const char* name, const std::string& text) {
  json->key(name);
  text.empty() ? json->null() : json->value(text);
}

void write_error(cli::JsonWriter* json, const std::string& code, const std::string& message) {
  json->key("error");
  if (message.empty()) {
    json->null();
    return;
  }
  json->begin_object().field("code", code).field("message", message).end_object();
}

}  // namespace

std::string mesh_json(const MeshResult& r) {
  cli::JsonWriter json;
  const bool complete =
      std::all_of(r.pairs.begin(), r.pairs.end(), [](const MeshPair& pair) { return pair.done; });
  json.begin_object().field("kind", "mesh").field("version", cli::version());
  json.field("complete", complete).field("reference_bytes_per_s", r.reference_bytes_per_s);
  json.key("peers").begin_array();
  for (const MeshPeer& peer : r.peers) {
    json.begin_object().field("address", peer.address);
    text_or_null(&json, "role", peer.role);
    text_or_null(&json, "peer_version", peer.version);
    json.field("slow", peer.slow);
    write_error(&json, peer.error_code, peer.error);
    json.end_object();
  }
  json.end_array().key("pairs").begin_array();
  for (const MeshPair& pair : r.pairs) {
    json.begin_object().field("from", r.peers[pair.from].address);
    json.field("to", r.peers[pair.to].address);
    text_or_null(&json, "provider", pair.provider);
    text_or_null(&json, "best_provider", pair.best_provider);
    for (const auto& [name, value] : {std::pair{"bytes_per_s", pair.bytes_per_s},
                                      {"latency_p50_ns", pair.latency_ns},
                                      {"latency_p99_ns", pair.p99_ns}}) {
      json.key(name);
      pair.done ? json.value(value) : json.null();
    }
    json.field("slow", pair.slow).field("downgraded", pair.downgraded);
    write_error(&json, pair.error_code, pair.error);
    json.end_object();
  }
  return json.end_array().end_object().take() + "\n";
}

std::string mesh_text(const MeshResult& r) {
  std::vector<std::string> header = {"from / to"};
  for (const MeshPeer& peer : r.peers) header.push_back(peer.address);
  cli::TableWriter table(header);
  for (std::size_t from = 0; from < r.peers.size(); ++from) {
    std::vector<std::string> row = {r.peers[from].address};
    for (std::size_t to = 0; to < r.peers.size(); ++to) {
      row.push_back(cell_text(find_pair(r, from, to)));
    }
    table.add_row(std::move(row));
  }
  std::string out = table.render();
  for (const std::string& line : verdicts(r)) out += line + "\n";
  return out;
}

std::string mesh_html(const MeshResult& r) {
  std::vector<std::string> header = {"from / to"};
  double most = 1;
  for (const MeshPeer& peer : r.peers) header.push_back(html_escape(peer.address));
  for (const MeshPair& pair : r.pairs) most = std::max(most, pair.bytes_per_s);
  std::vector<std::vector<std::string>> rows;
  for (std::size_t from = 0; from < r.peers.size(); ++from) {
    std::vector<std::string> row = {html_escape(r.peers[from].address)};
    for (std::size_t to = 0; to < r.peers.size(); ++to) {
      const MeshPair* pair = find_pair(r, from, to);
      if (pair == nullptr || !pair->done) {
        row.push_back(pair == nullptr ? "" : "<span class=\"worse\">error</span>");
        continue;
      }
      // From red to green, with lightness, so that it reads without hues too.
      const double share = pair->bytes_per_s / most;
      row.push_back("<span class=\"heat" +
                    std::string(pair->slow || pair->downgraded ? " mark" : "") +
                    "\" style=\"background: hsl(" + format("%.0f", 120 * share) + " 60% " +
                    format("%.0f%%", 60 + 25 * share) + ")\">" + html_escape(cell_text(pair)) +
                    "<br/>" + html_escape(pair->provider) + "</span>");
    }
    rows.push_back(std::move(row));
  }
  std::string out =
      page_begin("kvd-probe mesh") + "<h1>kvd-probe mesh</h1>\n<p>Bandwidth and " +
      "median latency of a 4 KiB write, from the row to the column. Marked: below " +
      "half of the reference, " + html_escape(format("%.3f GB/s", r.reference_bytes_per_s / 1e9)) +
      ", or by a worse provider than both ends have.</p>\n" + html_table(header, rows);
  const std::vector<std::string> lines = verdicts(r);
  if (!lines.empty()) {
    out += "<h2>What stands out</h2>\n<ul>\n";
    for (const std::string& line : lines) out += "<li>" + html_escape(line) + "</li>\n";
    out += "</ul>\n";
  }
  return out + "<footer>kvd " + html_escape(cli::version()) + "</footer>\n" + page_end();
}

}  // namespace kvd::tools
