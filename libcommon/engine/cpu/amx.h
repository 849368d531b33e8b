// AMX: matrix products of more than kFewRows rows in tiles of bf16 (kernels.h). Plain declarations:
// any file may include this.
//
// Both operands become bf16: 2^-9 of a number each, less than what int8 activations cost. What must
// stay exact is kept in two bf16 parts, high + low, which hold 16 bits of a number: the activations
// always, the weights of kF32 and kF16. Products of float matrices are sums of the parts' products,
// which leaves out only low times low; those of quantized ones take the high parts alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/cpu/kernels.h"

namespace kvd::engine::cpu::amx {

constexpr std::uint32_t kPairBytes = 64;     // two columns of a panel's 16 rows, as pairs
constexpr std::uint32_t kStepBytes = 1024;   // kBlock columns of them: a tile of weights
constexpr std::uint32_t kStepRowBytes = 64;  // kBlock columns of a row of activations

// Whether the processor has AMX and all that goes with it, and the system lets this process use it:
// asked once, for all its threads.
bool available();

// A row of activations: its high parts, then its low ones. The line behind them keeps rows of a
// power of two of columns from falling on each other in the caches.
std::size_t row_bytes(std::uint32_t columns);
// Blocks [begin, end) of such a row. It knows no offsets: bf16 has no use for them.
void to_parts(const float* row, std::uint32_t columns, std::uint32_t begin, std::uint32_t end, bool,
              std::byte* out);

constexpr bool has_low_weights(PanelType type) {
  return type == PanelType::kF32 || type == PanelType::kF16;
}
// Tiles of `steps` steps of a panel from block `first` on: kStepBytes each, the high parts, then
// those low ones that the type has. Returns `out`, 64-byte aligned, or where the panel itself holds
// them.
const std::byte* weight_tiles(const Matrix& matrix, std::uint32_t panel, std::uint32_t first,
                              std::uint32_t steps, std::byte* out);

// As Kernels::linear.
void linear(const Matrix& matrix, std::uint32_t begin, std::uint32_t end, const Activations& x,
            std::uint32_t rows, float* out, std::size_t out_stride, bool add, std::byte* scratch);

}  // namespace kvd::engine::cpu::amx
