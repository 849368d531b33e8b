#include "engine/cpu/wide_blocks.h"

#include <cstring>

#include "engine/cpu/float16.h"

namespace kvd::engine::cpu {
namespace {

constexpr std::uint64_t kGroups = 8;  // of 32 columns in a block of 256

std::uint16_t read_u16(const std::byte* at) {
  std::uint16_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

float read_half(const std::byte* at) { return half_to_float(read_u16(at)); }

unsigned byte(const std::byte* at, std::uint64_t i) { return static_cast<unsigned>(at[i]); }

// In a 32-block the low nibble of byte i is column i, the high one column i + 16; bit i of the four
// bytes before the nibbles is the fifth bit of column i.
void read_five_bits(const std::byte* at, int minus, WideBlock* out) {
  std::uint32_t fifth;
  std::memcpy(&fifth, at, sizeof fifth);
  for (unsigned i = 0; i < 16; ++i) {
    const unsigned nibbles = byte(at + 4, i);
    const unsigned low = (nibbles & 15U) | ((fifth >> i & 1U) << 4);
    const unsigned high = (nibbles >> 4) | ((fifth >> (i + 16) & 1U) << 4);
    out->q[i] = static_cast<std::int8_t>(static_cast<int>(low) - minus);
    out->q[i + 16] = static_cast<std::int8_t>(static_cast<int>(high) - minus);
  }
}

void read_q5_0(const std::byte* row, std::uint64_t block, WideBlock* out) {
  const std::byte* at = row + block * 22;
  out->d[0] = out->d[1] = read_half(at);
  out->m = 0;
  read_five_bits(at + 2, 16, out);
}

void read_q5_1(const std::byte* row, std::uint64_t block, WideBlock* out) {
  const std::byte* at = row + block * 24;
  out->d[0] = out->d[1] = read_half(at);
  out->m = read_half(at + 2);
  read_five_bits(at + 4, 0, out);
}

// Scale and minimum of a group: 6 bits each, of groups 0-3 in the low bits of bytes 0-3 and 4-7; of
// groups 4-7 the low four bits in bytes 8-11, the upper two in the top bits of bytes 0-7.
struct GroupScales {
  unsigned scale, minimum;
};
GroupScales read_scales(const std::byte* block, std::uint64_t group) {
  const std::byte* packed = block + 4;
  if (group < 4) return {byte(packed, group) & 63U, byte(packed, group + 4) & 63U};
  return {(byte(packed, group + 4) & 15U) | (byte(packed, group - 4) >> 6 << 4),
          (byte(packed, group + 4) >> 4) | (byte(packed, group) >> 6 << 4)};
}

// Groups 2j and 2j + 1 are the low and the high nibbles of the j-th 32 bytes.
unsigned group_nibble(const std::byte* nibbles, std::uint64_t group, unsigned i) {
  return byte(nibbles + group / 2 * 32, i) >> (group % 2 * 4) & 15U;
}

// Bit `group` of byte i before the nibbles is the fifth bit of the group's column i.
void read_q5_k(const std::byte* row, std::uint64_t block, WideBlock* out) {
  const std::byte* at = row + block / kGroups * 176;
  const std::uint64_t group = block % kGroups;
  const GroupScales scales = read_scales(at, group);
  out->d[0] = out->d[1] = read_half(at) * static_cast<float>(scales.scale);
  out->m = -read_half(at + 2) * static_cast<float>(scales.minimum);
  for (unsigned i = 0; i < 32; ++i) {
    const unsigned fifth = byte(at + 16, i) >> group & 1U;
    out->q[i] = static_cast<std::int8_t>(group_nibble(at + 48, group, i) | fifth << 4);
  }
}

// Halves of 128 columns: groups 0-3 of a half have their low four bits in the low nibbles of 64
// bytes, then in the high ones, their upper two in 32 bytes, two bits a group.
void read_q6_k(const std::byte* row, std::uint64_t block, WideBlock* out) {
  const std::byte* at = row + block / kGroups * 210;
  const std::uint64_t half = block % kGroups / 4, group = block % 4;
  const std::byte* low = at + half * 64 + group % 2 * 32;
  const std::byte* high = at + 128 + half * 32;
  for (unsigned i = 0; i < 32; ++i) {
    const unsigned value =
        (byte(low, i) >> (group / 2 * 4) & 15U) | ((byte(high, i) >> (2 * group) & 3U) << 4);
    out->q[i] = static_cast<std::int8_t>(static_cast<int>(value) - 32);
  }
  const float d = read_half(at + 208);
  for (unsigned h = 0; h < 2; ++h) {
    const auto scale = static_cast<signed char>(at[192 + half * 8 + group * 2 + h]);
    out->d[h] = d * static_cast<float>(scale);
  }
  out->m = 0;
}

}  // namespace

ReadWideBlock wide_block_reader(TensorType type) {
  switch (type) {
    case TensorType::kQ5_0:
      return read_q5_0;
    case TensorType::kQ5_1:
      return read_q5_1;
    case TensorType::kQ5_K:
      return read_q5_k;
    case TensorType::kQ6_K:
      return read_q6_k;
    default:
      break;
  }
  return nullptr;
}

Q4KColumns read_q4_k(const std::byte* row, std::uint64_t block) {
  const std::byte* at = row + block / kGroups * 144;
  const std::uint64_t group = block % kGroups;
  const GroupScales scales = read_scales(at, group);
  Q4KColumns out = {{}, scales.scale, scales.minimum};
  for (unsigned i = 0; i < 32; ++i) {
    out.q[i] = static_cast<std::uint8_t>(group_nibble(at + 16, group, i));
  }
  return out;
}

}  // namespace kvd::engine::cpu
