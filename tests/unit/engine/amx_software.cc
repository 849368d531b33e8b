// Stands in for amx_host.cc and amx_linear.cc: "amx" on tiles in software, where the processor has
// the AVX-512 that goes with them. So the same tests show the path on hosts without AMX.
#include "base/check.h"
#include "engine/cpu/amx_linear.h"
#include "support/software_tiles.h"

namespace kvd::engine::cpu::amx {

bool available() {
  return __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
}

void linear(const Matrix& matrix, std::uint32_t begin, std::uint32_t end, const Activations& x,
            std::uint32_t rows, float* out, std::size_t out_stride, bool add, std::byte* scratch) {
  test::SoftwareTiles tiles;
  linear_in(tiles, matrix, begin, end, x, rows, out, out_stride, add, scratch);
  if (tiles.misuse() != nullptr) check_failed(tiles.misuse(), __FILE__, __LINE__);
  KVD_CHECK(!tiles.configured());
}

}  // namespace kvd::engine::cpu::amx
