// Matrix products in AMX tiles. Two tiles of activations (32 tokens) meet two of weights (two
// panels) in four tiles of sums: a load for each product, and no sum waits for the one before.
//
// The columns are taken in slices. A panel's slice is unpacked to bf16 once and then meets all
// tokens; it and the 32 tokens' part of the slice stay in the L1 cache (48 KiB on every processor
// with AMX), the slice of all tokens in L2 (2 MiB). Sums wait in `out` between slices.
//
// The result for a token does not depend on which tokens come with it: slices depend on the matrix
// alone, and a tile's rows do not touch each other.
//
// A template, so that tests can run it on tiles in software.
#pragma once

#include <type_traits>

#include "engine/cpu/amx.h"
#include "engine/cpu/amx_tiles.h"
#include "engine/cpu/avx512.h"

namespace kvd::engine::cpu::amx {
namespace {

using avx512::least;

constexpr std::uint32_t kTileRows = 16;
constexpr std::uint32_t kSliceSteps = 10;  // 20 KiB of two panels, and as much of 32 tokens
constexpr std::uint32_t kNearRows = 2048;  // tokens whose slice takes 1.3 MiB

// The tiles: sums of token tile i and panel j in 2 i + j.
constexpr int kX = 4, kWeights = 6;

// How many tokens and weight rows each tile has; 0: it is not there.
struct Shape {
  std::uint32_t tokens[2] = {0, 0};
  std::uint32_t weights[2] = {0, 0};
  bool operator==(const Shape&) const = default;
};

inline TileConfig config_of(const Shape& shape) {
  TileConfig config;
  const auto set = [&](std::uint32_t tile, std::uint32_t rows, std::uint32_t bytes) {
    const bool there = rows != 0 && bytes != 0;
    config.rows[tile] = static_cast<std::uint8_t>(there ? rows : 0);
    config.row_bytes[tile] = static_cast<std::uint16_t>(there ? bytes : 0);
  };
  for (std::uint32_t i = 0; i < 2; ++i) {
    for (std::uint32_t j = 0; j < 2; ++j) set(2 * i + j, shape.tokens[i], 4 * shape.weights[j]);
    set(kX + i, shape.tokens[i], kStepRowBytes);
    set(kWeights + i, kBlock / 2, 4 * shape.weights[i]);
  }
  return config;
}

// Up to 32 tokens and two panels of a slice.
struct Block {
  std::uint32_t steps;
  std::uint32_t products;  // of parts: high by high, low by high, high by low
  const std::byte* x;      // the first token's high part
  std::size_t x_stride, x_low;
  const std::byte* weights[2];
  std::size_t weights_low;
  float* out;
  std::size_t out_stride;  // bytes
  bool add;
};

template <bool kTall, bool kWide, typename Visit>
[[gnu::always_inline]] inline void each_sum(const Block& block, const Visit& visit) {
  float* below = block.out + kTileRows * block.out_stride / sizeof(float);
  visit(std::integral_constant<int, 0>(), block.out);
  if constexpr (kWide) visit(std::integral_constant<int, 1>(), block.out + kPanelRows);
  if constexpr (kTall) visit(std::integral_constant<int, 2>(), below);
  if constexpr (kTall && kWide) visit(std::integral_constant<int, 3>(), below + kPanelRows);
}

template <bool kTall, bool kWide, typename Tiles>
void multiply_block(Tiles& tiles, const Block& block) {
  each_sum<kTall, kWide>(block, [&](auto tile, float* sums) {
    if (block.add) {
      tiles.template load<tile()>(sums, block.out_stride);
    } else {
      tiles.template zero<tile()>();
    }
  });
  const std::size_t stride = block.x_stride;
  for (std::uint32_t p = 0; p < block.products; ++p) {
    const std::byte* x = block.x + (p == 1 ? block.x_low : 0);
    const std::byte* below = x + kTileRows * stride;
    const std::size_t part = p == 2 ? block.weights_low : 0;
    const std::byte *w = block.weights[0] + part, *beside = block.weights[1] + part;
    for (std::uint32_t step = 0; step < block.steps; ++step) {
      tiles.template load<kX>(x, stride);
      tiles.template load<kWeights>(w, kPairBytes);
      tiles.template multiply_add<0, kX, kWeights>();
      if constexpr (kWide) {
        tiles.template load<kWeights + 1>(beside, kPairBytes);
        tiles.template multiply_add<1, kX, kWeights + 1>();
      }
      if constexpr (kTall) {
        tiles.template load<kX + 1>(below, stride);
        tiles.template multiply_add<2, kX + 1, kWeights>();
        if constexpr (kWide) tiles.template multiply_add<3, kX + 1, kWeights + 1>();
      }
      x += kStepRowBytes, below += kStepRowBytes;
      w += kStepBytes, beside += kStepBytes;
    }
  }
  each_sum<kTall, kWide>(
      block, [&](auto tile, float* sums) { tiles.template store<tile()>(sums, block.out_stride); });
}

template <typename Tiles>
class Linear {
 public:
  Linear(Tiles& tiles, const Matrix& matrix, const Activations& x, float* out,
         std::size_t out_stride)
      : tiles_(tiles), matrix_(matrix), x_(x), out_(out), out_stride_(out_stride) {
    const bool two_parts = has_low_weights(matrix.type);
    block_.products = is_quantized(matrix.type) ? 1 : two_parts ? 3 : 2;
    block_.x_stride = x.quantized_stride;
    block_.x_low = matrix.columns / kBlock * std::size_t{kStepRowBytes};
    block_.out_stride = out_stride * sizeof(float);
  }
  ~Linear() { tiles_.release(); }
  Linear(const Linear&) = delete;
  Linear& operator=(const Linear&) = delete;

  void run(std::uint32_t begin, std::uint32_t end, std::uint32_t rows, bool add,
           std::byte* scratch) {
    // Parts share the caches.
    const std::uint32_t most = kSliceSteps / (is_quantized(matrix_.type) ? 1 : 2);
    const std::uint32_t all = matrix_.columns / kBlock, slices = (all + most - 1) / most;
    for (std::uint32_t row = 0; row < rows; row += kNearRows) {
      for (std::uint32_t s = 0; s < slices; ++s) {
        const std::uint32_t first = all * s / slices;
        block_.steps = all * (s + 1) / slices - first;
        block_.add = add || s != 0;
        for (std::uint32_t panel = begin; panel < end; panel += 2) {
          const bool wide = panel + 1 < end;
          unpack(panel, wide, first, scratch);
          multiply(panel, wide, first, row, least(rows, row + kNearRows));
        }
      }
    }
  }

 private:
  void unpack(std::uint32_t panel, bool wide, std::uint32_t first, std::byte* scratch) {
    const std::size_t part = std::size_t{block_.steps} * kStepBytes;
    const std::size_t panel_bytes = part * (has_low_weights(matrix_.type) ? 2 : 1);
    block_.weights_low = part;
    for (std::uint32_t j = 0; j < (wide ? 2U : 1U); ++j) {
      block_.weights[j] =
          weight_tiles(matrix_, panel + j, first, block_.steps, scratch + j * panel_bytes);
    }
    if (!wide) block_.weights[1] = block_.weights[0];
  }

  void multiply(std::uint32_t panel, bool wide, std::uint32_t first, std::uint32_t row,
                std::uint32_t end) {
    const std::uint32_t left = matrix_.rows - panel * kPanelRows;
    for (; row < end; row += 2 * kTileRows) {
      const std::uint32_t tokens = least(2 * kTileRows, end - row);
      const bool tall = tokens > kTileRows;
      Shape shape;
      shape.tokens[0] = least(kTileRows, tokens), shape.tokens[1] = tokens - shape.tokens[0];
      shape.weights[0] = least(kPanelRows, left);
      shape.weights[1] = wide ? least(kPanelRows, left - kPanelRows) : 0;
      if (shape != shape_) tiles_.configure(config_of(shape));
      shape_ = shape;
      block_.x = x_.quantized + row * x_.quantized_stride + first * std::size_t{kStepRowBytes};
      block_.out = out_ + row * out_stride_ + std::size_t{panel} * kPanelRows;
      if (tall) {
        wide ? multiply_block<true, true>(tiles_, block_)
             : multiply_block<true, false>(tiles_, block_);
      } else {
        wide ? multiply_block<false, true>(tiles_, block_)
             : multiply_block<false, false>(tiles_, block_);
      }
    }
  }

  Tiles& tiles_;
  const Matrix& matrix_;
  const Activations& x_;
  float* out_;
  std::size_t out_stride_;  // floats
  Shape shape_;
  Block block_ = {};
};

// As Kernels::linear.
template <typename Tiles>
void linear_in(Tiles& tiles, const Matrix& matrix, std::uint32_t begin, std::uint32_t end,
               const Activations& x, std::uint32_t rows, float* out, std::size_t out_stride,
               bool add, std::byte* scratch) {
  // Only float matrices of odd sizes.
  if (matrix.columns % kBlock != 0) {
    return avx512::linear(matrix, begin, end, x, rows, out, out_stride, add, scratch);
  }
  Linear<Tiles>(tiles, matrix, x, out, out_stride).run(begin, end, rows, add, scratch);
}

}  // namespace
}  // namespace kvd::engine::cpu::amx
