#include "cli/input.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "cli/signals.h"

namespace kvd::cli {
namespace {

constexpr std::size_t kReadBytes = 64 << 10;
constexpr int kMaxDepth = 32;

}  // namespace

Status InputReader::fill() {
  pollfd waits[2] = {{fd_, POLLIN, 0}, {signal_fd(), POLLIN, 0}};
  const int ready = ::poll(waits, 2, -1);
  if (ready < 0) {
    if (errno == EINTR) return {};
    return {StatusCode::kFailed, std::string("input: ") + std::strerror(errno)};
  }
  if (waits[1].revents != 0) {
    end_ = true;
    return {};
  }
  buffer_.erase(0, begin_);
  begin_ = 0;
  const std::size_t old_size = buffer_.size();
  buffer_.resize(old_size + kReadBytes);
  const ssize_t n = ::read(fd_, buffer_.data() + old_size, kReadBytes);
  buffer_.resize(old_size + (n > 0 ? static_cast<std::size_t>(n) : 0));
  if (n < 0 && errno != EINTR && errno != EAGAIN) {
    return {StatusCode::kFailed, std::string("input: ") + std::strerror(errno)};
  }
  end_ = n == 0;
  return {};
}

Result<bool> InputReader::next_line(std::string* line) {
  std::size_t searched = 0;
  while (true) {
    const std::size_t newline = buffer_.find('\n', begin_ + searched);
    const bool found = newline != std::string::npos;
    const std::size_t size = (found ? newline : buffer_.size()) - begin_;
    if (size > kMaxInputBytes) return invalid_argument("input: a line is longer than 16 MiB");
    if (found || end_) {
      line->assign(buffer_, begin_, size);
      begin_ = std::min(begin_ + size + 1, buffer_.size());
      if (!line->empty() && line->back() == '\r') line->pop_back();
      return found || size > 0;
    }
    searched = size;
    KVD_RETURN_IF_ERROR(fill());
  }
}

Result<std::string> InputReader::read_all() {
  while (!end_) {
    if (buffer_.size() - begin_ > kMaxInputBytes) {
      return invalid_argument("input: the text is longer than 16 MiB");
    }
    KVD_RETURN_IF_ERROR(fill());
  }
  const std::string text = buffer_.substr(begin_);
  begin_ = buffer_.size();
  return text;
}

namespace {

using nlohmann::json;

// A JSON object.
Result<json> parse_object(std::string_view text) {
  // Depth is checked while parsing: an endless "[[[[" must not become a tree at all.
  bool too_deep = false;
  const auto limit = [&too_deep](int depth, json::parse_event_t, const json&) {
    too_deep = too_deep || depth > kMaxDepth;
    return !too_deep;
  };
  json document;
  try {
    document = json::parse(text, limit);
  } catch (const json::exception& error) {
    const std::string what = error.what();
    const std::size_t place = what.find("] ");  // behind "[json.exception.parse_error.101"
    return invalid_argument("not JSON: " + what.substr(place == std::string::npos ? 0 : place + 2));
  }
  if (too_deep) return invalid_argument("JSON is nested deeper than 32 levels");
  if (!document.is_object()) return invalid_argument("not a JSON object");
  return document;
}

void collect_numbers(const json& value, const std::string& path,
                     std::map<std::string, double>* out) {
  if (value.is_number()) (*out)[path] = value.get<double>();
  if (!value.is_structured()) return;
  for (const auto& [name, element] : value.items()) {
    collect_numbers(element, path.empty() ? name : path + "." + name, out);
  }
}

}  // namespace

Result<std::vector<JsonField>> parse_json_object(std::string_view text) {
  Result<json> document = parse_object(text);
  if (!document.ok()) return document.status();
  std::vector<JsonField> fields;
  for (const auto& [name, value] : document->items()) {
    JsonField field;
    field.name = name;
    field.json = value.dump(-1, ' ', false, json::error_handler_t::replace);
    field.is_string = value.is_string();
    if (field.is_string) field.text = value.get<std::string>();
    fields.push_back(std::move(field));
  }
  return fields;
}

Result<std::map<std::string, double>> parse_json_numbers(std::string_view text) {
  const Result<json> document = parse_object(text);
  if (!document.ok()) return document.status();
  std::map<std::string, double> numbers;
  collect_numbers(document.value(), "", &numbers);
  return numbers;
}

}  // namespace kvd::cli
