// Request bodies are the most untrusted input of a server: whatever comes, the parser answers with
// a request within its bounds or with a fault that renders as valid JSON.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/units.h"
#include "http/openai.h"

namespace {

void check(const kvd::Result<kvd::http::ApiRequest>& parsed) {
  if (!parsed.ok()) {
    KVD_CHECK(parsed.status().code() == kvd::StatusCode::kInvalidArgument);
    KVD_CHECK(kvd::is_valid_utf8(kvd::http::error_body(parsed.status())));
    return;
  }
  KVD_CHECK(!parsed->prompts.empty() && parsed->prompts.size() <= kvd::http::kMaxPrompts);
  KVD_CHECK(parsed->n >= 1 && parsed->n <= kvd::http::kMaxChoices);
  KVD_CHECK(parsed->sampling.max_tokens >= 1);
  KVD_CHECK(parsed->sampling.stop.size() <= kvd::kMaxStopStrings);
  KVD_CHECK(parsed->bootstrap.empty() ||
            parsed->bootstrap.size() == parsed->prompts.size() * parsed->n);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  check(kvd::http::parse_completion(body));
  check(kvd::http::parse_chat(body));
  const kvd::http::Renderer renderer(size % 2 == 0, "id", 0, std::string(body));
  kvd::http::Choice choice;
  choice.text = body;
  KVD_CHECK(kvd::is_valid_utf8(renderer.chunk(choice)));
  return 0;
}
