// JSON bodies as a router and a client handle them: fields set in somebody else's body, answers
// taken apart. Pure; any thread. Input is untrusted: its depth is bounded by 32, its size by the
// caller.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "http/openai.h"

namespace kvd::http {

// `text` as a JSON string, quotes included. Bytes that are no UTF-8 become U+FFFD.
std::string json_string(std::string_view text);

struct BodyField {
  std::string name;
  std::string json;  // the value, already JSON
};

// `body` (an object) with these fields set; all others keep their values, numbers beyond 64 bits
// and repeated names excepted. kInvalidArgument: not an object, or a field's value is not JSON.
Result<std::string> set_fields(std::string_view body, const std::vector<BodyField>& fields);

// `base` with the fields of `over` set in it, both objects. kInvalidArgument as above.
Result<std::string> merge_bodies(std::string_view base, std::string_view over);

struct AnswerChoice {
  std::uint32_t index = 0;
  std::string text;           // a whole answer's, or what one chunk adds
  std::string finish_reason;  // empty: not yet
};

// A whole answer, one chunk of a stream, or an error object.
struct Answer {
  std::vector<AnswerChoice> choices;
  std::optional<Usage> usage;
  std::vector<KvdInfo> kvd;     // the field "kvd", if there
  std::optional<Status> error;  // the error object's message; its code by `code` or `type`
};
// kInvalidArgument: not a JSON object.
Result<Answer> parse_answer(std::string_view json);

// The `stages_ms` object of DESIGN 9; a stage that is not known is null.
std::string stages_json(const Stages& stages);

// Splits server-sent events out of a byte stream; keeps what is not complete.
class SseReader {
 public:
  static constexpr std::size_t kMaxEvent = 16u << 20;
  // The data of each event that is complete now. kInvalidArgument: an event beyond kMaxEvent.
  Result<std::vector<std::string>> feed(std::string_view bytes);

 private:
  std::string pending_;
};

}  // namespace kvd::http
