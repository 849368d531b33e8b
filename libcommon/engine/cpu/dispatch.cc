#include "engine/cpu/dispatch.h"

#if defined(KVD_ENGINE_X86)
#include <cpuid.h>

#include "engine/cpu/amx.h"
#endif

namespace kvd::engine::cpu {
namespace {

#if defined(KVD_ENGINE_X86)
// Not one of the names that clang 14 knows for __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> kernels = {&kScalarKernels};
#if defined(KVD_ENGINE_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
    kernels.push_back(&kAvx2Kernels);
    if (has_avx512()) {
      const bool bf16 = __builtin_cpu_supports("avx512bf16");
      kernels.push_back(bf16 ? &kAvx512Kernels : &kAvx512FloatKernels);
      if (bf16 && amx::available()) kernels.push_back(&kAmxKernels);
    }
  }
#endif
  return kernels;
}

}  // namespace

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const Kernels* kernels : usable()) names.emplace_back(kernels->name);
  return names;
}

Result<const Kernels*> select_kernels(const std::string& name) {
  const std::vector<const Kernels*> all = usable();
  if (name.empty()) return all.back();
  std::string names;
  for (const Kernels* kernels : all) {
    if (name == kernels->name) return kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->name);
  }
  return invalid_argument("kernels \"" + name +
                          "\" are not available on this host; available: " + names);
}

}  // namespace kvd::engine::cpu
