#include "transfer/wire.h"

#include <cstdlib>
#include <fstream>

namespace kvd::transfer {
namespace {

void compare(std::string* diff, const char* name, std::uint64_t here, std::uint64_t there) {
  if (here == there) return;
  if (!diff->empty()) *diff += "; ";
  *diff += std::string(name) + ": " + std::to_string(here) + " here, " + std::to_string(there) +
           " there";
}

std::uint64_t read_boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string text;
  if (!std::getline(file, text)) return 0;
  std::string digits;
  for (char c : text) {
    if (c != '-') digits += c;
  }
  if (digits.size() < 16) return 0;
  return std::strtoull(digits.substr(0, 16).c_str(), nullptr, 16);
}

}  // namespace

proto::LayoutInfo to_info(const kv::KvLayout& layout) {
  proto::LayoutInfo info;
  info.layers = layout.layers;
  info.kv_heads = layout.kv_heads;
  info.head_dim = layout.head_dim;
  info.page_size = layout.page_size;
  info.element_bytes = layout.element_bytes;
  info.dtype = layout.dtype;
  info.page_stride = layout.page_bytes();
  info.layer_stride = layout.layer_bytes();
  info.value_offset = layout.half_bytes();
  info.head_stride = layout.head_bytes();
  return info;
}

std::string compare_models(const kv::KvLayout& here, const std::string& fingerprint_here,
                           const proto::LayoutInfo& there, const std::string& fingerprint_there) {
  const proto::LayoutInfo ours = to_info(here);
  std::string diff;
  compare(&diff, "layers", ours.layers, there.layers);
  compare(&diff, "kv_heads", ours.kv_heads, there.kv_heads);
  compare(&diff, "head_dim", ours.head_dim, there.head_dim);
  compare(&diff, "page_size", ours.page_size, there.page_size);
  compare(&diff, "element_bytes", ours.element_bytes, there.element_bytes);
  if (ours.dtype != there.dtype) {
    if (!diff.empty()) diff += "; ";
    diff += "dtype: " + ours.dtype + " here, " + there.dtype.substr(0, 32) + " there";
  }
  // Strides follow from the shape; they are named only when the shape itself is equal.
  if (diff.empty()) {
    compare(&diff, "page_stride", ours.page_stride, there.page_stride);
    compare(&diff, "layer_stride", ours.layer_stride, there.layer_stride);
    compare(&diff, "value_offset", ours.value_offset, there.value_offset);
    compare(&diff, "head_stride", ours.head_stride, there.head_stride);
  }
  if (fingerprint_here != fingerprint_there) {
    if (!diff.empty()) diff += "; ";
    diff += "model: " + fingerprint_here.substr(0, 16) + " here, " +
            fingerprint_there.substr(0, 16) + " there";
  }
  return diff;
}

std::uint64_t boot_id() {
  static const std::uint64_t id = read_boot_id();
  return id;
}

}  // namespace kvd::transfer
