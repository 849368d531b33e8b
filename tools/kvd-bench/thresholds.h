// `--threshold 'ratio_to_ceiling>=0.95'`: what a result must meet.
//
//   threshold = path ( ">" | ">=" | "<" | "<=" | "==" | "!=" ) value
//   path      = [ choice ] name [ choice ] { "." name [ choice ] }
//   choice    = "[" number "]" | "[" name "=" value { "," name "=" value } "]"
//
// The path goes into the document: `latency_ns.p99`. Of a list, and of several cases, every element
// must meet it, or those that the choice names: `decode[batch=8].tok_per_s`,
// `[page_bytes=64KiB].ratio_to_ceiling`. The value is a number, true or false; it may have a unit
// where the path's names say which one they are in (2ms of `_ns`, 4GB of `bytes`), or be a
// percentage.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kvd-bench/results.h"

namespace kvd::tools {

class Threshold {
 public:
  // kInvalidArgument: what of the text is wrong.
  static Result<Threshold> parse(const std::string& text);

  // One figure that it applies to.
  struct Finding {
    std::size_t number = 0;       // of the case
    std::string path;             // with list elements by number: "decode[2].tok_per_s"
    std::optional<double> value;  // none: the document has null there
    bool passed = false;
  };
  // kInvalidArgument: no case has such a number; the message names the nearest that there is.
  Result<std::vector<Finding>> check(const std::vector<ResultCase>& cases) const;

  const std::string& text() const { return text_; }

 private:
  struct Step {
    std::string name;  // empty: of the cases themselves
    std::optional<std::size_t> index;
    std::vector<std::pair<std::string, std::string>> where;
  };
  using Found = std::vector<std::pair<std::string, const cli::JsonValue*>>;

  static Status parse_choice(std::string_view text, Step* step);
  static Result<std::vector<Step>> parse_path(std::string_view path);
  static bool chosen(const Step& step, std::size_t number, const cli::JsonValue& element);
  static void follow(const cli::JsonValue& value, const std::string& path,
                     const std::vector<Step>& steps, std::size_t next, Found* out);
  bool holds(double value) const;
  Status unknown(const std::vector<ResultCase>& cases) const;

  std::string text_, path_;
  std::vector<Step> steps_;
  std::string operator_;
  double limit_ = 0;
};

}  // namespace kvd::tools
