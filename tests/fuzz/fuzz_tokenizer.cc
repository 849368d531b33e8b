// Any bytes are tokenised and come back; cut into tokens of any length and streamed, they give
// valid UTF-8 without a stop string. The first byte chooses the pre-tokenizer.
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/units.h"
#include "engine/gguf.h"
#include "engine/tokenizer.h"
#include "support/tiny_vocabulary.h"

namespace {

using kvd::engine::Tokenizer;

constexpr std::array<const char*, 5> kRules{"smollm", "gpt-2", "default", "llama-bpe", "qwen2"};

std::unique_ptr<Tokenizer> make(const char* rule) {
  kvd::test::TinyVocabulary vocabulary;
  vocabulary.pre = rule;
  vocabulary.merges = {{"a", "a"}, {"aa", "aa"}, {" ", "a"}, {"\xe2", "\x82"}, {"\n", "\n"}};
  const std::vector<std::byte> bytes = vocabulary.file();
  auto tokenizer = kvd::engine::make_bpe_tokenizer(kvd::engine::Gguf::parse(bytes, "fuzz").value());
  return std::move(tokenizer).value();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto tokenizers = [] {
    std::vector<std::unique_ptr<Tokenizer>> made;
    for (const char* rule : kRules) made.push_back(make(rule));
    return made;
  }();
  if (size == 0) return 0;
  const Tokenizer& tokenizer = *tokenizers[data[0] % tokenizers.size()];
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const std::vector<kvd::TokenId> ids = tokenizer.encode(text);
  KVD_CHECK(tokenizer.decode_all(ids) == text);
  const std::string stop = "aab";
  kvd::engine::TextStream stream(&tokenizer, {stop, "\n\n"});
  std::string out;
  for (kvd::TokenId id : ids) {
    KVD_CHECK(id >= kvd::test::TinyVocabulary::kFirstByte);
    const std::string piece = stream.push(id);
    KVD_CHECK(kvd::is_valid_utf8(piece));
    out += piece;
  }
  out += stream.finish();
  KVD_CHECK(kvd::is_valid_utf8(out));
  KVD_CHECK(out.find(stop) == std::string::npos);
  return 0;
}
