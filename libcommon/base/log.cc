#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <memory>

namespace kvd {
namespace {

struct LogState {
  LogFormat format = LogFormat::kText;
  std::string program = "kvd";
  std::shared_ptr<spdlog::logger> logger;
};

std::atomic<LogLevel> g_level{LogLevel::kInfo};

// Made on first use and never destroyed: threads may log while the process exits.
LogState& state() {
  static LogState* instance = [] {
    auto* s = new LogState;
    s->logger =
        std::make_shared<spdlog::logger>("kvd", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    s->logger->set_level(spdlog::level::trace);
    s->logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %L %v");
    s->logger->flush_on(spdlog::level::trace);
    return s;
  }();
  return *instance;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      return spdlog::level::off;
  }
  return spdlog::level::off;
}

// Control characters must not let a peer's text forge a line, in either format.
void append_escaped(std::string* out, std::string_view text) {
  static constexpr char kDigits[] = "0123456789abcdef";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      *out += '\\';
      *out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      *out += "\\u00";
      *out += kDigits[byte >> 4];
      *out += kDigits[byte & 15];
    } else {
      *out += c;
    }
  }
}

std::string as_text(std::string_view message, std::initializer_list<LogField> fields) {
  std::string line(message);
  for (const LogField& field : fields) {
    line += ' ';
    line += field.key;
    line += '=';
    const std::string text = field.text();
    const bool bare = !field.quoted() ||
                      (!text.empty() && text.find_first_of(" \"\\\n\r\t=") == std::string::npos);
    if (bare) {
      append_escaped(&line, text);
    } else {
      line += '"';
      append_escaped(&line, text);
      line += '"';
    }
  }
  return line;
}

std::string as_json(LogLevel level, std::string_view program, std::string_view message,
                    std::initializer_list<LogField> fields) {
  const auto name = spdlog::level::to_string_view(to_spdlog(level));
  std::string line = "\"level\":\"" + std::string(name.data(), name.size()) + "\",\"program\":\"";
  append_escaped(&line, program);
  line += "\",\"message\":\"";
  append_escaped(&line, message);
  line += '"';
  for (const LogField& field : fields) {
    line += ",\"";
    line += field.key;
    line += field.quoted() ? "\":\"" : "\":";
    append_escaped(&line, field.text());
    if (field.quoted()) line += '"';
  }
  return line + "}";
}

}  // namespace

bool LogField::quoted() const {
  return std::holds_alternative<std::string_view>(value_) || std::holds_alternative<Hex>(value_);
}

std::string LogField::text() const {
  struct Text {
    std::string operator()(std::string_view v) const { return std::string(v); }
    std::string operator()(bool v) const { return v ? "true" : "false"; }
    std::string operator()(std::int64_t v) const { return std::to_string(v); }
    std::string operator()(std::uint64_t v) const { return std::to_string(v); }
    std::string operator()(double v) const { return std::to_string(v); }
    std::string operator()(Hex v) const { return hex(v.value); }
  };
  return std::visit(Text(), value_);
}

void configure_log(LogLevel level, LogFormat format, std::string program) {
  LogState& s = state();
  g_level = level;
  s.format = format;
  s.program = std::move(program);
  s.logger->set_pattern(format == LogFormat::kJson ? "{\"time\":\"%Y-%m-%dT%H:%M:%S.%f%z\",%v"
                                                   : "%Y-%m-%dT%H:%M:%S.%e %L %v");
}

Result<LogLevel> parse_log_level(std::string_view text) {
  if (text == "debug") return LogLevel::kDebug;
  if (text == "info") return LogLevel::kInfo;
  if (text == "warn") return LogLevel::kWarn;
  if (text == "error") return LogLevel::kError;
  if (text == "off") return LogLevel::kOff;
  return invalid_argument("unknown log level '" + std::string(text) +
                          "'; one of debug, info, warn, error, off");
}

LogLevel set_log_level(LogLevel level) { return g_level.exchange(level); }

bool log_enabled(LogLevel level) { return level >= g_level.load(std::memory_order_relaxed); }

void log_line(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  if (!log_enabled(level)) return;
  LogState& s = state();
  const std::string line = s.format == LogFormat::kJson ? as_json(level, s.program, message, fields)
                                                        : as_text(message, fields);
  s.logger->log(to_spdlog(level), spdlog::string_view_t(line));
}

bool RateLimit::allow(TimePoint now, std::uint64_t* suppressed) {
  if (now < next_) {
    ++suppressed_;
    return false;
  }
  next_ = now + interval_;
  *suppressed = suppressed_;
  suppressed_ = 0;
  return true;
}

}  // namespace kvd
