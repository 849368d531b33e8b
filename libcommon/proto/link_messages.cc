#include "proto/link_messages.h"

#include "proto/codec.h"
#include "proto/commit_record.h"

namespace kvd::proto {
namespace {

constexpr std::string_view kRoles[] = {"prefill", "decode", "route", "probe"};
constexpr std::string_view kDigests[] = {"sample", "full", "off"};
constexpr std::uint64_t kMaxStride = 1u << 30;  // a page is at most 1 GiB
constexpr std::uint64_t kMaxDeadAfterMs = 3'600'000;

Status validate_layout(const LayoutInfo& m) {
  if (m.layers == 0 || m.kv_heads == 0 || m.head_dim == 0 || m.page_size == 0 ||
      m.element_bytes == 0 || m.dtype.empty()) {
    return invalid_argument("layout has a zero field");
  }
  // Each factor is at most 2^30 and each product is checked before the next, so nothing wraps.
  const std::uint64_t head_bytes = std::uint64_t{m.page_size} * m.head_dim * m.element_bytes;
  if (m.head_stride < head_bytes) return invalid_argument("layout.head_stride is too small");
  const std::uint64_t half = m.kv_heads * m.head_stride;
  if (m.value_offset < half || m.layer_stride < m.value_offset + half) {
    return invalid_argument("layout.layer_stride does not hold K and V");
  }
  if (m.page_stride < m.layers * m.layer_stride) {
    return invalid_argument("layout.page_stride does not hold the layers");
  }
  return {};
}

}  // namespace

template <typename V>
void fields(V& v, Is<LayoutInfo> auto& m) {
  v.must("layers", m.layers, Uint{0, 4096});
  v.must("kv_heads", m.kv_heads, Uint{0, 4096});
  v.must("head_dim", m.head_dim, Uint{0, 65536});
  v.must("page_size", m.page_size, Uint{0, 65536});
  v.must("element_bytes", m.element_bytes, Uint{0, 16});
  v.must("dtype", m.dtype, Text{32});
  v.must("page_stride", m.page_stride, Uint{0, kMaxStride});
  v.must("layer_stride", m.layer_stride, Uint{0, kMaxStride});
  v.must("value_offset", m.value_offset, Uint{0, kMaxStride});
  v.must("head_stride", m.head_stride, Uint{0, kMaxStride});
}

template <typename V>
void fields(V&, Is<Describe> auto&) {}
static Status validate(const Describe&) { return {}; }

template <typename V>
void fields(V& v, Is<Described> auto& m) {
  v.must("role", m.role, OneOf{kRoles});
  v.must("program", m.program, Text{});
  v.must("version", m.version, Text{});
  v.may("http", m.http, Text{});
  v.may("model", m.model, Text{});
  v.may("fingerprint", m.fingerprint, Text{});
  v.may("layout", m.layout, Map{});
  v.may("providers", m.providers, Texts{32, 64, 1});
  v.may("context", m.context, Uint{});
  v.may("load", m.load, Map{});
  v.may("scope", m.scope, Text{64});
}
static Status validate(const Described&) { return {}; }

template <typename V>
void fields(V& v, Is<Register> auto& m) {
  v.must("epoch", m.epoch, Uint{});
  v.must("fingerprint", m.fingerprint, Text{});
  v.must("model", m.model, Text{});
  v.must("layout", m.layout, Map{});
  v.must("provider", m.provider, Text{64, 1});
  v.must("address", m.address, Bin{kMaxAddress, 1});
  v.must("region_base", m.region_base, Uint{});
  v.must("region_bytes", m.region_bytes, Uint{1});
  v.must("region_key", m.region_key, Uint{});
  v.must("page_count", m.page_count, Uint{1});
  v.must("slots_offset", m.slots_offset, Uint{});
  v.must("slot_bytes", m.slot_bytes, Uint{kSlotBytes, 65536});
  v.must("slot_count", m.slot_count, Uint{1, 1u << kSlotBits});
  v.must("test_slot", m.test_slot, Uint{0, (1u << kSlotBits) - 1});
  v.must("test_generation", m.test_generation, Uint{0, (1u << kGenerationBits) - 1});
  v.must("test_nonce", m.test_nonce, Uint{});
  v.must("digest", m.digest, OneOf{kDigests});
  v.must("dead_after_ms", m.dead_after_ms, Uint{1, kMaxDeadAfterMs});
}
static Status validate(const Register& m) {
  KVD_RETURN_IF_ERROR(validate_layout(m.layout));
  if (m.region_base + m.region_bytes < m.region_base) {
    return invalid_argument("the region wraps around");
  }
  // page_count < 2^32 and page_stride <= 2^30; slot_count <= 2^20 and slot_bytes <= 2^16.
  const std::uint64_t pages_bytes = m.page_count * m.layout.page_stride;
  const std::uint64_t slots_bytes = std::uint64_t{m.slot_count} * m.slot_bytes;
  if (pages_bytes > m.region_bytes) return invalid_argument("the pages exceed the region");
  if (m.slots_offset < pages_bytes) return invalid_argument("the slots overlap the pages");
  if (m.slots_offset > m.region_bytes || slots_bytes > m.region_bytes - m.slots_offset) {
    return invalid_argument("the slots exceed the region");
  }
  // The scratch word of a slot is written by RMA and read as one word.
  if (m.slot_bytes % 8 != 0) return invalid_argument("slot_bytes is no multiple of 8");
  if (m.test_slot >= m.slot_count) return invalid_argument("test_slot is beyond the slots");
  return {};
}

template <typename V>
void fields(V& v, Is<Registered> auto& m) {
  v.must("provider", m.provider, Text{64, 1});
  v.must("address", m.address, Bin{kMaxAddress, 1});
  v.must("dead_after_ms", m.dead_after_ms, Uint{1, kMaxDeadAfterMs});
}
static Status validate(const Registered&) { return {}; }

template <typename V>
void fields(V& v, Is<Refused> auto& m) {
  v.must("code", m.code, Text{64, 1});
  v.may("text", m.text, Prose{});
  v.may("diff", m.diff, Prose{});
}
static Status validate(const Refused&) { return {}; }

template <typename V>
void fields(V& v, Is<Heartbeat> auto& m) {
  v.must("load", m.load, Map{});
}
static Status validate(const Heartbeat&) { return {}; }

KVD_PROTO_MESSAGE(Describe);
KVD_PROTO_MESSAGE(Described);
KVD_PROTO_MESSAGE(Register);
KVD_PROTO_MESSAGE(Registered);
KVD_PROTO_MESSAGE(Refused);
KVD_PROTO_MESSAGE(Heartbeat);

}  // namespace kvd::proto
