#include "cli/output.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "cli/exit_code.h"

namespace kvd::cli {
namespace {

constexpr std::string_view kReaderGone = "the reader of stdout is gone";

std::string json_text(std::string_view text) {
  return nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool looks_numeric(const std::string& cell) {
  return !cell.empty() &&
         (std::isdigit(static_cast<unsigned char>(cell[0])) != 0 ||
          ((cell[0] == '-' || cell[0] == '+') && cell.size() > 1)) &&
         cell.find(':') == std::string::npos;
}

// Columns on the terminal: UTF-8 continuation bytes take no room.
std::size_t width(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

}  // namespace

void JsonWriter::before_value() {
  KVD_CHECK(!done_);
  if (levels_.empty()) return;
  Level& level = levels_.back();
  if (level.object) {
    KVD_CHECK(level.have_key);
    level.have_key = false;
    return;
  }
  if (!level.first) out_ += ',';
  level.first = false;
}

JsonWriter& JsonWriter::begin_object() {
  before_value();
  out_ += '{';
  levels_.push_back({true, true, false});
  return *this;
}

JsonWriter& JsonWriter::end_object() {
  KVD_CHECK(!levels_.empty() && levels_.back().object && !levels_.back().have_key);
  levels_.pop_back();
  out_ += '}';
  done_ = levels_.empty();
  return *this;
}

JsonWriter& JsonWriter::begin_array() {
  before_value();
  out_ += '[';
  levels_.push_back({});
  return *this;
}

JsonWriter& JsonWriter::end_array() {
  KVD_CHECK(!levels_.empty() && !levels_.back().object);
  levels_.pop_back();
  out_ += ']';
  done_ = levels_.empty();
  return *this;
}

JsonWriter& JsonWriter::key(std::string_view name) {
  KVD_CHECK(!levels_.empty() && levels_.back().object && !levels_.back().have_key);
  Level& level = levels_.back();
  if (!level.first) out_ += ',';
  level.first = false;
  level.have_key = true;
  out_ += json_text(name);
  out_ += ':';
  return *this;
}

JsonWriter& JsonWriter::raw(std::string_view json) {
  before_value();
  out_ += json;
  done_ = levels_.empty();
  return *this;
}

JsonWriter& JsonWriter::value(std::string_view text) { return raw(json_text(text)); }
JsonWriter& JsonWriter::value(bool b) { return raw(b ? "true" : "false"); }
JsonWriter& JsonWriter::value(double number) { return raw(nlohmann::json(number).dump()); }
JsonWriter& JsonWriter::value(std::int64_t number) { return raw(std::to_string(number)); }
JsonWriter& JsonWriter::value(std::uint64_t number) { return raw(std::to_string(number)); }
JsonWriter& JsonWriter::null() { return raw("null"); }

std::string JsonWriter::take() {
  KVD_CHECK(done_);
  done_ = false;
  return std::exchange(out_, {});
}

TableWriter::TableWriter(std::vector<std::string> header) { rows_.push_back(std::move(header)); }

void TableWriter::add_row(std::vector<std::string> cells) {
  KVD_CHECK(cells.size() == rows_.front().size());
  rows_.push_back(std::move(cells));
}

std::string TableWriter::render() const {
  const std::size_t columns = rows_.front().size();
  std::vector<std::size_t> widths(columns, 0);
  std::vector<bool> right(columns, rows_.size() > 1);
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    for (std::size_t c = 0; c < columns; ++c) {
      widths[c] = std::max(widths[c], width(rows_[r][c]));
      if (r > 0 && !rows_[r][c].empty() && !looks_numeric(rows_[r][c])) right[c] = false;
    }
  }
  std::string out;
  for (const auto& row : rows_) {
    std::string line;
    for (std::size_t c = 0; c < columns; ++c) {
      if (c > 0) line += "  ";
      const std::string padding(widths[c] - width(row[c]), ' ');
      line += right[c] ? padding + row[c] : row[c] + padding;
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    out += line + "\n";
  }
  return out;
}

Status write_out(std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(STDOUT_FILENO, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      pollfd writable{STDOUT_FILENO, POLLOUT, 0};
      (void)::poll(&writable, 1, -1);  // a pipe that its other end made non-blocking
      continue;
    }
    if (n < 0 && errno == EPIPE) return {StatusCode::kCancelled, std::string(kReaderGone)};
    if (n < 0) return {StatusCode::kFailed, std::string("stdout: ") + std::strerror(errno)};
    text.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

std::string error_json(const Status& status) {
  JsonWriter json;
  json.begin_object().key("error").begin_object();
  json.field("code", to_string(status.code())).field("message", status.message());
  json.end_object().end_object();
  return json.take();
}

int report_error(std::string_view program, const Status& status, bool json) {
  if (status.code() == StatusCode::kCancelled && status.message() == kReaderGone) return kExitOk;
  if (json) {
    (void)write_out(error_json(status) + "\n");
  } else {
    // One write, so that lines of several processes do not mix.
    const std::string line = std::string(program) + ": " + status.message() + "\n";
    (void)!::write(STDERR_FILENO, line.data(), line.size());
  }
  return exit_code(status);
}

}  // namespace kvd::cli
