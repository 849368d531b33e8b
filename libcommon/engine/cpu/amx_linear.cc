#include "engine/cpu/amx_linear.h"

namespace kvd::engine::cpu::amx {

void linear(const Matrix& matrix, std::uint32_t begin, std::uint32_t end, const Activations& x,
            std::uint32_t rows, float* out, std::size_t out_stride, bool add, std::byte* scratch) {
  HardwareTiles tiles;
  linear_in(tiles, matrix, begin, end, x, rows, out, out_stride, add, scratch);
}

}  // namespace kvd::engine::cpu::amx
