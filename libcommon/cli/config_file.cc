#include "cli/config_file.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

namespace kvd::cli {
namespace {

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

// Reads one quoted string at the front of *text; false when it does not end.
bool take_quoted(std::string_view* text, std::string* out) {
  text->remove_prefix(1);
  while (!text->empty()) {
    const char c = text->front();
    text->remove_prefix(1);
    if (c == '"') return true;
    if (c != '\\') {
      *out += c;
      continue;
    }
    if (text->empty()) return false;
    const char escaped = text->front();
    text->remove_prefix(1);
    *out += escaped == 'n' ? '\n' : escaped == 't' ? '\t' : escaped;
  }
  return false;
}

// Everything right of '='. An empty message: fine.
std::string parse_values(std::string_view text, std::vector<ConfigValue>* values) {
  text = trimmed(text);
  while (!text.empty() && text.front() != '#') {
    ConfigValue value;
    if (text.front() == '"') {
      value.quoted = true;
      if (!take_quoted(&text, &value.text)) return "the quoted value does not end";
      text = trimmed(text);
      if (!text.empty() && text.front() != ',' && text.front() != '#') {
        return "text after the quoted value";
      }
    } else {
      const std::size_t end = std::min(text.find_first_of(",#"), text.size());
      value.text = std::string(trimmed(text.substr(0, end)));
      text.remove_prefix(end);
    }
    if (value.text.empty() && !value.quoted) return "an empty value; remove it or write \"\"";
    values->push_back(std::move(value));
    if (!text.empty() && text.front() == ',') text.remove_prefix(1);
    text = trimmed(text);
  }
  return values->empty() ? "no value after '='" : "";
}

bool is_key(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '-' || c == '_';
  });
}

}  // namespace

Result<std::vector<ConfigEntry>> parse_config(const std::string& file, std::string_view text) {
  std::vector<ConfigEntry> entries;
  for (int number = 1; !text.empty(); ++number) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = trimmed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty() || line.front() == '#') continue;
    const std::string place = file + ":" + std::to_string(number) + ": ";
    const std::size_t equals = line.find('=');
    if (equals == std::string_view::npos) {
      return invalid_argument(place + "no '='; lines are key = value");
    }
    ConfigEntry entry;
    entry.line = number;
    entry.key = std::string(trimmed(line.substr(0, equals)));
    if (!is_key(entry.key)) return invalid_argument(place + "the key is not an option's name");
    const std::string problem = parse_values(line.substr(equals + 1), &entry.values);
    if (!problem.empty()) return invalid_argument(place + entry.key + ": " + problem);
    entries.push_back(std::move(entry));
  }
  return entries;
}

Result<std::vector<ConfigEntry>> read_config(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) return invalid_argument("--config " + file + ": " + std::strerror(errno));
  std::string text(kMaxConfigBytes + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) return invalid_argument("--config " + file + ": cannot be read");
  text.resize(static_cast<std::size_t>(in.gcount()));
  if (text.size() > kMaxConfigBytes) {
    return invalid_argument("--config " + file + ": larger than 1 MiB, so not a config file");
  }
  if (text.find('\0') != std::string::npos) {
    return invalid_argument("--config " + file + ": holds a zero byte, so not a config file");
  }
  return parse_config(file, text);
}

std::string config_text(const std::string& value) {
  const bool plain = !value.empty() && !is_blank(value.front()) && !is_blank(value.back()) &&
                     value.find_first_of("\"#,\n\t\\") == std::string::npos;
  if (plain) return value;
  std::string out = "\"";
  for (const char c : value) {
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out + "\"";
}

}  // namespace kvd::cli
