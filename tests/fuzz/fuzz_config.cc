// Configuration files, lines of JSON on stdin, and the small forms within them: sizes, durations,
// addresses.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/units.h"
#include "cli/config_file.h"
#include "cli/input.h"

namespace {

// What was read, written as --print-config writes it, reads the same again.
void check_config(std::string_view text) {
  const auto entries = kvd::cli::parse_config("fuzz", text);
  if (!entries.ok()) {
    KVD_CHECK(entries.status().code() == kvd::StatusCode::kInvalidArgument);
    KVD_CHECK(entries.status().message().find('\n') == std::string::npos);
    return;
  }
  for (const auto& entry : *entries) {
    for (const auto& value : entry.values) {
      const std::string line = entry.key + " = " + kvd::cli::config_text(value.text);
      const auto again = kvd::cli::parse_config("fuzz", line);
      KVD_CHECK(again.ok() && again->size() == 1 && again->front().key == entry.key);
      KVD_CHECK(again->front().values.size() == 1);
      KVD_CHECK(again->front().values.front().text == value.text);
    }
  }
}

void check_json(std::string_view text) {
  const auto fields = kvd::cli::parse_json_object(text);
  if (!fields.ok()) {
    KVD_CHECK(fields.status().code() == kvd::StatusCode::kInvalidArgument);
    return;
  }
  for (const auto& field : *fields) {
    KVD_CHECK(!field.json.empty() && field.json.find('\n') == std::string::npos);
    KVD_CHECK(kvd::is_valid_utf8(field.json));
  }
}

void check_units(std::string_view text) {
  static_cast<void>(kvd::parse_bytes(text));
  const auto duration = kvd::parse_duration(text);
  if (duration.ok()) KVD_CHECK(duration->count() >= 0);
  const auto address = kvd::parse_host_port(text);
  if (!address.ok()) return;
  const auto again = kvd::parse_host_port(kvd::to_string(*address));
  KVD_CHECK(again.ok() && *again == *address);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  check_config(text);
  check_json(text);
  check_units(text.substr(0, text.find('\n')));
  return 0;
}
