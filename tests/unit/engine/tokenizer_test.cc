#include "engine/tokenizer.h"

#include <catch2/catch.hpp>

#include "base/rng.h"
#include "base/units.h"
#include "engine/gguf.h"
#include "engine/pretokenizer.h"
#include "support/tiny_vocabulary.h"

namespace kvd::engine {
namespace {

using Catch::Matchers::Contains;
using test::TinyVocabulary;
using Ids = std::vector<TokenId>;
using Pieces = std::vector<std::string>;

std::unique_ptr<Tokenizer> make(const TinyVocabulary& vocabulary) {
  const std::vector<std::byte> bytes = vocabulary.file();
  const Result<Gguf> file = Gguf::parse(bytes, "m.gguf");
  REQUIRE(file.ok());
  Result<std::unique_ptr<Tokenizer>> tokenizer = make_bpe_tokenizer(*file);
  REQUIRE(tokenizer.ok());
  return std::move(tokenizer).value();
}

std::string refusal(test::GgufBuilder builder) {
  const std::vector<std::byte> bytes = builder.build();
  const Result<Gguf> file = Gguf::parse(bytes, "m.gguf");
  REQUIRE(file.ok());
  const Result<std::unique_ptr<Tokenizer>> tokenizer = make_bpe_tokenizer(*file);
  REQUIRE_FALSE(tokenizer.ok());
  CHECK(tokenizer.status().code() == StatusCode::kInvalidArgument);
  return tokenizer.status().message();
}

Pieces split(const std::string& rule, const std::string& text) {
  const Result<std::unique_ptr<Pretokenizer>> pre = make_pretokenizer(rule);
  REQUIRE(pre.ok());
  std::vector<std::string_view> views;
  (*pre)->split(text, &views);
  return {views.begin(), views.end()};
}

// Byte-pair encoding as its definition says it: the best pair anywhere, leftmost first, one at a
// time.
Ids naive_bpe(const TinyVocabulary& vocabulary, const std::string& piece) {
  std::vector<std::string> parts;
  for (char c : piece) parts.emplace_back(1, c);
  for (;;) {
    std::size_t best = vocabulary.merges.size();
    std::size_t at = 0;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
      for (std::size_t rank = 0; rank < best; ++rank) {
        if (vocabulary.merges[rank] != std::pair(parts[i], parts[i + 1])) continue;
        best = rank;
        at = i;
      }
    }
    if (best == vocabulary.merges.size()) break;
    parts[at] += parts[at + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  Ids ids;
  for (const std::string& part : parts) {
    TokenId id = TinyVocabulary::byte(part[0]);
    for (std::size_t rank = 0; part.size() > 1 && rank < vocabulary.merges.size(); ++rank) {
      if (vocabulary.merges[rank].first + vocabulary.merges[rank].second != part) continue;
      id = TinyVocabulary::kFirstMerge + static_cast<TokenId>(rank);
      break;
    }
    ids.push_back(id);
  }
  return ids;
}

TinyVocabulary letters() {
  TinyVocabulary v;
  v.merges = {{"a", "b"},  {"b", "c"},  {"c", "a"},   {"a", "a"},    {"ab", "c"},
              {"aa", "b"}, {"c", "c"},  {"ab", "ab"}, {"bc", "bc"},  {"aa", "aa"},
              {"d", "a"},  {"da", "b"}, {"cc", "d"},  {"abc", "abc"}};
  return v;
}

TEST_CASE("pre-tokenizer: smollm takes every digit alone, then GPT-2's words") {
  CHECK(split("smollm", "abc 123") == Pieces{"abc", " ", "1", "2", "3"});
  CHECK(split("smollm", "I'm  here\n\n  ok") == Pieces{"I", "'m", " ", " here", "\n\n ", " ok"});
  CHECK(split("smollm", "x²٣") == Pieces{"x", "²", "٣"});
  CHECK(split("smollm", "   7") == Pieces{"   ", "7"});
  CHECK(split("smollm", "").empty());
}

TEST_CASE("pre-tokenizer: each rule splits in its own way") {
  CHECK(split("gpt-2", "It's 2024!  x") == Pieces{"It", "'s", " 2024", "!", " ", " x"});
  CHECK(split("llama-bpe", "HE'LL say 12345\n\n x") ==
        Pieces{"HE", "'LL", " say", " ", "123", "45", "\n\n", " x"});
  CHECK(split("qwen2", "a 12\tb\r\n") == Pieces{"a", " ", "1", "2", "\tb", "\r\n"});
  CHECK(split("default", "a+b=2024") == Pieces{"a", "+", "b", "=", "202", "4"});
}

TEST_CASE("pre-tokenizer: white space is Unicode's, without U+180E") {
  CHECK(split("gpt-2", "  \u180e") == Pieces{" ", " \u180e"});
  CHECK(split("gpt-2", "a\u3000\u3000b") == Pieces{"a", "\u3000", "\u3000", "b"});
  CHECK(split("gpt-2", "a\u0085b") == Pieces{"a", "\u0085", "b"});
}

TEST_CASE("pre-tokenizer: bytes that are no UTF-8 are pieces of their own") {
  CHECK(split("smollm",
              "ab\xff\xfe"
              "c") == Pieces{"ab", "\xff", "\xfe", "c"});
  CHECK(split("smollm", "\xe2\x82") == Pieces{"\xe2", "\x82"});
  CHECK(split("smollm", "\xed\xa0\x80") == Pieces{"\xed", "\xa0", "\x80"});
  CHECK(split("smollm",
              "\xc0\xaf"
              "é") == Pieces{"\xc0", "\xaf", "é"});
}

TEST_CASE("pre-tokenizer: the pieces of any bytes are those bytes") {
  Rng rng(11);
  for (const char* rule : {"smollm", "gpt-2", "default", "llama-bpe", "qwen2"}) {
    const Result<std::unique_ptr<Pretokenizer>> pre = make_pretokenizer(rule);
    REQUIRE(pre.ok());
    for (int round = 0; round < 300; ++round) {
      std::string text;
      for (std::uint64_t n = rng.below(60); n > 0; --n) {
        constexpr std::string_view kMix = " \n\r\t'sl1٣é\xe2\x82\xac.,<|a";
        text += rng.chance(0.2) ? static_cast<char>(rng.below(256)) : kMix[rng.below(kMix.size())];
      }
      std::vector<std::string_view> pieces;
      (*pre)->split(text, &pieces);
      std::string joined;
      for (std::string_view p : pieces) {
        REQUIRE_FALSE(p.empty());
        joined += p;
      }
      REQUIRE(joined == text);
    }
  }
}

TEST_CASE("pre-tokenizer: an unknown rule is refused with the known ones") {
  const Status status = make_pretokenizer("tekken").status();
  CHECK(status.code() == StatusCode::kInvalidArgument);
  CHECK_THAT(status.message(), Contains("'tekken'") && Contains("smollm") && Contains("qwen2") &&
                                   Contains("llama-bpe") && Contains("gpt-2"));
}

TEST_CASE("tokenizer: merges give what their definition gives, in short and in long pieces") {
  const TinyVocabulary vocabulary = letters();
  const std::unique_ptr<Tokenizer> tokenizer = make(vocabulary);
  Rng rng(5);
  for (int round = 0; round < 400; ++round) {
    std::string text;
    const std::uint64_t length = rng.chance(0.5) ? 1 + rng.below(48) : 49 + rng.below(150);
    for (std::uint64_t i = 0; i < length; ++i) text += static_cast<char>('a' + rng.below(4));
    const Ids ids = tokenizer->encode(text);
    INFO(text);
    REQUIRE(ids == naive_bpe(vocabulary, text));
    REQUIRE(tokenizer->decode_all(ids) == text);
  }
}

TEST_CASE("tokenizer: a megabyte of one letter is not quadratic") {
  TinyVocabulary vocabulary;
  std::string token = "a";
  for (int i = 0; i < 8; ++i, token += token) vocabulary.merges.emplace_back(token, token);
  const std::unique_ptr<Tokenizer> tokenizer = make(vocabulary);
  const Ids ids = tokenizer->encode(std::string(std::size_t{1} << 20, 'a'));
  CHECK(ids == Ids(4096, TinyVocabulary::kFirstMerge + 7));
  const std::string blanks(std::size_t{1} << 20, ' ');
  CHECK(tokenizer->encode(blanks + "x").size() == blanks.size() + 1);
}

TEST_CASE("tokenizer: text never becomes a special token") {
  const std::unique_ptr<Tokenizer> tokenizer = make(letters());
  for (const std::string& special : TinyVocabulary::kSpecials) {
    const Ids ids = tokenizer->encode("x" + special + special);
    for (TokenId id : ids) CHECK(id >= TinyVocabulary::kFirstByte);
    CHECK(tokenizer->decode_all(ids) == "x" + special + special);
  }
  CHECK(tokenizer->special("<|im_end|>") == TinyVocabulary::kImEnd);
  CHECK(tokenizer->special("<|im_") == -1);
  CHECK(tokenizer->special("a") == -1);
  CHECK(tokenizer->decode(TinyVocabulary::kImEnd).empty());
  CHECK(tokenizer->decode(TinyVocabulary::kImEnd, true) == "<|im_end|>");
  CHECK(tokenizer->decode(-1).empty());
  CHECK(tokenizer->decode(1 << 30).empty());
  CHECK(tokenizer->is_end(TinyVocabulary::kImEnd));
  CHECK_FALSE(tokenizer->is_end(TinyVocabulary::kImStart));
  CHECK_FALSE(tokenizer->is_end(-1));
}

TEST_CASE("tokenizer: any bytes come back") {
  const std::unique_ptr<Tokenizer> tokenizer = make(letters());
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  CHECK(tokenizer->decode_all(tokenizer->encode(all)) == all);
  CHECK(tokenizer->encode("").empty());
}

TEST_CASE("tokenizer: a byte without a token is dropped before its neighbours merge") {
  // Made by hand: 'a', 'b', 'ab' and nothing else.
  const std::vector<std::byte> bytes =
      test::GgufBuilder()
          .meta("tokenizer.ggml.model", "gpt2")
          .meta("tokenizer.ggml.pre", "gpt-2")
          .meta("tokenizer.ggml.tokens", std::vector<std::string>{"a", "b", "ab"})
          .meta("tokenizer.ggml.merges", std::vector<std::string>{"a b"})
          .build();
  const Result<Gguf> file = Gguf::parse(bytes, "m.gguf");
  REQUIRE(file.ok());
  const auto tokenizer = make_bpe_tokenizer(*file);
  REQUIRE(tokenizer.ok());
  CHECK((*tokenizer)->encode("axb") == Ids{2});
  CHECK((*tokenizer)->encode("xyz\n").empty());
  CHECK((*tokenizer)->bos() == -1);
  CHECK_FALSE((*tokenizer)->add_bos());
}

TEST_CASE("tokenizer: llama-bpe takes a piece that is a token whole, and asks for BOS") {
  TinyVocabulary vocabulary = letters();
  // "abcd" is a token that no sequence of merges reaches: "ab" and "c" merge first, not "b" and
  // "cd".
  vocabulary.merges.emplace_back("c", "d");
  vocabulary.merges.emplace_back("b", "cd");
  vocabulary.merges.emplace_back("a", "bcd");
  const TokenId whole =
      TinyVocabulary::kFirstMerge + static_cast<TokenId>(vocabulary.merges.size()) - 1;
  CHECK(make(vocabulary)->encode("abcd").size() > 1);
  CHECK_FALSE(make(vocabulary)->add_bos());
  vocabulary.pre = "llama-bpe";
  const std::unique_ptr<Tokenizer> llama = make(vocabulary);
  CHECK(llama->encode("abcd") == Ids{whole});
  CHECK(llama->add_bos());
  CHECK(llama->bos() == TinyVocabulary::kBos);
}

TEST_CASE("tokenizer: inconsistent metadata is refused with its name") {
  const auto base = [] {
    return test::GgufBuilder()
        .meta("tokenizer.ggml.model", "gpt2")
        .meta("tokenizer.ggml.pre", "gpt-2");
  };
  const std::vector<std::string> tokens{"a", "b", "ab"};
  const std::vector<std::string> merges{"a b"};
  CHECK_THAT(refusal(test::GgufBuilder()), Contains("m.gguf") && Contains("gpt2"));
  CHECK_THAT(refusal(test::GgufBuilder().meta("tokenizer.ggml.model", "llama")),
             Contains("'llama' is not supported"));
  CHECK_THAT(refusal(base()), Contains("no tokenizer.ggml.tokens"));
  CHECK_THAT(refusal(base().meta("tokenizer.ggml.tokens", 7)), Contains("tokenizer.ggml.tokens"));
  CHECK_THAT(refusal(base().meta("tokenizer.ggml.tokens", tokens)), Contains("ggml.merges"));
  const auto with = [&] { return base().meta("tokenizer.ggml.tokens", tokens); };
  CHECK_THAT(refusal(with().meta("tokenizer.ggml.token_type", std::vector<int>{1})),
             Contains("token_type has 1 elements"));
  CHECK_THAT(refusal(with().meta("tokenizer.ggml.eos_token_id", 3u)), Contains("eos_token_id"));
  CHECK_THAT(refusal(with().meta("tokenizer.ggml.bos_token_id", -1)), Contains("bos_token_id"));
  for (const char* merge : {"a", "ab", "a  b", "b a", "a c", " a", ""}) {
    CHECK_THAT(refusal(with().meta("tokenizer.ggml.merges", std::vector<std::string>{merge})),
               Contains("merge 0"));
  }
  // A merge must not lead text to a special token.
  CHECK_THAT(refusal(with()
                         .meta("tokenizer.ggml.token_type", std::vector<int>{1, 1, 3})
                         .meta("tokenizer.ggml.merges", merges)),
             Contains("merge 0"));
  CHECK_THAT(refusal(test::GgufBuilder()
                         .meta("tokenizer.ggml.model", "gpt2")
                         .meta("tokenizer.ggml.pre", "unheard-of")),
             Contains("unheard-of") && Contains("smollm"));
}

TEST_CASE("tokenizer: the byte tokenizer speaks bytes") {
  const std::unique_ptr<Tokenizer> tokenizer = make_byte_tokenizer();
  CHECK(tokenizer->vocab_size() == 257);
  CHECK(tokenizer->encode("\x01\xff") == Ids{1, 255});
  CHECK(tokenizer->decode_all(tokenizer->encode("héllo")) == "héllo");
  CHECK(tokenizer->is_end(256));
  CHECK(tokenizer->decode(256).empty());
}

// Tokens are the strings that a test gives.
class ListTokenizer final : public Tokenizer {
 public:
  explicit ListTokenizer(std::vector<std::string> tokens) : tokens_(std::move(tokens)) {}
  Ids encode(std::string_view) const override { return {}; }
  TokenId special(std::string_view) const override { return -1; }
  std::string decode(TokenId token, bool) const override {
    return tokens_.at(static_cast<std::size_t>(token));
  }
  std::uint32_t vocab_size() const override { return static_cast<std::uint32_t>(tokens_.size()); }
  TokenId bos() const override { return -1; }
  bool add_bos() const override { return false; }
  bool is_end(TokenId) const override { return false; }

 private:
  std::vector<std::string> tokens_;
};

// What each push gives, then what finish gives.
Pieces stream(const Pieces& tokens, const Pieces& stop, bool* stopped = nullptr) {
  const ListTokenizer tokenizer(tokens);
  TextStream text(&tokenizer, stop);
  Pieces out;
  for (std::size_t i = 0; i < tokens.size(); ++i) out.push_back(text.push(static_cast<TokenId>(i)));
  if (stopped != nullptr) *stopped = text.stopped();
  out.push_back(text.finish());
  return out;
}

TEST_CASE("text stream: characters come out whole") {
  CHECK(stream({"a\xe2", "\x82",
                "\xac"
                "b"},
               {}) == Pieces{"a", "", "€b", ""});
  CHECK(stream({"\xf0\x9f", "\x98\x80"}, {}) == Pieces{"", "😀", ""});
  CHECK(stream({"plain"}, {}) == Pieces{"plain", ""});
}

TEST_CASE("text stream: broken characters become U+FFFD, as soon as that is certain") {
  CHECK(stream({"a\xe2\x82"}, {}) == Pieces{"a", "\ufffd"});
  CHECK(stream({"\xe2", "x"}, {}) == Pieces{"", "\ufffdx", ""});
  CHECK(stream({"\xff", "\x80"}, {}) == Pieces{"\ufffd", "\ufffd", ""});
  CHECK(stream({"\xf0\x9f\x98"}, {}) == Pieces{"", "\ufffd"});
  CHECK(stream({"\xe2", "\xe2\x82\xac"}, {}) == Pieces{"", "\ufffd€", ""});
}

TEST_CASE("text stream: a stop string is found across tokens and never given out") {
  bool stopped = false;
  CHECK(stream({"one ST", "O", "P two", "more"}, {"STOP"}, &stopped) ==
        Pieces{"one ", "", "", "", ""});
  CHECK(stopped);
  CHECK(stream({"one ST", "ART", "x"}, {"STOP"}, &stopped) == Pieces{"one ", "START", "x", ""});
  CHECK_FALSE(stopped);
  // Held back to the end.
  CHECK(stream({"ends with ST"}, {"STOP"}, &stopped) == Pieces{"ends with ", "ST"});
  CHECK_FALSE(stopped);
  CHECK(stream({"\n", "\n", "\n"}, {"\n\n"}, &stopped) == Pieces{"", "", "", ""});
  CHECK(stopped);
  CHECK(stream({"aab"}, {"ab"}, &stopped) == Pieces{"a", ""});
  CHECK(stream({"é\xc3"}, {"é!"}, &stopped) == Pieces{"é", "\ufffd"});
  CHECK(stream({"x"}, {""}, &stopped) == Pieces{"x", ""});
  CHECK_FALSE(stopped);
}

TEST_CASE("text stream: of several stop strings the first to be complete wins") {
  CHECK(stream({"xabcd"}, {"bcd", "abc"}) == Pieces{"x", ""});
  CHECK(stream({"xabcd"}, {"abcd", "bc"}) == Pieces{"xa", ""});
  CHECK(stream({"xabc"}, {"c", "abc"}) == Pieces{"x", ""});
}

TEST_CASE("text stream: the text does not depend on where tokens end") {
  Rng rng(3);
  constexpr std::string_view kMix = "abab€😀c";
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (std::uint64_t n = rng.below(30); n > 0; --n) text += kMix[rng.below(kMix.size())];
    Pieces single, cut;
    for (char c : text) single.emplace_back(1, c);
    for (std::size_t i = 0; i < text.size();) {
      const std::size_t n = 1 + rng.below(6);
      cut.push_back(text.substr(i, n));
      i += cut.back().size();
    }
    const Pieces stops{"abc", "b€", "cc", "baba"};
    std::string first, second;
    for (const std::string& s : stream(single, stops)) first += s;
    for (const std::string& s : stream(cut, stops)) {
      REQUIRE(is_valid_utf8(s));
      second += s;
    }
    INFO(text);
    REQUIRE(first == second);
    for (const std::string& s : stops) REQUIRE(first.find(s) == std::string::npos);
  }
}

}  // namespace
}  // namespace kvd::engine
