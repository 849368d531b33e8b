// A byte-level BPE vocabulary for tests: the special tokens of ChatML and Llama 3, all 256 bytes,
// and the merges that a test asks for.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "support/gguf_builder.h"

namespace kvd::test {

struct TinyVocabulary {
  static inline const std::vector<std::string> kSpecials{
      "<|endoftext|>",   "<|im_start|>",        "<|im_end|>",        "<|begin_of_text|>",
      "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
  static constexpr TokenId kEndOfText = 0, kImStart = 1, kImEnd = 2, kBos = 3, kFirstByte = 8,
                           kFirstMerge = kFirstByte + 256;

  std::string pre = "smollm";
  std::vector<std::pair<std::string, std::string>> merges;  // plain bytes, best first

  static TokenId byte(char c) { return kFirstByte + static_cast<unsigned char>(c); }

  // GPT-2's printable form of bytes, as GGUF files hold tokens.
  static std::string printable(const std::string& bytes) {
    std::array<std::uint32_t, 256> symbols{};
    std::uint32_t next = 256;
    for (std::uint32_t b = 0; b < 256; ++b) {
      const bool same = (b > 32 && b < 127) || (b > 160 && b != 173);
      symbols[b] = same ? b : next++;
    }
    std::string out;
    for (char c : bytes) {
      const std::uint32_t s = symbols[static_cast<unsigned char>(c)];
      if (s < 0x80) {
        out.push_back(static_cast<char>(s));
      } else {
        out.push_back(static_cast<char>(0xc0 | s >> 6));
        out.push_back(static_cast<char>(0x80 | (s & 63)));
      }
    }
    return out;
  }

  GgufBuilder& add_to(GgufBuilder& builder) const {
    std::vector<std::string> tokens = kSpecials;
    std::vector<std::int32_t> types(kSpecials.size(), 3);
    for (int b = 0; b < 256; ++b) tokens.push_back(printable(std::string(1, static_cast<char>(b))));
    std::vector<std::string> lines;
    for (const auto& [left, right] : merges) {
      tokens.push_back(printable(left + right));
      lines.push_back(printable(left) + " " + printable(right));
    }
    types.resize(tokens.size(), 1);
    return builder.meta("tokenizer.ggml.model", "gpt2")
        .meta("tokenizer.ggml.pre", pre)
        .meta("tokenizer.ggml.tokens", tokens)
        .meta("tokenizer.ggml.token_type", types)
        .meta("tokenizer.ggml.merges", lines)
        .meta("tokenizer.ggml.bos_token_id", std::uint32_t{kBos})
        .meta("tokenizer.ggml.eos_token_id", std::uint32_t{kImEnd});
  }
  std::vector<std::byte> file() const {
    GgufBuilder builder;
    return add_to(builder).build();
  }
};

}  // namespace kvd::test
