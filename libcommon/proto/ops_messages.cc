#include "proto/ops_messages.h"

#include "proto/codec.h"

namespace kvd::proto {
namespace {

// Of a member; empty where a message only asks.
constexpr std::string_view kRoles[] = {"", "prefill", "decode", "route", "probe"};
constexpr std::size_t kMaxLeases = 16384;
constexpr std::size_t kMaxMembers = 4096;
constexpr std::string_view kProbeOps[] = {"open", "pages",  "write", "verify", "fill",
                                          "sync", "sample", "alive", "close",  "dial"};
constexpr std::string_view kDigests[] = {"", "sample", "full", "off"};
constexpr std::string_view kProbeStates[] = {"queued", "done", "refused"};

}  // namespace

template <typename V>
void fields(V& v, Is<StaleIncarnation> auto& m) {
  v.must("incarnation", m.incarnation, Uint{});
}
static Status validate(const StaleIncarnation&) { return {}; }

template <typename V>
void fields(V& v, Is<Error> auto& m) {
  v.must("code", m.code, Text{64, 1});
  v.may("text", m.text, Prose{});
  v.may("seq", m.seq, Uint{});
}
static Status validate(const Error&) { return {}; }

template <typename V>
void fields(V&, Is<Drain> auto&) {}
static Status validate(const Drain&) { return {}; }

template <typename V>
void fields(V& v, Is<LeaseReport> auto& m) {
  v.must("room", m.room, Uint{});
  v.must("peer", m.peer, Uint{});
  v.must("quarantined", m.quarantined, Flag{});
  v.must("age_ms", m.age_ms, Uint{});
  v.must("pages", m.pages, Uint{});
  v.may("ranges", m.ranges, Prose{});
  v.may("missing", m.missing, Prose{});
}

template <typename V>
void fields(V& v, Is<Leases> auto& m) {
  v.may("reply", m.reply, Flag{});
  v.may("leases", m.leases, Maps{kMaxLeases});
  v.may("free", m.free, Uint{});
  v.may("leased", m.leased, Uint{});
  v.may("sealed", m.sealed, Uint{});
  v.may("quarantined", m.quarantined, Uint{});
}
static Status validate(const Leases&) { return {}; }

template <typename V>
void fields(V& v, Is<PagesProbe> auto& m) {
  v.may("model", m.model, Text{64});
  v.may("layers", m.layers, Uint{});
  v.may("kv_heads", m.kv_heads, Uint{});
  v.may("head_dim", m.head_dim, Uint{});
  v.may("page_size", m.page_size, Uint{});
  v.may("pages", m.pages, Uint{0, ProbeBounds::kCount});
  v.may("sets", m.sets, Uint{0, ProbeBounds::kCount});
  v.may("open", m.open, Uint{0, ProbeBounds::kCount});
  v.may("fragmentation", m.fragmentation, Real{0, 1});
  v.may("seed", m.seed, Uint{});
  v.may("digest", m.digest, OneOf{kDigests});
  v.may("groups", m.groups, Flag{});
  v.may("isolated", m.isolated, Flag{});
  v.may("timeout_ms", m.timeout_ms, Uint{0, ProbeBounds::kMs});
}

template <typename V>
void fields(V& v, Is<Probe> auto& m) {
  v.must("request", m.request, Uint{});
  v.must("op", m.op, OneOf{kProbeOps});
  v.may("provider", m.provider, Text{64});
  v.may("address", m.address, Bin{kMaxAddress});
  v.may("dead_after_ms", m.dead_after_ms, Uint{0, ProbeBounds::kMs});
  v.may("spin", m.spin, Flag{});
  v.may("region_base", m.region_base, Uint{});
  v.may("region_bytes", m.region_bytes, Uint{});
  v.may("region_key", m.region_key, Uint{});
  v.may("bytes", m.bytes, Uint{0, ProbeBounds::kBytes});
  v.may("seed", m.seed, Uint{});
  v.may("count", m.count, Uint{0, ProbeBounds::kCount});
  v.may("depth", m.depth, Uint{0, ProbeBounds::kDepth});
  v.may("time_ms", m.time_ms, Uint{0, ProbeBounds::kMs});
  v.may("pattern", m.pattern, Flag{});
  v.may("peer", m.peer, Text{});
  v.may("pieces", m.pieces, Uint{0, ProbeBounds::kPieces});
  v.may("pages", m.pages, Map{});
}
static Status validate(const Probe& m) {
  const bool opens = m.op == "open" || m.op == "pages";
  if (opens && (m.provider.empty() || m.dead_after_ms == 0)) {
    return invalid_argument(m.op + " names no provider or no dead_after_ms");
  }
  if (m.op == "pages" && (m.address.empty() || m.region_bytes == 0 || m.pages.pages == 0)) {
    return invalid_argument("pages names no address, no region or no pages");
  }
  if ((m.op == "write" || m.op == "verify") && (m.bytes == 0 || m.count == 0)) {
    return invalid_argument(m.op + " of no bytes");
  }
  if (m.op == "write" && m.depth == 0) return invalid_argument("write with no depth");
  if (m.op == "dial" && (m.peer.empty() || m.bytes == 0 || m.time_ms == 0)) {
    return invalid_argument("dial names no peer, no bytes or no time_ms");
  }
  if (m.region_base + m.region_bytes < m.region_base) {
    return invalid_argument("region_bytes: the region wraps around");
  }
  return {};
}

template <typename V>
void fields(V& v, Is<InterfaceCount> auto& m) {
  v.must("name", m.name, Text{64, 1});
  v.may("rdma", m.rdma, Flag{});
  v.must("sent_bytes", m.sent_bytes, Uint{});
  v.must("received_bytes", m.received_bytes, Uint{});
  v.may("bits_per_s", m.bits_per_s, Uint{});
  v.may("mtu_bytes", m.mtu_bytes, Uint{});
}

template <typename V>
void fields(V& v, Is<ProbeResult> auto& m) {
  v.must("request", m.request, Uint{});
  v.must("state", m.state, OneOf{kProbeStates});
  v.may("code", m.code, Text{64});
  v.may("text", m.text, Prose{});
  v.may("ahead", m.ahead, Uint{});
  v.may("address", m.address, Bin{kMaxAddress});
  v.may("region_base", m.region_base, Uint{});
  v.may("region_bytes", m.region_bytes, Uint{});
  v.may("region_key", m.region_key, Uint{});
  v.may("max_inflight_bytes", m.max_inflight_bytes, Uint{});
  v.may("max_bytes_per_s", m.max_bytes_per_s, Uint{});
  v.may("max_rounds_per_s", m.max_rounds_per_s, Uint{});
  v.may("libfabric", m.libfabric, Text{64});
  v.may("rounds", m.rounds, Bin{8 * ProbeBounds::kRounds});
  v.may("pages", m.pages, Uint{});
  v.may("bad_pages", m.bad_pages, Uint{});
  v.may("first_bad_page", m.first_bad_page, Uint{});
  v.may("first_bad_offset", m.first_bad_offset, Uint{});
  v.may("cpu_ns", m.cpu_ns, Uint{});
  v.may("active_rdma_ports", m.active_rdma_ports, Uint{});
  v.may("interfaces", m.interfaces, Maps{ProbeBounds::kInterfaces});
  v.may("provider", m.provider, Text{64});
  v.may("bytes_per_s", m.bytes_per_s, Uint{});
  v.may("latency_ns", m.latency_ns, Uint{});
  v.may("p99_ns", m.p99_ns, Uint{});
  v.may("boot_id", m.boot_id, Uint{});
  v.may("huge_pages", m.huge_pages, Text{64});
  v.may("began_ns", m.began_ns, Uint{});
  v.may("times", m.times, Bin{ProbeBounds::kTimesBytes * ProbeBounds::kTimes});
  v.may("left", m.left, Uint{});
}
static Status validate(const ProbeResult& m) {
  if (m.times.size() % ProbeBounds::kTimesBytes != 0) {
    return invalid_argument("times: no whole requests");
  }
  if (m.rounds.size() % 8 != 0) return invalid_argument("rounds: no whole numbers");
  if (m.region_base + m.region_bytes < m.region_base) {
    return invalid_argument("region_bytes: the region wraps around");
  }
  return {};
}

template <typename V>
void fields(V& v, Is<Join> auto& m) {
  v.must("role", m.role, OneOf{kRoles});
  v.may("control", m.control, Text{});
  v.may("http", m.http, Text{});
  v.may("model", m.model, Text{});
  v.may("load", m.load, Map{});
}
static Status validate(const Join& m) {
  if (!m.role.empty() && m.control.empty()) return invalid_argument("control is empty");
  return {};
}

template <typename V>
void fields(V&, Is<Leave> auto&) {}
static Status validate(const Leave&) { return {}; }

template <typename V>
void fields(V& v, Is<Member> auto& m) {
  v.must("role", m.role, OneOf{kRoles});
  v.must("control", m.control, Text{});
  v.may("http", m.http, Text{});
  v.may("model", m.model, Text{});
  v.must("incarnation", m.incarnation, Uint{});
  v.may("load", m.load, Map{});
}

template <typename V>
void fields(V& v, Is<Members> auto& m) {
  v.must("members", m.members, Maps{kMaxMembers});
}
static Status validate(const Members&) { return {}; }

KVD_PROTO_MESSAGE(StaleIncarnation);
KVD_PROTO_MESSAGE(Error);
KVD_PROTO_MESSAGE(Drain);
KVD_PROTO_MESSAGE(Leases);
KVD_PROTO_MESSAGE(Probe);
KVD_PROTO_MESSAGE(ProbeResult);
KVD_PROTO_MESSAGE(Join);
KVD_PROTO_MESSAGE(Leave);
KVD_PROTO_MESSAGE(Members);

}  // namespace kvd::proto
