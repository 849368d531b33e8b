// The log: stderr, one line an event, text or JSON (spdlog underneath). Messages are lower case and
// constant; what varies goes into fields. The field `room` follows one request through all
// processes.
//
//   log_info("link ready", {{"peer", to_string(peer)}, {"epoch", 3}});
//
// Thread-safe. Secrets (keys, API keys) are never logged.
#pragma once

#include <concepts>
#include <initializer_list>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"

namespace kvd {

enum class LogLevel { kDebug, kInfo, kWarn, kError, kOff };
enum class LogFormat { kText, kJson };

struct LogField {
  std::string_view key;
  std::string value;
  bool quoted = true;  // JSON string, else a bare number

  LogField(std::string_view k, std::string v) : key(k), value(std::move(v)) {}
  LogField(std::string_view k, std::string_view v) : key(k), value(v) {}
  LogField(std::string_view k, const char* v) : key(k), value(v) {}
  LogField(std::string_view k, bool v) : key(k), value(v ? "true" : "false"), quoted(false) {}
  template <typename T>
  requires(std::integral<T> && !std::same_as<T, bool>) || std::floating_point<T> LogField(
                                                              std::string_view k, T v)
      : key(k),
  value(std::to_string(v)), quoted(false) {}
  template <typename Tag>
  LogField(std::string_view k, Id<Tag, std::uint64_t> v) : key(k), value(to_string(v)) {}
};

// Sets what is written from now on; call once, before threads start.
void configure_log(LogLevel level, LogFormat format, std::string program);
Result<LogLevel> parse_log_level(std::string_view text);
bool log_enabled(LogLevel level);

void log_line(LogLevel level, std::string_view message, std::initializer_list<LogField> fields);
inline void log_debug(std::string_view m, std::initializer_list<LogField> f = {}) {
  if (log_enabled(LogLevel::kDebug)) log_line(LogLevel::kDebug, m, f);
}
inline void log_info(std::string_view m, std::initializer_list<LogField> f = {}) {
  log_line(LogLevel::kInfo, m, f);
}
inline void log_warn(std::string_view m, std::initializer_list<LogField> f = {}) {
  log_line(LogLevel::kWarn, m, f);
}
inline void log_error(std::string_view m, std::initializer_list<LogField> f = {}) {
  log_line(LogLevel::kError, m, f);
}

// Lets one event through per interval; the others are counted. For faults that a peer can cause at
// will. Single-threaded: the owner's thread only.
class RateLimit {
 public:
  explicit RateLimit(Duration interval) : interval_(interval) {}
  // True when the event may be logged now; *suppressed gets the number swallowed since the last
  // one.
  bool allow(TimePoint now, std::uint64_t* suppressed);

 private:
  Duration interval_;
  TimePoint next_{0};
  std::uint64_t suppressed_ = 0;
};

}  // namespace kvd
