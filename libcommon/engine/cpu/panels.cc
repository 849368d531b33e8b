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

// Row r of one block to out[column * stride].
void dequantize_q4(const std::byte* block, std::uint32_t r, float* out, std::size_t stride) {
  const float d = half_to_float(read_u16(block + 256 + 2 * r));
  const float m = half_to_float(read_u16(block + 288 + 2 * r));
  for (std::uint32_t unit = 0; unit < 4; ++unit) {
    for (std::uint32_t j = 0; j < 4; ++j) {
      const auto byte = static_cast<unsigned>(block[unit * 64 + r * 4 + j]);
      out[(8 * unit + j) * stride] = d * static_cast<float>(byte & 15U) + m;
      out[(8 * unit + 4 + j) * stride] = d * static_cast<float>(byte >> 4) + m;
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
void dequantize_q4_block(const std::byte* block, float* out) {
  float d[kPanelRows], m[kPanelRows];
  for (std::uint32_t r = 0; r < kPanelRows; ++r) {
    d[r] = half_to_float(read_u16(block + 256 + 2 * r));
    m[r] = half_to_float(read_u16(block + 288 + 2 * r));
  }
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
  const std::byte* at = matrix.data + panel * matrix.panel_bytes;
  if (!is_quantized(matrix.type)) {
    for (std::uint32_t k = 0; k < matrix.columns; ++k) {
      out[k * stride] = float_element(matrix, at, r, k);
    }
    return;
  }
  for (std::uint32_t k = 0; k < matrix.columns; k += kBlock, at += block_bytes(matrix.type)) {
    if (is_wide(matrix.type)) {
      dequantize_wide(matrix.type, at, r, out + k * stride, stride);
    } else {
      const bool q4 = matrix.type == PanelType::kQ4;
      (q4 ? dequantize_q4 : dequantize_q8)(at, r, out + k * stride, stride);
    }
  }
}

}  // namespace

void dequantize_panel(const Matrix& matrix, std::uint32_t panel, float* out) {
  if (!is_quantized(matrix.type)) {
    for (std::uint32_t r = 0; r < kPanelRows; ++r)
      dequantize(matrix, panel, r, out + r, kPanelRows);
    return;
  }
  const std::byte* block = matrix.data + panel * matrix.panel_bytes;
  for (std::uint32_t k = 0; k < matrix.columns; k += kBlock, out += kBlock * kPanelRows) {
    if (is_wide(matrix.type)) {
      dequantize_wide_block(matrix.type, block, out);
    } else {
      const bool q4 = matrix.type == PanelType::kQ4;
      (q4 ? dequantize_q4_block : dequantize_q8_block)(block, out);
    }
    block += block_bytes(matrix.type);
  }
}

void dequantize_row(const Matrix& matrix, std::uint32_t row, float* out) {
  dequantize(matrix, row / kPanelRows, row % kPanelRows, out, 1);
}

}  // namespace kvd::engine::cpu
