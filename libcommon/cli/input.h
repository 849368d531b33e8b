// What a program reads: stdin without being deaf to SIGINT, and lines of JSON.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace kvd::cli {

constexpr std::size_t kMaxInputBytes = 16 << 20;  // of one line, or of a whole text

// Reads a file descriptor. One thread; does not own the descriptor. A counted signal (signals.h)
// ends the input as if the writer had closed it.
class InputReader {
 public:
  explicit InputReader(int fd) : fd_(fd) {}
  // The next line without its newline ("\r\n" too); false at the end. kInvalidArgument: a line
  // above kMaxInputBytes; kFailed: a read error.
  Result<bool> next_line(std::string* line);
  // All that is left.
  Result<std::string> read_all();

 private:
  Status fill();  // more into buffer_, or end_

  int fd_;
  std::string buffer_;
  std::size_t begin_ = 0;
  bool end_ = false;
};

struct JsonField {
  std::string name;
  std::string json;  // the value as JSON on one line
  bool is_string = false;
  std::string text;  // of a string
};

// The fields of one JSON object. kInvalidArgument: not JSON, not an object, or deeper than 32
// levels. Of a field given twice the last one counts.
Result<std::vector<JsonField>> parse_json_object(std::string_view text);

// Every number of a JSON document by its path, as "prefill.0.tok_per_s". Errors as above.
Result<std::map<std::string, double>> parse_json_numbers(std::string_view text);

}  // namespace kvd::cli
