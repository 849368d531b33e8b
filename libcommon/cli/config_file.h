// --config FILE: lines `key = value`; '#' begins a comment outside quotes; a value may stand in
// double quotes, with \" \\ \n and \t inside. Elements of a list are separated by commas; a list's
// key may be repeated. --print-config writes this format.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace kvd::cli {

struct ConfigValue {
  std::string text;
  bool quoted = false;  // a quoted element is never split further
};

struct ConfigEntry {
  std::string key;
  std::vector<ConfigValue> values;
  int line = 0;
};

constexpr std::size_t kMaxConfigBytes = 1 << 20;

// Errors: kInvalidArgument with "FILE:LINE: ".
Result<std::vector<ConfigEntry>> parse_config(const std::string& file, std::string_view text);
Result<std::vector<ConfigEntry>> read_config(const std::string& file);

// `value` as it must stand in a config file, quoted only where it has to be.
std::string config_text(const std::string& value);

}  // namespace kvd::cli
