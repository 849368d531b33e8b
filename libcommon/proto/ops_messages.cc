#include "proto/ops_messages.h"

#include "proto/codec.h"

namespace kvd::proto {
namespace {

// Of a member; empty where a message only asks.
constexpr std::string_view kRoles[] = {"", "prefill", "decode", "route", "probe"};
constexpr std::size_t kMaxLeases = 16384;
constexpr std::size_t kMaxMembers = 4096;

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
void fields(V& v, Is<Probe> auto& m) {
  v.must("request", m.request, Uint{});
  v.must("params", m.params, Text{Bounds::kMaxString});
}
static Status validate(const Probe&) { return {}; }

template <typename V>
void fields(V& v, Is<ProbeResult> auto& m) {
  v.must("request", m.request, Uint{});
  v.must("result", m.result, Text{Bounds::kMaxString});
}
static Status validate(const ProbeResult&) { return {}; }

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
