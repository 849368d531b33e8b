#include "engine/cpu/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "engine/cpu/float16.h"
#include "engine/cpu/wide_blocks.h"

namespace kvd::engine::cpu {
namespace {

// Rows and columns fit 32 bits with room for padding; beyond that a file is hostile or not for a
// CPU.
constexpr std::uint64_t kMaxDimension = std::uint64_t{1} << 26;

std::string describe(const Tensor& tensor) {
  const TensorTypeInfo* info = tensor_type_info(static_cast<std::uint32_t>(tensor.type));
  return "tensor " + tensor.name + " is of type " +
         (info != nullptr ? std::string(info->name) : std::string("unknown"));
}

std::uint16_t read_u16(const std::byte* at) {
  std::uint16_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Row r of a block's units, of its 32 numbers.
template <typename Number>
void put_nibbles(const Number& number, std::uint32_t r, std::byte* units) {
  for (std::uint32_t unit = 0; unit < 4; ++unit) {
    for (std::uint32_t j = 0; j < 4; ++j) {
      const unsigned low = number(8 * unit + j), high = number(8 * unit + 4 + j);
      units[unit * 64 + r * 4 + j] = static_cast<std::byte>(low | high << 4);
    }
  }
}

// In a GGUF block the low nibble of byte i is column i, the high one column i + 16.
void pack_q4_row(const std::byte* quants, std::uint32_t r, std::byte* block) {
  const auto number = [quants](std::uint32_t column) {
    const auto byte = static_cast<unsigned>(quants[column % 16]);
    return column < 16 ? byte & 15U : byte >> 4;
  };
  put_nibbles(number, r, block);
}

void pack_q4(const Tensor& tensor, std::uint64_t row, std::uint32_t r, std::byte* panel) {
  const std::uint64_t blocks = tensor.columns() / kBlock;
  const bool has_min = tensor.type == TensorType::kQ4_1;
  const std::size_t block_bytes = has_min ? 20 : 18;
  const std::byte* from = tensor.data + row * blocks * block_bytes;
  for (std::uint64_t b = 0; b < blocks; ++b, from += block_bytes, panel += kQ4BlockBytes) {
    pack_q4_row(from + (has_min ? 4 : 2), r, panel);
    const std::uint16_t d = read_u16(from);
    const std::uint16_t m = has_min ? read_u16(from + 2) : float_to_half(-8.0F * half_to_float(d));
    std::memcpy(panel + 256 + 2 * r, &d, 2);
    std::memcpy(panel + 288 + 2 * r, &m, 2);
  }
}

void pack_q8(const Tensor& tensor, std::uint64_t row, std::uint32_t r, std::byte* panel) {
  const std::uint64_t blocks = tensor.columns() / kBlock;
  const std::byte* from = tensor.data + row * blocks * 34;
  for (std::uint64_t b = 0; b < blocks; ++b, from += 34, panel += kQ8BlockBytes) {
    for (std::uint32_t unit = 0; unit < 8; ++unit) {
      std::memcpy(panel + unit * 64 + r * 4, from + 2 + unit * 4, 4);
    }
    std::memcpy(panel + 512 + 2 * r, from, 2);
  }
}

void put_half(std::byte* to, float value) {
  const std::uint16_t half = float_to_half(value);
  std::memcpy(to, &half, sizeof half);
}

// The formats that are read 32 columns at a time (wide_blocks.h).
void pack_wide(const Tensor& tensor, PanelType type, std::uint64_t row, std::uint32_t r,
               std::byte* panel) {
  const ReadWideBlock read = wide_block_reader(tensor.type);
  const std::uint64_t blocks = tensor.columns() / kBlock;
  const std::byte* from = tensor.data + row * (tensor.bytes / tensor.rows());
  for (std::uint64_t b = 0; b < blocks; ++b, panel += block_bytes(type)) {
    WideBlock block;
    read(from, b, &block);
    put_half(panel + 512 + 2 * r, block.d[0]);
    if (type != PanelType::kQ8) {
      put_half(panel + 544 + 2 * r, type == PanelType::kQ6 ? block.d[1] : block.m);
    }
    for (std::uint32_t unit = 0; unit < 8; ++unit) {
      std::memcpy(panel + unit * 64 + r * 4, block.q + unit * 4, 4);
    }
  }
}

void pack_q4_k(const Tensor& tensor, std::uint64_t row, std::uint32_t r, std::byte* panel) {
  const std::uint64_t blocks = tensor.columns() / kBlock;
  const std::byte* from = tensor.data + row * (tensor.bytes / tensor.rows());
  for (std::uint64_t first = 0; first < blocks; first += kQ4KBlocks) {
    std::byte* super = panel + q4k_super_at(first);
    const std::byte* halves = from + first / kQ4KBlocks * 144;
    std::memcpy(super + 2 * r, halves, 2);
    std::memcpy(super + 32 + 2 * r, halves + 2, 2);
    std::uint32_t words[4] = {};
    for (std::uint32_t i = 0; i < kQ4KBlocks; ++i) {
      const Q4KColumns block = read_q4_k(from, first + i);
      words[i / 2] |= (block.scale | block.minimum << 6) << (i % 2 * 12);
      put_nibbles([&block](std::uint32_t column) -> unsigned { return block.q[column]; }, r,
                  panel + units_at(PanelType::kQ4K, first + i));
    }
    for (std::uint32_t i = 0; i < 3; ++i) {
      const std::uint32_t word = words[i] | (words[3] >> (8 * i) & 255U) << 24;
      std::memcpy(super + kQ4KHalves + std::size_t{64} * i + std::size_t{4} * r, &word, 4);
    }
  }
}

void pack_float(const Tensor& tensor, PanelType type, std::uint64_t row, std::uint32_t r,
                std::byte* panel) {
  const std::uint64_t columns = tensor.columns();
  const std::size_t size = type == PanelType::kF32 ? 4 : 2;
  const std::byte* from = tensor.data + row * columns * size;
  for (std::uint64_t k = 0; k < columns; ++k) {
    const std::size_t place =
        type == PanelType::kBF16 ? (k / 2) * 32 + r * 2 + k % 2 : k * kPanelRows + r;
    std::memcpy(panel + place * size, from + k * size, size);
  }
}

Result<PanelType> panel_type(const Tensor& tensor) {
  switch (tensor.type) {
    case TensorType::kF32:
      return PanelType::kF32;
    case TensorType::kF16:
      return PanelType::kF16;
    case TensorType::kBF16:
      return PanelType::kBF16;
    case TensorType::kQ4_0:
    case TensorType::kQ4_1:
      return PanelType::kQ4;
    case TensorType::kQ4_K:
      return PanelType::kQ4K;
    case TensorType::kQ5_0:
    case TensorType::kQ8_0:
      return PanelType::kQ8;
    case TensorType::kQ5_1:
    case TensorType::kQ5_K:
      return PanelType::kQ5;
    case TensorType::kQ6_K:
      return PanelType::kQ6;
  }
  return invalid_argument(describe(tensor) + ", which is not supported");
}

}  // namespace

Result<Matrix> plan_matrix(const Tensor& tensor) {
  Result<PanelType> type = panel_type(tensor);
  if (!type.ok()) return type.status();
  const std::uint64_t columns = tensor.columns(), rows = tensor.rows();
  const std::uint32_t unit = *type == PanelType::kQ4K ? kQ4KBlocks * kBlock
                             : is_quantized(*type)    ? kBlock
                                                      : 8;
  if (tensor.dims.size() > 2 || columns == 0 || rows == 0 || columns > kMaxDimension ||
      rows > kMaxDimension || columns % unit != 0) {
    return invalid_argument(describe(tensor) + " with " + std::to_string(columns) + " x " +
                            std::to_string(rows) + " elements: columns must be a multiple of " +
                            std::to_string(unit) + " and the tensor a matrix");
  }
  Matrix matrix;
  matrix.type = *type;
  matrix.rows = static_cast<std::uint32_t>(rows);
  matrix.columns = static_cast<std::uint32_t>(columns);
  matrix.panels = (matrix.rows + kPanelRows - 1) / kPanelRows;
  matrix.panel_bytes = is_quantized(*type)
                           ? columns / kBlock * block_bytes(*type)
                           : columns * kPanelRows * (*type == PanelType::kF32 ? 4 : 2);
  matrix.pair_stride = 2 * matrix.panel_bytes;
  return matrix;
}

void pack_panel(const Tensor& tensor, const Matrix& matrix, std::uint32_t panel, std::byte* out) {
  const std::uint32_t first = panel * kPanelRows;
  const std::uint32_t rows = std::min(kPanelRows, matrix.rows - first);
  if (rows < kPanelRows) std::memset(out, 0, matrix.panel_bytes);
  for (std::uint32_t r = 0; r < rows; ++r) {
    if (wide_block_reader(tensor.type) != nullptr) {
      pack_wide(tensor, matrix.type, first + r, r, out);
    } else if (matrix.type == PanelType::kQ4) {
      pack_q4(tensor, first + r, r, out);
    } else if (matrix.type == PanelType::kQ4K) {
      pack_q4_k(tensor, first + r, r, out);
    } else if (matrix.type == PanelType::kQ8) {
      pack_q8(tensor, first + r, r, out);
    } else {
      pack_float(tensor, matrix.type, first + r, r, out);
    }
  }
}

Status read_vector(const Tensor& tensor, float* out) {
  const std::uint64_t count = tensor.columns() * tensor.rows();
  for (std::uint64_t i = 0; i < count; ++i) {
    switch (tensor.type) {
      case TensorType::kF32:
        std::memcpy(out + i, tensor.data + 4 * i, 4);
        break;
      case TensorType::kF16:
        out[i] = half_to_float(read_u16(tensor.data + 2 * i));
        break;
      case TensorType::kBF16:
        out[i] = bf16_to_float(read_u16(tensor.data + 2 * i));
        break;
      default:
        return invalid_argument(describe(tensor) + "; vectors must be F32, F16 or BF16");
    }
  }
  return {};
}

}  // namespace kvd::engine::cpu
