// Layouts, pools with bytes in them and capabilities for the tests of transfer/'s pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "fabric/fabric.h"
#include "kv/layout.h"
#include "kv/page_pool.h"

namespace kvd::transfer {

inline kv::KvLayout layout_of(std::uint32_t layers, std::uint32_t heads, std::uint32_t dim) {
  kv::KvLayout layout;
  layout.layers = layers;
  layout.kv_heads = heads;
  layout.head_dim = dim;
  return layout;
}

struct TestPool {
  TestPool(kv::KvLayout layout, std::uint32_t pages)
      : memory(pages * layout.page_bytes()), pool(layout, memory.data(), pages) {
    for (std::size_t i = 0; i < memory.size(); ++i) {
      memory[i] = static_cast<std::byte>((i * 2654435761u) >> 13);
    }
  }
  std::vector<std::byte> memory;
  kv::PagePool pool;
};

inline fabric::Capabilities capabilities_of(std::uint32_t pieces, std::uint64_t most = 1u << 20) {
  fabric::Capabilities capabilities;
  capabilities.max_write_bytes = most;
  capabilities.iov_limit = capabilities.rma_iov_limit = pieces;
  return capabilities;
}

}  // namespace kvd::transfer
