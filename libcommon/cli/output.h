// What a program says: results on stdout as text, one JSON document or NDJSON; errors as one line
// on stderr or, with --json, as a JSON document on stdout.
//
// Invariants: what is written to stdout is valid UTF-8 in JSON (bytes that are not become U+FFFD).
// One thread at a time.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace kvd::cli {

// Writes one JSON value, keys in the order of the calls. Misuse (a value without a key in an
// object, an unclosed object) is a bug and fails a check.
class JsonWriter {
 public:
  JsonWriter& begin_object();
  JsonWriter& end_object();
  JsonWriter& begin_array();
  JsonWriter& end_array();
  JsonWriter& key(std::string_view name);
  JsonWriter& value(std::string_view text);
  JsonWriter& value(const char* text) { return value(std::string_view(text)); }
  JsonWriter& value(bool b);
  JsonWriter& value(double number);  // not finite: null
  JsonWriter& value(std::int64_t number);
  JsonWriter& value(std::uint64_t number);
  JsonWriter& value(std::int32_t number) { return value(static_cast<std::int64_t>(number)); }
  JsonWriter& value(std::uint32_t number) { return value(static_cast<std::uint64_t>(number)); }
  JsonWriter& null();
  // `json` is one JSON value already.
  JsonWriter& raw(std::string_view json);
  template <typename T>
  JsonWriter& field(std::string_view name, const T& v) {
    return key(name).value(v);
  }
  // The finished document, without newline.
  std::string take();

 private:
  void before_value();

  struct Level {
    bool object = false;
    bool first = true;
    bool have_key = false;
  };
  std::string out_;
  std::vector<Level> levels_;
  bool done_ = false;
};

// Columns as wide as their widest cell; those of numbers, with gaps or not, to the right.
class TableWriter {
 public:
  explicit TableWriter(std::vector<std::string> header);
  void add_row(std::vector<std::string> cells);  // as many cells as the header has
  std::string render() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// stdout, whole: everything is out when it returns. kCancelled when the reader is gone (broken
// pipe), which ends a program quietly; kFailed with the reason otherwise (disk full).
Status write_out(std::string_view text);

// {"error":{"code":...,"message":...}}
std::string error_json(const Status& status);
// Says why the program ends and returns its exit code. `json`: the document goes to stdout. A
// cancelled status of write_out() is silent and exits 0.
int report_error(std::string_view program, const Status& status, bool json);

}  // namespace kvd::cli
