#include "engine/cpu/panels.h"

#include <cstring>

#include "engine/cpu/float16.h"

namespace kvd::engine::cpu {
namespace {

std::uint16_t read_u16(const std::byte* at) {
  std::uint16_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// w = d * q + m in row r of a block of kQ4 or kQ4K.
struct Scales {
  float d, m;
};
Scales q4_scales(PanelType type, const std::byte* panel, std::size_t b, std::uint32_t r) {
  if (type == PanelType::kQ4) {
    const std::byte* at = panel + units_at(type, b) + 256 + std::size_t{2} * r;
    return {half_to_float(read_u16(at)), half_to_float(read_u16(at + 32))};
  }
  const std::byte* halves = panel + q4k_super_at(b) + std::size_t{2} * r;
  std::uint32_t words[4] = {};
  for (std::size_t i = 0; i < 3; ++i) {
    std::memcpy(&words[i], panel + q4k_super_at(b) + kQ4KHalves + i * 64 + std::size_t{4} * r, 4);
    words[3] |= words[i] >> 24 << (8 * i);
  }
  const std::uint32_t scales = words[b % kQ4KBlocks / 2] >> (b % 2 * 12);
  return {half_to_float(read_u16(halves)) * static_cast<float>(scales & 63U),
          -(half_to_float(read_u16(halves + 32)) * static_cast<float>(scales >> 6 & 63U))};
}

// Row r of one block to out[column * stride].
void dequantize_q4(const std::byte* block, const Scales& scales, std::uint32_t r, float* out,
                   std::size_t stride) {
  for (std::uint32_t unit = 0; unit < 4; ++unit) {
    for (std::uint32_t j = 0; j < 4; ++j) {
      const auto byte = static_cast<unsigned>(block[unit * 64 + r * 4 + j]);
      out[(8 * unit + j) * stride] = scales.d * static_cast<float>(byte & 15U) + scales.m;
      out[(8 * unit + 4 + j) * stride] = scales.d * static_cast<float>(byte >> 4) + scales.m;
    }
  }
}

void dequantize_q8(const std::byte* block, std::uint32_t r, float* out, std::size_t stride) {
  const float d = half_to_float(read_u16(block + 512 + 2 * r));
  for (std::uint32_t k = 0; k < kBlock; ++k) {
    const auto q = static_cast<signed char>(block[k / 4 * 64 + r * 4 + k % 4]);
    out[k * stride] = d * static_cast<float>(q);
  }
}

// d of columns 0-15 and of the others, and m: what kQ5 and kQ6 have behind their bytes.
struct WideScales {
  float d[2], m;
};
WideScales wide_scales(PanelType type, const std::byte* block, std::uint32_t r) {
  const float first = half_to_float(read_u16(block + 512 + 2 * r));
  const float second = half_to_float(read_u16(block + 544 + 2 * r));
  if (type == PanelType::kQ5) return {{first, first}, second};
  return {{first, second}, 0.0F};
}

void dequantize_wide(PanelType type, const std::byte* block, std::uint32_t r, float* out,
                     std::size_t stride) {
  const WideScales scales = wide_scales(type, block, r);
  for (std::uint32_t k = 0; k < kBlock; ++k) {
    const auto q = static_cast<signed char>(block[k / 4 * 64 + r * 4 + k % 4]);
    out[k * stride] = scales.d[k / 16] * static_cast<float>(q) + scales.m;
  }
}

// All 16 rows of one block to out[column][16]: the same numbers, row-wise so that it vectorizes.
void dequantize_q4_block(PanelType type, const std::byte* panel, std::size_t b, float* out) {
  float d[kPanelRows], m[kPanelRows];
  for (std::uint32_t r = 0; r < kPanelRows; ++r) {
    const Scales scales = q4_scales(type, panel, b, r);
    d[r] = scales.d, m[r] = scales.m;
  }
  const std::byte* block = panel + units_at(type, b);
  for (std::uint32_t unit = 0; unit < 4; ++unit) {
    for (std::uint32_t j = 0; j < 4; ++j) {
      float* low = out + (8 * unit + j) * kPanelRows;
      float* high = low + 4 * kPanelRows;
      for (std::uint32_t r = 0; r < kPanelRows; ++r) {
        const auto byte = static_cast<int>(block[unit * 64 + r * 4 + j]);
        low[r] = d[r] * static_cast<float>(byte & 15) + m[r];
        high[r] = d[r] * static_cast<float>(byte >> 4) + m[r];
      }
    }
  }
}

void dequantize_q8_block(const std::byte* block, float* out) {
  float d[kPanelRows];
  for (std::uint32_t r = 0; r < kPanelRows; ++r)
    d[r] = half_to_float(read_u16(block + 512 + 2 * r));
  for (std::uint32_t k = 0; k < kBlock; ++k, out += kPanelRows) {
    for (std::uint32_t r = 0; r < kPanelRows; ++r) {
      const auto q = static_cast<signed char>(block[k / 4 * 64 + r * 4 + k % 4]);
      out[r] = d[r] * static_cast<float>(q);
    }
  }
}

void dequantize_wide_block(PanelType type, const std::byte* block, float* out) {
  float d[2][kPanelRows], m[kPanelRows];
  for (std::uint32_t r = 0; r < kPanelRows; ++r) {
    const WideScales scales = wide_scales(type, block, r);
    d[0][r] = scales.d[0], d[1][r] = scales.d[1], m[r] = scales.m;
  }
  for (std::uint32_t k = 0; k < kBlock; ++k, out += kPanelRows) {
    for (std::uint32_t r = 0; r < kPanelRows; ++r) {
      const auto q = static_cast<signed char>(block[k / 4 * 64 + r * 4 + k % 4]);
      out[r] = d[k / 16][r] * static_cast<float>(q) + m[r];
    }
  }
}

float float_element(const Matrix& matrix, const std::byte* panel, std::uint32_t r,
                    std::uint32_t k) {
  switch (matrix.type) {
    case PanelType::kF16:
      return half_to_float(read_u16(panel + 2 * (k * std::size_t{16} + r)));
    case PanelType::kBF16:
      return bf16_to_float(read_u16(panel + 2 * (k / 2 * std::size_t{32} + r * 2 + k % 2)));
    default:
      break;
  }
  float value;
  std::memcpy(&value, panel + 4 * (k * std::size_t{16} + r), sizeof value);
  return value;
}

void dequantize(const Matrix& matrix, std::uint32_t panel, std::uint32_t r, float* out,
                std::size_t stride) {
  const PanelType type = matrix.type;
  const std::byte* at = matrix.data + panel_at(matrix, panel);
  if (!is_quantized(type)) {
    for (std::uint32_t k = 0; k < matrix.columns; ++k) {
      out[k * stride] = float_element(matrix, at, r, k);
    }
    return;
  }
  for (std::size_t b = 0; b < matrix.columns / kBlock; ++b, out += kBlock * stride) {
    const std::byte* block = at + units_at(type, b);
    if (is_wide(type)) {
      dequantize_wide(type, block, r, out, stride);
    } else if (type == PanelType::kQ8) {
      dequantize_q8(block, r, out, stride);
    } else {
      dequantize_q4(block, q4_scales(type, at, b, r), r, out, stride);
    }
  }
}

}  // namespace

void dequantize_panel(const Matrix& matrix, std::uint32_t panel, float* out) {
  const PanelType type = matrix.type;
  if (!is_quantized(type)) {
    for (std::uint32_t r = 0; r < kPanelRows; ++r)
      dequantize(matrix, panel, r, out + r, kPanelRows);
    return;
  }
  const std::byte* at = matrix.data + panel_at(matrix, panel);
  for (std::size_t b = 0; b < matrix.columns / kBlock; ++b, out += kBlock * kPanelRows) {
    if (is_wide(type)) {
      dequantize_wide_block(type, at + units_at(type, b), out);
    } else if (type == PanelType::kQ8) {
      dequantize_q8_block(at + units_at(type, b), out);
    } else {
      dequantize_q4_block(type, at, b, out);
    }
  }
}

void dequantize_row(const Matrix& matrix, std::uint32_t row, float* out) {
  dequantize(matrix, row / kPanelRows, row % kPanelRows, out, 1);
}

}  // namespace kvd::engine::cpu
