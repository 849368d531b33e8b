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
  const bool q4 = matrix.type == PanelType::kQ4;
  for (std::uint32_t k = 0; k < matrix.columns; k += kBlock) {
    (q4 ? dequantize_q4 : dequantize_q8)(at, r, out + k * stride, stride);
    at += q4 ? kQ4BlockBytes : kQ8BlockBytes;
  }
}

}  // namespace

void dequantize_panel(const Matrix& matrix, std::uint32_t panel, float* out) {
  if (!is_quantized(matrix.type)) {
    for (std::uint32_t r = 0; r < kPanelRows; ++r)
      dequantize(matrix, panel, r, out + r, kPanelRows);
    return;
  }
  const bool q4 = matrix.type == PanelType::kQ4;
  const std::byte* block = matrix.data + panel * matrix.panel_bytes;
  for (std::uint32_t k = 0; k < matrix.columns; k += kBlock, out += kBlock * kPanelRows) {
    (q4 ? dequantize_q4_block : dequantize_q8_block)(block, out);
    block += q4 ? kQ4BlockBytes : kQ8BlockBytes;
  }
}

void dequantize_row(const Matrix& matrix, std::uint32_t row, float* out) {
  dequantize(matrix, row / kPanelRows, row % kPanelRows, out, 1);
}

}  // namespace kvd::engine::cpu
