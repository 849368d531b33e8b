#include "kv/layout.h"

#include <algorithm>

namespace kvd::kv {

Status KvLayout::validate() const {
  if (layers == 0 || kv_heads == 0 || head_dim == 0 || page_size == 0 || element_bytes == 0) {
    return invalid_argument("KV layout has a zero dimension");
  }
  if (page_size % 32 != 0) {
    return invalid_argument("page size " + std::to_string(page_size) + " is not a multiple of 32");
  }
  // Each factor is bounded first, so that the product cannot overflow.
  constexpr std::uint32_t kMaxFactor = 1u << 16;
  constexpr std::uint64_t kMaxPageBytes = 1u << 30;
  if (layers > kMaxFactor || kv_heads > kMaxFactor || head_dim > kMaxFactor ||
      page_size > kMaxFactor || element_bytes > 8) {
    return invalid_argument("KV layout has a dimension above 65536");
  }

  if (head_bytes() > kMaxPageBytes || half_bytes() > kMaxPageBytes ||
      layer_bytes() * layers > kMaxPageBytes) {
    return invalid_argument("a page of this KV layout is larger than 1 GiB");
  }
  return {};
}

std::string diff(const KvLayout& here, const KvLayout& there) {
  std::string out;
  const auto add = [&](const char* name, const std::string& a, const std::string& b) {
    if (a == b) return;
    if (!out.empty()) out += "; ";
    out += std::string(name) + ": " + a + " here, " + b + " there";
  };
  add("layers", std::to_string(here.layers), std::to_string(there.layers));
  add("kv_heads", std::to_string(here.kv_heads), std::to_string(there.kv_heads));
  add("head_dim", std::to_string(here.head_dim), std::to_string(there.head_dim));
  add("page_size", std::to_string(here.page_size), std::to_string(there.page_size));
  add("element_bytes", std::to_string(here.element_bytes), std::to_string(there.element_bytes));
  add("dtype", here.dtype, there.dtype);
  return out;
}

std::vector<LayerGroup> layer_groups(const KvLayout& layout) {
  constexpr std::uint64_t kGroupBytes = 128u << 10;
  const auto per_group =
      static_cast<std::uint32_t>((kGroupBytes + layout.layer_bytes() - 1) / layout.layer_bytes());
  // What follows the last computed layer cannot hide behind compute: keep that piece small.
  const std::uint32_t last = std::max<std::uint32_t>(1, per_group / 2);
  std::vector<LayerGroup> groups;
  std::uint32_t layer = 0;
  while (layer < layout.layers) {
    const std::uint32_t left = layout.layers - layer;
    std::uint32_t count = std::min(per_group, left);
    if (left <= last) {
      count = left;
    } else if (left <= per_group + last) {
      // The tail: all but `last` layers now, then the short group.
      count = std::min(per_group, left - last);
    }
    groups.push_back({layer, layer + count});
    layer += count;
  }
  return groups;
}

}  // namespace kvd::kv
