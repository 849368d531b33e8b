// Sizes and durations as people write them: `64KiB`/`64K` binary, `64KB` decimal, `250ms`, `30s`.
// Trailing junk is an error.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/status.h"

namespace kvd {

// "4MiB" -> 4194304. Suffixes: none or B, K/KiB, M/MiB, G/GiB, T/TiB (binary), KB, MB, GB, TB
// (decimal).
Result<std::uint64_t> parse_bytes(std::string_view text);
// "250ms", "1.5s", "10us", "2m"; a bare number is seconds.
Result<Duration> parse_duration(std::string_view text);
// Shortest exact or two-decimal binary form: "4 MiB", "1.50 GiB", "17 B".
std::string format_bytes(std::uint64_t bytes);
// "1.25 ms", "3.0 s", "250 us".
std::string format_duration(Duration duration);

// "HOST:PORT", IPv6 in brackets ("[::1]:7100").
struct HostPort {
  std::string host;  // without brackets
  std::uint16_t port = 0;
  bool operator==(const HostPort&) const = default;
};
Result<HostPort> parse_host_port(std::string_view text);
std::string to_string(const HostPort& address);
// True for 127.0.0.0/8, ::1 and "localhost".
bool is_loopback(const std::string& host);
// True when `text` is well-formed UTF-8 (no surrogates, no overlong forms, at most U+10FFFF).
bool is_valid_utf8(std::string_view text);

}  // namespace kvd
