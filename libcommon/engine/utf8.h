// One step of UTF-8 decoding, for text that may be broken: the tokenizer splits around invalid
// bytes and the stream replaces them. Pure; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kvd::engine {

struct Utf8Step {
  std::uint32_t code = 0;  // valid only
  // Bytes to step over: the whole character, or what a decoder replaces by one U+FFFD (the longest
  // beginning of a character; Unicode 15, section 3.9).
  std::size_t bytes = 1;
  bool valid = false;
  bool cut = false;  // invalid only because the text ends: more bytes may complete it
};

// `text` is not empty.
inline Utf8Step utf8_step(std::string_view text) {
  const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = at(0);
  if (lead < 0x80) return {lead, 1, true, false};
  if (lead < 0xc2 || lead > 0xf4) return {};
  const std::size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  std::uint32_t code = lead & (0xffU >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {0, i, false, true};
    unsigned char low = 0x80;
    unsigned char high = 0xbf;
    if (i == 1) {  // no overlong forms, no surrogates, nothing above U+10FFFF
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    }
    if (at(i) < low || at(i) > high) return {0, i, false, false};
    code = code << 6 | (at(i) & 0x3fU);
  }
  return {code, length, true, false};
}

}  // namespace kvd::engine
