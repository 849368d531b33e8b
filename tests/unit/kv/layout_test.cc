#include "kv/layout.h"

#include <sys/mman.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdint>

#include "device/host_buffer.h"

using namespace kvd;
using kv::KvLayout;
using kv::LayerGroup;

namespace {
KvLayout smollm2() { return {30, 3, 64, 32, 2, "bf16"}; }
}  // namespace

TEST_CASE("layout: SmolLM2-135M has 24 KiB a layer and 720 KiB a page") {
  const KvLayout layout = smollm2();
  CHECK(layout.layer_bytes() == 24 * 1024);
  CHECK(layout.page_bytes() == 720 * 1024);
  CHECK(layout.pages_for(0) == 0);
  CHECK(layout.pages_for(1) == 1);
  CHECK(layout.pages_for(32) == 1);
  CHECK(layout.pages_for(33) == 2);
  CHECK(layout.offset(1, true, 2, 31) == 24576 + 12288 + 2 * 4096 + 31 * 128);
  CHECK(layout.offset(29, true, 2, 31) + 128 == layout.page_bytes());
}

TEST_CASE("layout: groups make 128 KiB, the last half of that, and cover each layer once") {
  CHECK(kv::layer_groups(smollm2()) ==
        std::vector<LayerGroup>{{0, 6}, {6, 12}, {12, 18}, {18, 24}, {24, 27}, {27, 30}});
  const KvLayout llama8b{32, 8, 128, 32, 2, "bf16"};
  CHECK(kv::layer_groups(llama8b).size() == 32);
  for (std::uint32_t layers = 1; layers < 40; ++layers) {
    for (std::uint32_t heads : {1U, 2U, 3U, 8U}) {
      const KvLayout layout{layers, heads, 64, 32, 2, "bf16"};
      std::uint32_t next = 0;
      for (const LayerGroup& group : kv::layer_groups(layout)) {
        CHECK(group.begin == next);
        CHECK(group.end > group.begin);
        next = group.end;
      }
      CHECK(next == layers);
    }
  }
}

TEST_CASE("layout: a difference names each field, both values") {
  KvLayout other = smollm2();
  CHECK(kv::diff(smollm2(), other).empty());
  other.page_size = 64;
  other.dtype = "f16";
  CHECK(kv::diff(smollm2(), other) == "page_size: 32 here, 64 there; dtype: bf16 here, f16 there");
}

TEST_CASE("layout: zero, odd and overflowing dimensions are refused") {
  CHECK(smollm2().validate().ok());
  for (KvLayout bad :
       {KvLayout{0, 3, 64, 32, 2, ""}, KvLayout{30, 3, 64, 48, 2, ""},
        KvLayout{UINT32_MAX, 3, 64, 32, 2, ""}, KvLayout{65536, 65536, 65536, 65536, 8, ""},
        KvLayout{30, 3, 64, 32, 0, ""}}) {
    CHECK_FALSE(bad.validate().ok());
  }
}

TEST_CASE("host buffer: zeroed, aligned to a huge page, movable") {
  auto buffer = device::HostBuffer::allocate(3u << 20);
  REQUIRE(buffer.ok());
  std::byte* data = buffer->data();
  CHECK(buffer->size() == 4u << 20);
  CHECK(reinterpret_cast<std::uintptr_t>(data) % (2u << 20) == 0);
  CHECK(data[0] == std::byte{0});
  data[buffer->size() - 1] = std::byte{9};
  device::HostBuffer moved = std::move(*buffer);
  CHECK(moved.data() == data);
  CHECK(moved.data()[moved.size() - 1] == std::byte{9});
  CHECK_FALSE(device::HostBuffer::allocate(0).ok());
  CHECK_FALSE(device::HostBuffer::allocate(std::size_t{1} << 62).ok());
}

TEST_CASE("host buffer: shared memory is sealed, writable for its owner alone, and found again") {
  auto buffer = device::HostBuffer::allocate(3u << 20, device::Backing::kShared);
  if (!buffer.ok()) {
    WARN("skipped: " + buffer.status().message());
    return;
  }
  CHECK(buffer->shared());
  CHECK(buffer->size() == 4u << 20);
  CHECK(reinterpret_cast<std::uintptr_t>(buffer->data()) % (2u << 20) == 0);
  CHECK(buffer->data()[77] == std::byte{0});
  buffer->data()[77] = std::byte{5};
  const std::byte* inside = buffer->data() + 70;
  const auto memory = device::shared_memory_at(inside, 1000);
  REQUIRE(memory);
  CHECK(memory->data == buffer->data());
  CHECK(memory->bytes == buffer->size());
  CHECK_FALSE(device::shared_memory_at(inside, buffer->size()));
  CHECK(ftruncate(memory->fd, 4096) != 0);
  CHECK(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory->fd, 0) == MAP_FAILED);
  void* view = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, memory->fd, 0);
  REQUIRE(view != MAP_FAILED);
  CHECK(static_cast<std::byte*>(view)[77] == std::byte{5});
  munmap(view, 4096);
  // Either it has huge pages, or there is a line that says how to get them.
  CHECK((buffer->huge_pages() != device::HugePages::kNone ||
         !device::shared_huge_pages_hint().empty()));
  device::HostBuffer moved = std::move(*buffer);
  CHECK(device::shared_memory_at(inside, 1000));
  moved = device::HostBuffer();
  CHECK_FALSE(device::shared_memory_at(inside, 1000));
}
