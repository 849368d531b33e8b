#include "cli/option.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

#include "base/check.h"
#include "base/units.h"

namespace kvd::cli {
namespace {

std::string quoted(const std::string& value) { return "\"" + value + "\""; }

Status bad_value(const std::string& value, const std::string& accepted) {
  return invalid_argument(quoted(value) + " is not " + accepted);
}

std::string join(const std::vector<std::string>& parts, const char* separator) {
  std::string out;
  for (const auto& part : parts) {
    if (!out.empty()) out += separator;
    out += part;
  }
  return out;
}

// The default shown in help is what the field holds when the row is made.
Option finished(Option option) {
  if (option.default_text.empty() && option.kind != Option::Kind::kFlag) {
    option.default_text = join(option.show(), ",");
  }
  return option;
}

Option row(std::string name, Option::Kind kind, std::string metavar, std::string help) {
  Option option;
  option.name = std::move(name);
  option.kind = kind;
  option.metavar = std::move(metavar);
  option.help = std::move(help);
  return option;
}

template <typename T>
bool parse_number(const std::string& value, T* out) {
  const char* end = value.data() + value.size();
  const auto [stop, error] = std::from_chars(value.data(), end, *out);
  return error == std::errc() && stop == end && !value.empty();
}

template <typename T>
std::string range_text(T min, T max) {
  if (max == std::numeric_limits<T>::max()) {
    return "a whole number of at least " + std::to_string(min);
  }
  return "a whole number from " + std::to_string(min) + " to " + std::to_string(max);
}

// Fields are numbers, or optional ones.
template <typename T, typename Show>
std::vector<std::string> shown(const T& field, Show show) {
  return {show(field)};
}
template <typename T, typename Show>
std::vector<std::string> shown(const std::optional<T>& field, Show show) {
  return field ? std::vector<std::string>{show(*field)} : std::vector<std::string>{};
}

template <typename T, typename Field>
Option whole_option(std::string name, std::string metavar, Field* field, std::string help, T min,
                    T max) {
  Option option = row(std::move(name), Option::Kind::kValue, std::move(metavar), std::move(help));
  option.set = [field, min, max](const std::string& value) -> Status {
    T number{};
    if (!parse_number(value, &number) || number < min || number > max) {
      return bad_value(value, range_text(min, max));
    }
    *field = number;
    return {};
  };
  option.show = [field] { return shown(*field, [](T number) { return std::to_string(number); }); };
  return finished(std::move(option));
}

// Shortest text that reads back to the same number.
template <typename T>
std::string real_text(T value) {
  char buffer[64];
  const auto result = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return std::string(buffer, result.ptr);
}

template <typename T, typename Field>
Option any_real_option(std::string name, std::string metavar, Field* field, std::string help, T min,
                       T max) {
  Option option = row(std::move(name), Option::Kind::kValue, std::move(metavar), std::move(help));
  option.set = [field, min, max](const std::string& value) -> Status {
    T number{};
    if (!parse_number(value, &number) || !std::isfinite(number) || number < min || number > max) {
      return bad_value(value, "a number from " + real_text(min) + " to " + real_text(max));
    }
    *field = number;
    return {};
  };
  option.show = [field] { return shown(*field, real_text<T>); };
  return finished(std::move(option));
}

// A duration in the form parse_duration takes, without loss.
std::string duration_text(Duration duration) {
  const std::int64_t ns = duration.count();
  if (ns % 1'000'000'000 == 0) return std::to_string(ns / 1'000'000'000) + "s";
  if (ns % 1'000'000 == 0) return std::to_string(ns / 1'000'000) + "ms";
  if (ns % 1'000 == 0) return std::to_string(ns / 1'000) + "us";
  return std::to_string(ns) + "ns";
}

// Likewise for sizes: the largest binary unit that divides it.
std::string bytes_text(std::uint64_t bytes) {
  const char* units[] = {"", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  while (bytes != 0 && bytes % 1024 == 0 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return std::to_string(bytes) + units[unit];
}

Status check_address(const std::string& value) {
  const auto parsed = parse_host_port(value);
  if (parsed.ok()) return {};
  return bad_value(value, "HOST:PORT, for example 127.0.0.1:7100 or [::1]:7100");
}

Status set_flag(bool* field, const std::string& value, bool when_true) {
  static const char* const yes[] = {"true", "1", "yes", "on"};
  static const char* const no[] = {"false", "0", "no", "off"};
  if (std::find(std::begin(yes), std::end(yes), value) != std::end(yes)) {
    *field = when_true;
    return {};
  }
  if (std::find(std::begin(no), std::end(no), value) != std::end(no)) {
    *field = !when_true;
    return {};
  }
  return bad_value(value, "true or false");
}

Option any_flag(std::string name, bool* field, std::string help, bool when_true) {
  Option option = row(std::move(name), Option::Kind::kFlag, "", std::move(help));
  option.set = [field, when_true](const std::string& value) {
    return set_flag(field, value, when_true);
  };
  option.show = [field, when_true] {
    return std::vector<std::string>{*field == when_true ? "true" : "false"};
  };
  return option;
}

constexpr int kMaxCpu = 4095;

Status add_cpus(const std::string& value, std::vector<int>* cpus) {
  const std::size_t dash = value.find('-');
  int first = 0;
  int last = 0;
  const bool ok = dash == std::string::npos ? parse_number(value, &first)
                                            : parse_number(value.substr(0, dash), &first) &&
                                                  parse_number(value.substr(dash + 1), &last);
  if (dash == std::string::npos) last = first;
  if (!ok || first < 0 || last < first || last > kMaxCpu) {
    return bad_value(value, "a CPU number or range, for example 0-3,8");
  }
  for (int cpu = first; cpu <= last; ++cpu) {
    if (std::find(cpus->begin(), cpus->end(), cpu) == cpus->end()) cpus->push_back(cpu);
  }
  return {};
}

}  // namespace

Option Option::with_default(std::string text) && {
  default_text = std::move(text);
  return std::move(*this);
}

Option Option::hidden_in_brief() && {
  advanced = true;
  return std::move(*this);
}

Option Option::as_secret() && {
  secret = true;
  return std::move(*this);
}

Option Option::completed_by(std::vector<std::string> values) && {
  words = std::move(values);
  return std::move(*this);
}

std::string Option::env_name() const {
  std::string out = "KVD_";
  for (const char c : name) {
    out += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return out;
}

OptionTable& OptionTable::group(const std::string& category, std::vector<Option> options) {
  for (auto& option : options) {
    KVD_CHECK(find(option.name) == nullptr);
    option.category = category;
    options_.push_back(std::move(option));
  }
  return *this;
}

const Option* OptionTable::find(const std::string& name) const {
  const auto it = std::find_if(options_.begin(), options_.end(),
                               [&](const Option& option) { return option.name == name; });
  return it == options_.end() ? nullptr : &*it;
}

Option flag_option(std::string name, bool* field, std::string help) {
  return any_flag(std::move(name), field, std::move(help), true);
}

Option negated_flag_option(std::string name, bool* field, std::string help) {
  return any_flag(std::move(name), field, std::move(help), false);
}

Option text_option(std::string name, std::string metavar, std::string* field, std::string help) {
  Option option = row(std::move(name), Option::Kind::kValue, std::move(metavar), std::move(help));
  option.set = [field](const std::string& value) -> Status {
    if (value.empty()) return invalid_argument("the value is empty");
    *field = value;
    return {};
  };
  option.show = [field] {
    return field->empty() ? std::vector<std::string>{} : std::vector<std::string>{*field};
  };
  return finished(std::move(option));
}

Option bytes_option(std::string name, std::uint64_t* field, std::string help, std::uint64_t min,
                    std::uint64_t max) {
  Option option = row(std::move(name), Option::Kind::kValue, "SIZE", std::move(help));
  option.set = [field, min, max](const std::string& value) -> Status {
    const auto bytes = parse_bytes(value);
    if (!bytes.ok()) return bad_value(value, "a size, for example 64KiB, 1GiB or 500MB");
    if (*bytes < min) return bad_value(value, "a size of at least " + bytes_text(min));
    if (*bytes > max) return bad_value(value, "a size of at most " + bytes_text(max));
    *field = *bytes;
    return {};
  };
  option.show = [field] { return std::vector<std::string>{bytes_text(*field)}; };
  return finished(std::move(option));
}

Option duration_option(std::string name, std::vector<Duration*> fields, std::string help) {
  KVD_CHECK(!fields.empty());
  Option option = row(std::move(name), Option::Kind::kValue, "TIME", std::move(help));
  option.set = [fields](const std::string& value) -> Status {
    const auto duration = parse_duration(value);
    if (!duration.ok() || duration->count() <= 0) {
      return bad_value(value, "a time above zero, for example 250ms, 30s or 2m");
    }
    for (Duration* field : fields) *field = *duration;
    return {};
  };
  option.show = [fields] { return std::vector<std::string>{duration_text(*fields.front())}; };
  return finished(std::move(option));
}

Option count_option(std::string name, std::uint32_t* field, std::string help, std::uint32_t min,
                    std::uint32_t max) {
  return whole_option<std::uint32_t>(std::move(name), "N", field, std::move(help), min, max);
}

Option count64_option(std::string name, std::uint64_t* field, std::string help, std::uint64_t min,
                      std::uint64_t max) {
  return whole_option<std::uint64_t>(std::move(name), "N", field, std::move(help), min, max);
}

Option count_option(std::string name, std::optional<std::uint32_t>* field, std::string help,
                    std::uint32_t min, std::uint32_t max) {
  return whole_option<std::uint32_t>(std::move(name), "N", field, std::move(help), min, max);
}

Option count64_option(std::string name, std::optional<std::uint64_t>* field, std::string help) {
  return whole_option<std::uint64_t>(std::move(name), "N", field, std::move(help), 0, kNoLimit);
}

Option real_option(std::string name, std::string metavar, std::optional<double>* field,
                   std::string help, double min, double max) {
  return any_real_option<double>(std::move(name), std::move(metavar), field, std::move(help), min,
                                 max);
}

Option int_option(std::string name, std::string metavar, int* field, std::string help, int min,
                  int max) {
  return whole_option<int>(std::move(name), std::move(metavar), field, std::move(help), min, max);
}

Option real_option(std::string name, std::string metavar, double* field, std::string help,
                   double min, double max) {
  return any_real_option<double>(std::move(name), std::move(metavar), field, std::move(help), min,
                                 max);
}

Option real_option(std::string name, std::string metavar, float* field, std::string help, float min,
                   float max) {
  return any_real_option<float>(std::move(name), std::move(metavar), field, std::move(help), min,
                                max);
}

Option share_option(std::string name, double* field, std::string help) {
  Option option = row(std::move(name), Option::Kind::kValue, "SHARE", std::move(help));
  option.set = [field](const std::string& value) -> Status {
    const bool percent = value.ends_with('%');
    double number = 0;
    const bool read = parse_number(percent ? value.substr(0, value.size() - 1) : value, &number);
    if (percent) number /= 100;
    if (!read || !(number >= 0 && number <= 1)) {
      return bad_value(value, "a share from 0% to 100%, for example 10% or 0.1");
    }
    *field = number;
    return {};
  };
  option.show = [field] {
    return std::vector<std::string>{real_text(std::round(*field * 1e12) / 1e10) + "%"};
  };
  return finished(std::move(option));
}

Option address_option(std::string name, std::string* field, std::string help) {
  Option option = text_option(std::move(name), "ADDR", field, std::move(help));
  option.set = [field](const std::string& value) -> Status {
    KVD_RETURN_IF_ERROR(check_address(value));
    *field = value;
    return {};
  };
  return option;
}

Option list_option(std::string name, std::string metavar, std::vector<std::string>* field,
                   std::string help) {
  Option option = row(std::move(name), Option::Kind::kList, std::move(metavar), std::move(help));
  option.set = [field](const std::string& value) -> Status {
    field->push_back(value);
    return {};
  };
  option.clear = [field] { field->clear(); };
  option.show = [field] { return *field; };
  return finished(std::move(option));
}

Option addresses_option(std::string name, std::vector<std::string>* field, std::string help,
                        std::vector<std::string> words) {
  Option option = list_option(std::move(name), "ADDR...", field, std::move(help));
  option.splits = true;
  option.set = [field, words](const std::string& value) -> Status {
    if (std::find(words.begin(), words.end(), value) == words.end()) {
      KVD_RETURN_IF_ERROR(check_address(value));
    }
    field->push_back(value);
    return {};
  };
  return option;
}

Option counts_option(std::string name, std::vector<std::uint32_t>* field, std::string help,
                     std::uint32_t min, std::uint32_t max) {
  Option option = row(std::move(name), Option::Kind::kList, "N...", std::move(help));
  option.splits = true;
  option.set = [field, min, max](const std::string& value) -> Status {
    std::uint32_t number = 0;
    if (!parse_number(value, &number) || number < min || number > max) {
      return bad_value(value, range_text(min, max));
    }
    field->push_back(number);
    return {};
  };
  option.clear = [field] { field->clear(); };
  option.show = [field] {
    std::vector<std::string> out;
    for (const std::uint32_t number : *field) out.push_back(std::to_string(number));
    return out;
  };
  return finished(std::move(option));
}

Option sizes_option(std::string name, std::vector<std::uint64_t>* field, std::string help,
                    std::uint64_t min, std::uint64_t max) {
  Option option = row(std::move(name), Option::Kind::kList, "SIZE...", std::move(help));
  option.splits = true;
  option.set = [field, min, max](const std::string& value) -> Status {
    const auto bytes = parse_bytes(value);
    if (!bytes.ok() || *bytes < min || *bytes > max) {
      return bad_value(value, "sizes from " + bytes_text(min) + " to " + bytes_text(max));
    }
    field->push_back(*bytes);
    return {};
  };
  option.clear = [field] { field->clear(); };
  option.show = [field] {
    std::vector<std::string> out;
    for (const std::uint64_t bytes : *field) out.push_back(bytes_text(bytes));
    return out;
  };
  return finished(std::move(option));
}

Option cpus_option(std::string name, std::vector<int>* field, std::string help) {
  Option option = row(std::move(name), Option::Kind::kList, "CPUS", std::move(help));
  option.splits = true;
  option.set = [field](const std::string& value) { return add_cpus(value, field); };
  option.clear = [field] { field->clear(); };
  option.show = [field] {
    std::vector<std::string> out;
    for (const int cpu : *field) out.push_back(std::to_string(cpu));
    return out;
  };
  return finished(std::move(option));
}

Option choice_option(std::string name, std::vector<std::string> names,
                     std::function<void(std::size_t)> set_index,
                     std::function<std::size_t()> get_index, std::string help) {
  Option option = row(std::move(name), Option::Kind::kValue, join(names, "|"), std::move(help));
  option.words = names;
  option.set = [names, set_index](const std::string& value) -> Status {
    const auto it = std::find(names.begin(), names.end(), value);
    if (it == names.end()) return bad_value(value, "one of " + join(names, ", "));
    set_index(static_cast<std::size_t>(it - names.begin()));
    return {};
  };
  option.show = [names, get_index] {
    const std::size_t index = get_index();
    return index < names.size() ? std::vector<std::string>{names[index]}
                                : std::vector<std::string>{};
  };
  return finished(std::move(option));
}

}  // namespace kvd::cli
