// The tile registers of AMX: eight, of up to 16 rows of up to 64 bytes each, in the shapes that the
// thread's configuration gives them. Formats and meaning: Intel's Software Developer's Manual,
// volume 1, "Programming with Intel AMX", and the instructions' own pages.
//
// As assembly, because the intrinsics of GCC 12 do not say what they read: _tile_loadconfig names 8
// of the 64 bytes and _tile_loadd none, so that stores before them may be dropped or come too late.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvd::engine::cpu::amx {

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};  // 0, and 0 rows: the tile is not used
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// Of the calling thread. Between configure() and release() the system saves 8 KiB more at each
// switch of threads, so that no thread keeps its tiles beyond a job.
struct HardwareTiles {
  // Zeroes all tiles.
  [[gnu::always_inline]] void configure(const TileConfig& config) {
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  [[gnu::always_inline]] void release() { asm volatile("tilerelease"); }

  template <int kTile>
  [[gnu::always_inline]] void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  // Rows are `stride` bytes apart.
  template <int kTile>
  [[gnu::always_inline]] void load(const void* from, std::size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  [[gnu::always_inline]] void store(void* to, std::size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  // kSum[i][j] += the products of bf16 pairs of kX's row i and kWeights' column j.
  template <int kSum, int kX, int kWeights>
  [[gnu::always_inline]] void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kX), "i"(kWeights));
  }
};

}  // namespace kvd::engine::cpu::amx
