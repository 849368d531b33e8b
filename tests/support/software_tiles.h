// The tile registers of AMX in software, bit for bit as Intel's Software Developer's Manual
// describes them (TDPBF16PS: even and odd columns have sums of their own, denormals are zero on
// their way in and out), and strict: the first misuse is noted where the processor would fault or
// the kernels would be wrong.
//
// In an unnamed namespace, because files compiled for different processors include it.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "engine/cpu/amx_tiles.h"

namespace kvd::test {
namespace {

class SoftwareTiles {
 public:
  // Null: none so far.
  const char* misuse() const { return misuse_; }
  bool configured() const { return configured_; }

  void configure(const engine::cpu::amx::TileConfig& config) {
    expect(config.palette == 1 && config.start_row == 0, "another palette or row than 1 and 0");
    for (const std::uint8_t byte : config.reserved) expect(byte == 0, "a reserved byte is not 0");
    for (int t = 0; t < 16; ++t) {
      const std::uint32_t rows = config.rows[t], bytes = config.row_bytes[t];
      expect(rows <= 16 && bytes <= 64, "a tile of more than 16 rows or 64 bytes");
      expect((rows == 0) == (bytes == 0), "a tile with rows or bytes but not both");
      expect(t < 8 || rows == 0, "more than 8 tiles");
    }
    config_ = config;
    configured_ = true;
    std::memset(tiles_, 0, sizeof tiles_);
  }
  void release() { configured_ = false; }

  template <int kTile>
  void zero() {
    if (!usable(kTile)) return;
    std::memset(tiles_[kTile], 0, sizeof tiles_[kTile]);
  }
  template <int kTile>
  void load(const void* from, std::size_t stride) {
    if (!usable(kTile) || !apart(kTile, stride)) return;
    std::memset(tiles_[kTile], 0, sizeof tiles_[kTile]);
    for (std::size_t r = 0; r < rows(kTile); ++r) {
      std::memcpy(tiles_[kTile][r], static_cast<const char*>(from) + r * stride, bytes(kTile));
    }
  }
  template <int kTile>
  void store(void* to, std::size_t stride) {
    if (!usable(kTile) || !apart(kTile, stride)) return;
    for (std::size_t r = 0; r < rows(kTile); ++r) {
      std::memcpy(static_cast<char*>(to) + r * stride, tiles_[kTile][r], bytes(kTile));
    }
  }
  template <int kSum, int kX, int kWeights>
  void multiply_add() {
    static_assert(kSum != kX && kSum != kWeights && kX != kWeights);
    if (!usable(kSum) || !usable(kX) || !usable(kWeights)) return;
    expect(rows(kSum) == rows(kX) && bytes(kSum) == bytes(kWeights) &&
               bytes(kX) == 4 * rows(kWeights) && bytes(kSum) % 4 == 0,
           "a product of tiles whose shapes do not fit");
    const std::uint32_t columns = bytes(kSum) / 4;
    for (std::uint32_t m = 0; m < rows(kSum); ++m) {
      float even[16] = {}, odd[16] = {};
      for (std::uint32_t k = 0; k < bytes(kX) / 4; ++k) {
        const float x0 = flushed(low_half(tiles_[kX][m][k]));
        const float x1 = flushed(high_half(tiles_[kX][m][k]));
        for (std::uint32_t n = 0; n < columns; ++n) {
          const std::uint32_t w = tiles_[kWeights][k][n];
          even[n] = flushed(std::fma(x0, flushed(low_half(w)), even[n]));
          odd[n] = flushed(std::fma(x1, flushed(high_half(w)), odd[n]));
        }
      }
      for (std::uint32_t n = 0; n < columns; ++n) {
        const float sum = flushed(number(tiles_[kSum][m][n]));
        const float result = flushed(sum + flushed(even[n] + odd[n]));
        std::memcpy(&tiles_[kSum][m][n], &result, sizeof result);
      }
    }
  }

 private:
  static float number(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  static float low_half(std::uint32_t pair) { return number(pair << 16); }
  static float high_half(std::uint32_t pair) { return number(pair & 0xFFFF0000U); }
  static float flushed(float value) {
    return std::fabs(value) < 0x1p-126F ? std::copysign(0.0F, value) : value;
  }

  std::uint32_t rows(int tile) const { return config_.rows[tile]; }
  std::uint32_t bytes(int tile) const { return config_.row_bytes[tile]; }
  void expect(bool holds, const char* otherwise) {
    if (!holds && misuse_ == nullptr) misuse_ = otherwise;
  }
  bool usable(int tile) {
    expect(configured_, "tiles without a configuration");
    expect(!configured_ || rows(tile) != 0, "a tile that is not configured");
    return configured_ && rows(tile) != 0;
  }
  bool apart(int tile, std::size_t stride) {
    expect(rows(tile) == 1 || stride >= bytes(tile), "rows that overlap in memory");
    return rows(tile) == 1 || stride >= bytes(tile);
  }

  engine::cpu::amx::TileConfig config_;
  bool configured_ = false;
  const char* misuse_ = nullptr;
  std::uint32_t tiles_[8][16][16] = {};
};

}  // namespace
}  // namespace kvd::test
