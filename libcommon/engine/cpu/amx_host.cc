#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/cpu/amx.h"

namespace kvd::engine::cpu::amx {
namespace {

// CPUID leaf 7.
constexpr unsigned kBf16 = 1U << 22, kTile = 1U << 24;  // edx
constexpr unsigned kVbmi = 1U << 1;                     // ecx
// The registers are large, so Linux gives them to a process only on demand
// (Documentation/arch/x86/xstate.rst).
constexpr long kRequestPermission = 0x1023;
constexpr long kTileData = 18;

bool ask() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kBf16) == 0 || (edx & kTile) == 0 || (ecx & kVbmi) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool available() {
  static const bool granted = ask();
  return granted;
}

}  // namespace kvd::engine::cpu::amx
