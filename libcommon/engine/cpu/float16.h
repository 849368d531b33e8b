// Half-precision and bfloat16 numbers as bits. Static functions: each file gets its own copy, so
// that none compiled for a newer processor is linked into code for an older one.
#pragma once

#include <cstdint>
#include <cstring>

namespace kvd::engine::cpu {

static inline float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
static inline std::uint32_t float_to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = std::uint32_t{half & 0x8000U} << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1FU;
  const std::uint32_t mantissa = half & 0x3FFU;
  if (exponent == 31) return bits_to_float(sign | 0x7F800000U | (mantissa << 13));
  if (exponent != 0) return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float tiny = static_cast<float>(mantissa) * 0x1.0p-24F;  // subnormal, or zero
  return bits_to_float(sign | float_to_bits(tiny));
}

// Round to nearest, ties to even; infinite above 65504; a NaN stays one.
static inline std::uint16_t float_to_half(float value) {
  const std::uint32_t bits = float_to_bits(value);
  const std::uint32_t sign = bits >> 16 & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<std::uint16_t>(sign | 0x7E00U);
  if (magnitude >= 0x477FF000U) return static_cast<std::uint16_t>(sign | 0x7C00U);
  if (magnitude < 0x38800000U) {
    // Subnormal: adding 0.5 leaves multiples of 2^-24 in the low bits, rounded by the addition.
    const std::uint32_t sum = float_to_bits(bits_to_float(magnitude) + 0.5F);
    return static_cast<std::uint16_t>(sign | (sum - 0x3F000000U));
  }
  const std::uint32_t rounded = magnitude + 0xFFFU + (magnitude >> 13 & 1U);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

static inline float bf16_to_float(std::uint16_t value) {
  return bits_to_float(std::uint32_t{value} << 16);
}
// Round to nearest, ties to even; a NaN stays one.
static inline std::uint16_t float_to_bf16(float value) {
  const std::uint32_t bits = float_to_bits(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace kvd::engine::cpu
