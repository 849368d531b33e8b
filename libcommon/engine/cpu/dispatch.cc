#include "engine/cpu/dispatch.h"

namespace kvd::engine::cpu {
namespace {

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> kernels = {&kScalarKernels};
#if defined(KVD_ENGINE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    kernels.push_back(&kAvx2Kernels);
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
