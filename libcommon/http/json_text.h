// Writing JSON by hand where a token must not cost a document: strings, numbers, UTF-8 repair.
//
// Pure; any thread. Whatever bytes go in, what comes out is valid JSON in valid UTF-8.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace kvd::http {

// Appends `text` as a JSON string with its quotes. Ill-formed UTF-8 becomes U+FFFD, one for each
// maximal ill-formed part (Unicode 15, 3.9, as browsers do).
void append_json_string(std::string& out, std::string_view text);

// Shortest decimal that reads back as the same float. Not a number: null; -infinity: -9999.0, as
// OpenAI writes a logprob of nothing.
void append_json_float(std::string& out, float value);

// Milliseconds with three decimals.
void append_json_ms(std::string& out, double value);

// Characters of `text` as a client counts them: all bytes but UTF-8 continuation bytes, so that
// tokens which split a character add up.
std::uint32_t character_count(std::string_view text);

}  // namespace kvd::http
