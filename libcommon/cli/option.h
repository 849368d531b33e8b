// The option table: each option is declared once, as one row. Parser, --help, --help-all,
// --print-config, --config FILE and the KVD_* environment all work from the rows.
//
//   table.group("Memory", {
//       bytes_option("kv-memory", &o.kv_memory, "size of the KV pool", 1 << 20),
//       flag_option("insecure", &o.insecure, "bind other addresses than loopback without keys"),
//   });
//
// Invariants: names are unique in a table (checked); what a field holds when its row is made is the
// default. Ownership: rows keep pointers to the fields, which must outlive the table. One thread.
// Errors: a setter says what form it accepts; whoever calls it puts the option's name in front.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace kvd::cli {

struct Option {
  enum class Kind { kFlag, kValue, kList };

  std::string name;  // "kv-memory": long, without dashes
  Kind kind = Kind::kValue;
  std::string metavar;  // "SIZE"; empty for a flag
  std::string help;     // lower case, no final stop
  std::string category;
  std::string default_text;  // of the field at declaration; empty: not set
  bool advanced = false;     // in --help-all only
  bool secret = false;       // never shown
  bool splits = false;       // kList: commas and blanks separate elements, further arguments follow
  bool argv_only = false;    // neither in the environment nor in a config file
  bool hidden = false;       // in no help
  std::vector<std::string> words;  // what a shell may complete the value to

  std::function<Status(const std::string& value)> set;  // kList: adds one element
  std::function<void()> clear;                          // kList only
  std::function<std::vector<std::string>()> show;       // in the form that `set` takes

  // Chained onto a factory: the default in words, where the field's own value says nothing.
  Option with_default(std::string text) &&;
  Option hidden_in_brief() &&;  // advanced
  Option as_secret() &&;
  Option completed_by(std::vector<std::string> values) &&;

  std::string env_name() const;  // "KVD_KV_MEMORY"
};

class OptionTable {
 public:
  OptionTable& group(const std::string& category, std::vector<Option> options);
  const std::vector<Option>& options() const { return options_; }
  const Option* find(const std::string& name) const;

 private:
  std::vector<Option> options_;
};

constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();

Option flag_option(std::string name, bool* field, std::string help);
// A flag that clears `field`: --no-stream.
Option negated_flag_option(std::string name, bool* field, std::string help);
Option text_option(std::string name, std::string metavar, std::string* field, std::string help);
Option bytes_option(std::string name, std::uint64_t* field, std::string help, std::uint64_t min = 0,
                    std::uint64_t max = kNoLimit);
// Longer than zero.
Option duration_option(std::string name, std::vector<Duration*> fields, std::string help);
Option count_option(std::string name, std::uint32_t* field, std::string help, std::uint32_t min = 0,
                    std::uint32_t max = std::numeric_limits<std::uint32_t>::max());
Option count64_option(std::string name, std::uint64_t* field, std::string help,
                      std::uint64_t min = 0, std::uint64_t max = kNoLimit);
// Of a field without a value of its own: not given is told from every number.
Option count_option(std::string name, std::optional<std::uint32_t>* field, std::string help,
                    std::uint32_t min = 0,
                    std::uint32_t max = std::numeric_limits<std::uint32_t>::max());
Option count64_option(std::string name, std::optional<std::uint64_t>* field, std::string help);
Option real_option(std::string name, std::string metavar, std::optional<double>* field,
                   std::string help, double min, double max);
Option int_option(std::string name, std::string metavar, int* field, std::string help, int min,
                  int max);
Option real_option(std::string name, std::string metavar, double* field, std::string help,
                   double min, double max);
Option real_option(std::string name, std::string metavar, float* field, std::string help, float min,
                   float max);
// A share of a whole, as "10%" or "0.1".
Option share_option(std::string name, double* field, std::string help);
// HOST:PORT, IPv6 in brackets.
Option address_option(std::string name, std::string* field, std::string help);
// Elements by repetition, as further arguments, or separated by commas or blanks (as cpus_option
// takes them too). `words` are allowed besides addresses ("local").
Option addresses_option(std::string name, std::vector<std::string>* field, std::string help,
                        std::vector<std::string> words = {});
// One element each time it is given, taken as it stands.
Option list_option(std::string name, std::string metavar, std::vector<std::string>* field,
                   std::string help);
// Numbers, by repetition or separated by commas or blanks. What is given replaces the default.
Option counts_option(std::string name, std::vector<std::uint32_t>* field, std::string help,
                     std::uint32_t min = 0,
                     std::uint32_t max = std::numeric_limits<std::uint32_t>::max());
// Sizes as bytes_option takes them, by repetition or separated by commas or blanks. What is given
// replaces the default.
Option sizes_option(std::string name, std::vector<std::uint64_t>* field, std::string help,
                    std::uint64_t min, std::uint64_t max);
// CPU numbers and ranges: 0-3,8.
Option cpus_option(std::string name, std::vector<int>* field, std::string help);

// One of `names`. The metavar is "a|b|c".
Option choice_option(std::string name, std::vector<std::string> names,
                     std::function<void(std::size_t)> set_index,
                     std::function<std::size_t()> get_index, std::string help);
template <typename T>
Option choice_option(std::string name, T* field, std::vector<std::pair<std::string, T>> choices,
                     std::string help) {
  std::vector<std::string> names;
  for (const auto& choice : choices) names.push_back(choice.first);
  auto set_index = [field, choices](std::size_t index) { *field = choices[index].second; };
  auto get_index = [field, choices] {
    std::size_t index = 0;
    while (index < choices.size() && !(choices[index].second == *field)) ++index;
    return index;
  };
  return choice_option(std::move(name), std::move(names), set_index, get_index, std::move(help));
}

}  // namespace kvd::cli
