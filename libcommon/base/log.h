// The log: stderr, one line an event, text or JSON (spdlog underneath). Messages are lower case and
// constant; what varies goes into fields. The field `room` follows one request through all
// processes.
//
//   log_info("link ready", {{"peer", to_string(peer)}, {"epoch", 3}});
//
// Thread-safe. Secrets (keys, API keys) are never logged.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <variant>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"

namespace kvd {

enum class LogLevel { kDebug, kInfo, kWarn, kError, kOff };
enum class LogFormat { kText, kJson };

// Refers to texts and copies nothing: it lives as long as the call that it is given to. What it
// says is put into letters only when the line is written, and most are not.
class LogField {
 public:
  LogField(std::string_view k, const std::string& v) : key(k), value_(std::string_view(v)) {}
  LogField(std::string_view k, std::string_view v) : key(k), value_(v) {}
  LogField(std::string_view k, const char* v) : key(k), value_(std::string_view(v)) {}
  LogField(std::string_view k, bool v) : key(k), value_(v) {}
  LogField(std::string_view k, std::signed_integral auto v) : key(k), value_(std::int64_t{v}) {}
  template <std::unsigned_integral T>
  requires(!std::same_as<T, bool>) LogField(std::string_view k, T v)
      : key(k), value_(std::uint64_t{v}) {}
  LogField(std::string_view k, std::floating_point auto v) : key(k), value_(double{v}) {}
  template <typename Tag>
  LogField(std::string_view k, Id<Tag, std::uint64_t> v) : key(k), value_(Hex{v.value}) {}

  const std::string_view key;
  bool quoted() const;  // a JSON string, else a bare number or word
  std::string text() const;

 private:
  struct Hex {
    std::uint64_t value;
  };
  std::variant<std::string_view, bool, std::int64_t, std::uint64_t, double, Hex> value_;
};

// Sets what is written from now on; call once, before threads start.
void configure_log(LogLevel level, LogFormat format, std::string program);
// Changes the level alone; returns what it was. Any thread.
LogLevel set_log_level(LogLevel level);
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
