// From tensors of a GGUF file to panels (panels.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"
#include "engine/cpu/panels.h"
#include "engine/gguf.h"

namespace kvd::engine::cpu {

// The shape of the packed tensor, without data. kInvalidArgument: a type that has no panel, a
// column count that its kernels do not take.
Result<Matrix> plan_matrix(const Tensor& tensor);
// From its first panel to the end of its last.
inline std::size_t packed_bytes(const Matrix& matrix) {
  return panel_at(matrix, matrix.panels - 1) + matrix.panel_bytes;
}
// Packs one panel to out[matrix.panel_bytes]. Different panels may be packed at once.
void pack_panel(const Tensor& tensor, const Matrix& matrix, std::uint32_t panel, std::byte* out);
// A vector (norm weights, RoPE factors) as floats. kInvalidArgument: not F32, F16 or BF16.
Status read_vector(const Tensor& tensor, float* out);

}  // namespace kvd::engine::cpu
