#include "base/units.h"

#include <charconv>
#include <cmath>
#include <cstdio>

namespace kvd {
namespace {

struct Suffix {
  std::string_view text;
  double factor;
};

constexpr double kKi = 1024;
constexpr Suffix kByteSuffixes[] = {
    {"", 1},
    {"B", 1},
    {"K", kKi},
    {"KiB", kKi},
    {"M", kKi* kKi},
    {"MiB", kKi* kKi},
    {"G", kKi* kKi* kKi},
    {"GiB", kKi* kKi* kKi},
    {"T", kKi* kKi* kKi* kKi},
    {"TiB", kKi* kKi* kKi* kKi},
    {"KB", 1e3},
    {"MB", 1e6},
    {"GB", 1e9},
    {"TB", 1e12},
};
constexpr Suffix kTimeSuffixes[] = {{"", 1e9}, {"s", 1e9},  {"ms", 1e6},  {"us", 1e3},
                                    {"ns", 1}, {"m", 60e9}, {"h", 3600e9}};

// NUMBER SUFFIX with nothing around it; the number is non-negative and finite.
template <std::size_t N>
bool parse_scaled(std::string_view text, const Suffix (&suffixes)[N], double* out) {
  double number = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc() || end == text.data() || !(number >= 0)) return false;
  const std::string_view rest(end, static_cast<std::size_t>(text.data() + text.size() - end));
  for (const Suffix& suffix : suffixes) {
    if (suffix.text != rest) continue;
    *out = number * suffix.factor;
    return true;
  }
  return false;
}

std::string two_decimals(double value, const char* unit) {
  char buffer[64];
  const bool whole = value == std::floor(value);
  std::snprintf(buffer, sizeof buffer, whole ? "%.0f %s" : "%.2f %s", value, unit);
  return buffer;
}

}  // namespace

Result<std::uint64_t> parse_bytes(std::string_view text) {
  double bytes = 0;
  if (!parse_scaled(text, kByteSuffixes, &bytes) || bytes >= 0x1p63) {
    return invalid_argument("'" + std::string(text) +
                            "' is not a size; write it like 64KiB, 64K, 64KB or 1.5GiB");
  }
  return static_cast<std::uint64_t>(std::llround(bytes));
}

Result<Duration> parse_duration(std::string_view text) {
  double ns = 0;
  if (!parse_scaled(text, kTimeSuffixes, &ns) || ns >= 0x1p62) {
    return invalid_argument("'" + std::string(text) +
                            "' is not a duration; write it like 250ms, 1.5s, 10us or 2m");
  }
  return Duration(std::llround(ns));
}

std::string format_bytes(std::uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit < 4) {
    value /= 1024;
    ++unit;
  }
  return two_decimals(value, kUnits[unit]);
}

std::string format_duration(Duration duration) {
  const double ns = static_cast<double>(duration.count());
  if (ns < 1e3) return two_decimals(ns, "ns");
  if (ns < 1e6) return two_decimals(ns / 1e3, "us");
  if (ns < 1e9) return two_decimals(ns / 1e6, "ms");
  return two_decimals(ns / 1e9, "s");
}

Result<HostPort> parse_host_port(std::string_view text) {
  const auto bad = [&] {
    return invalid_argument("'" + std::string(text) +
                            "' is not an address; write HOST:PORT, IPv6 as [::1]:7100");
  };
  HostPort out;
  std::string_view port;
  if (!text.empty() && text.front() == '[') {
    const std::size_t close = text.find(']');
    if (close == std::string_view::npos || close + 1 >= text.size() || text[close + 1] != ':') {
      return bad();
    }
    out.host = text.substr(1, close - 1);
    port = text.substr(close + 2);
    if (out.host.find(':') == std::string::npos) return bad();
  } else {
    const std::size_t colon = text.rfind(':');
    if (colon == std::string_view::npos) return bad();
    out.host = text.substr(0, colon);
    port = text.substr(colon + 1);
    if (out.host.find(':') != std::string::npos) return bad();
  }
  if (out.host.empty() || out.host.size() > 255) return bad();
  for (const char c : out.host) {
    const bool allowed = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                         (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '_' || c == ':' ||
                         c == '%' || c == '*';
    if (!allowed) return bad();
  }
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), out.port);
  if (error != std::errc() || port.empty() || end != port.data() + port.size()) return bad();
  return out;
}

std::string to_string(const HostPort& address) {
  const bool v6 = address.host.find(':') != std::string::npos;
  return (v6 ? "[" + address.host + "]" : address.host) + ":" + std::to_string(address.port);
}

bool is_loopback(const std::string& host) {
  if (host == "localhost" || host == "::1") return true;
  if (!host.starts_with("127.")) return false;
  // Only a dotted quad counts: a name such as 127.example.org may resolve to anything.
  return host.find_first_not_of("0123456789.") == std::string::npos;
}

bool is_valid_utf8(std::string_view text) {
  std::size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const std::size_t extra = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4 || i + extra >= text.size()) return false;
    std::uint32_t code = lead & (0x3fU >> extra);
    for (std::size_t k = 1; k <= extra; ++k) {
      const auto byte = static_cast<unsigned char>(text[i + k]);
      if ((byte & 0xc0) != 0x80) return false;
      code = code << 6 | (byte & 0x3f);
    }
    static constexpr std::uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
    if (code < kLeast[extra] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return false;
    i += extra + 1;
  }
  return true;
}

}  // namespace kvd
