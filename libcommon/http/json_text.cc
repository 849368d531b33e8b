#include "http/json_text.h"

#include <charconv>
#include <cmath>

namespace kvd::http {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

bool is_continuation(unsigned char c) { return (c & 0xC0U) == 0x80U; }

// Length of the well-formed sequence at the start of `text`, whose first byte is not ASCII. Not
// well-formed: the length of its maximal ill-formed part, at least 1, with *ok false.
std::size_t sequence_length(std::string_view text, bool* ok) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  *ok = false;
  std::size_t length = 0;
  unsigned char low = 0x80;
  unsigned char high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;   // overlong
    if (lead == 0xED) high = 0x9F;  // surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;   // overlong
    if (lead == 0xF4) high = 0x8F;  // above U+10FFFF
  } else {
    return 1;
  }
  if (text.size() < 2 || byte(1) < low || byte(1) > high) return 1;
  std::size_t seen = 2;
  while (seen < length && seen < text.size() && is_continuation(byte(seen))) ++seen;
  *ok = seen == length;
  return seen;
}

void append_escape(std::string& out, unsigned char c) {
  static constexpr char kHex[] = "0123456789abcdef";
  switch (c) {
    case '"':
      out += "\\\"";
      return;
    case '\\':
      out += "\\\\";
      return;
    case '\n':
      out += "\\n";
      return;
    case '\r':
      out += "\\r";
      return;
    case '\t':
      out += "\\t";
      return;
    case '\b':
      out += "\\b";
      return;
    case '\f':
      out += "\\f";
      return;
    default:
      break;
  }
  out += "\\u00";
  out += kHex[c >> 4U];
  out += kHex[c & 15U];
}

}  // namespace

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  std::size_t plain = 0;  // start of what has not been copied yet
  std::size_t i = 0;
  while (i < text.size()) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\') {
      ++i;
      continue;
    }
    if (c < 0x80) {
      out.append(text.substr(plain, i - plain));
      append_escape(out, c);
      plain = ++i;
      continue;
    }
    bool ok = false;
    const std::size_t length = sequence_length(text.substr(i), &ok);
    if (!ok) {
      out.append(text.substr(plain, i - plain));
      out.append(kReplacement);
      plain = i + length;
    }
    i += length;
  }
  out.append(text.substr(plain));
  out += '"';
}

void append_json_float(std::string& out, float value) {
  if (std::isnan(value)) {
    out += "null";
    return;
  }
  if (std::isinf(value)) {
    out += value < 0 ? "-9999.0" : "9999.0";
    return;
  }
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
  out.append(buffer, end);
}

void append_json_ms(std::string& out, double value) {
  char buffer[400];  // the longest double in fixed form has 309 digits before the point
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed, 3).ptr;
  out.append(buffer, end);
}

std::uint32_t character_count(std::string_view text) {
  std::uint32_t count = 0;
  for (const char c : text) {
    if (!is_continuation(static_cast<unsigned char>(c))) ++count;
  }
  return count;
}

}  // namespace kvd::http
