// Results of kvd-bench as files: what `--json` and `--ndjson` print, read back for `compare` and
// `report`.
//
// A file has one or more documents: one after another (runs appended to one file), as elements of
// an array, or as events of --ndjson, of which the `end` counts. One thread.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "cli/json_value.h"

namespace kvd::tools {

// One measurement.
struct ResultCase {
  std::string file;  // as it was named
  std::string kind;  // "pages", "engine", or what the document says; "result" where it says nothing
  cli::JsonValue document;

  // What was measured: names and values that must be equal for two cases to be comparable.
  std::vector<std::pair<std::string, std::string>> identity() const;
  // The same for people: "tcp, Llama-3.1-8B, pages of 4 MiB".
  std::string label() const;
};

// "-" is stdin. kInvalidArgument with the file's name: unreadable, not JSON, the document of a
// failure, or nothing that was measured.
Result<std::vector<ResultCase>> read_results(const std::string& file);
// The same of a text.
Result<std::vector<ResultCase>> parse_results(const std::string& file, const std::string& text);

// "bbr", "2", "true"; "" for null and for lists and objects.
std::string scalar_text(const cli::JsonValue& value);
// The shortest text that says six digits of it: "0.1", "4096", "1.5e+09".
std::string number_text(double value);

// Differences of the two environments that can explain a difference of figures, as "name: a, b",
// and what may have disturbed either: load, an early end.
std::vector<std::string> environment_warnings(const ResultCase& a, const ResultCase& b);

}  // namespace kvd::tools
