// Splits text into the pieces within which byte-pair merges happen: the rules that a GGUF file
// names in `tokenizer.ggml.pre`. PCRE2 underneath.
//
// Immutable after make_pretokenizer; any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace kvd::engine {

class Pretokenizer {
 public:
  virtual ~Pretokenizer() = default;
  // Appends the pieces of `text` in order; together they are `text`. Bytes that are no UTF-8 are
  // pieces of their own.
  virtual void split(std::string_view text, std::vector<std::string_view>* pieces) const = 0;
  // A piece that is a token is taken whole, whatever the merges say.
  virtual bool ignore_merges() const = 0;
  virtual bool add_bos_default() const = 0;  // where the file does not say
};

// kInvalidArgument: an unknown rule; the message lists the known ones.
Result<std::unique_ptr<Pretokenizer>> make_pretokenizer(const std::string& rule);

}  // namespace kvd::engine
