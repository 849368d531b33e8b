// Text <-> tokens. Immutable after construction; any thread.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace kvd::engine {

class Gguf;

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // Ordinary text: strings such as "<|im_end|>" in it are ordinary text too. Bytes that have no token
  // are dropped. Any byte string is accepted (invalid UTF-8 is the caller's to refuse).
  virtual std::vector<TokenId> encode(std::string_view text) const = 0;
  // The token of a special string such as "<|im_end|>", or -1.
  virtual TokenId special(std::string_view text) const = 0;
  // The bytes of one token; special tokens give "" unless `with_special`.
  virtual std::string decode(TokenId token, bool with_special = false) const = 0;
  virtual std::uint32_t vocab_size() const = 0;
  virtual TokenId bos() const = 0;      // -1: none
  virtual bool add_bos() const = 0;     // prepended to raw prompts
  virtual bool is_end(TokenId token) const = 0;  // eos, eot: generation stops

  std::string decode_all(std::span<const TokenId> tokens) const {
    std::string out;
    for (TokenId t : tokens) out += decode(t);
    return out;
  }
};

// Byte-level BPE from the file's metadata. kInvalidArgument: an unknown tokenizer model or `pre`,
// missing or inconsistent arrays.
Result<std::unique_ptr<Tokenizer>> make_bpe_tokenizer(const Gguf& file);
// Bytes are tokens 0..255, 256 is the end: what the mock engine speaks.
std::unique_ptr<Tokenizer> make_byte_tokenizer();

// Turns a stream of tokens into whole UTF-8 characters and holds back what may become a stop string.
// One per sequence; one thread.
class TextStream {
 public:
  TextStream(const Tokenizer* tokenizer, std::vector<std::string> stop);
  // Text that is certain now. Sets stopped() when a stop string is complete; text from its first byte on
  // is never given out.
  std::string push(TokenId token);
  bool stopped() const { return stopped_; }
  // The end of the sequence: what was held back. A cut character becomes U+FFFD.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  std::vector<std::string> stop_;
  std::string pending_;
  bool stopped_ = false;
};

}  // namespace kvd::engine
