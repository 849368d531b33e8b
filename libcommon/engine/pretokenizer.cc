#include "engine/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cstdint>
#include <utility>

#include "base/check.h"
#include "engine/utf8.h"

namespace kvd::engine {
namespace {

// Unicode's White_Space, spelled out: PCRE2's \s under UCP also takes U+180E, which Hugging Face's
// engines do not.
#define KVD_WS \
  R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})"

constexpr const char* kDigit = R"(\p{N})";
constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^)" KVD_WS
                              R"(\p{L}\p{N}]+|[)" KVD_WS R"(]+(?![^)" KVD_WS R"(])|[)" KVD_WS "]+";
#define KVD_LLAMA3_HEAD R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)"
#define KVD_LLAMA3_TAIL                                                                           \
  R"(| ?[^)" KVD_WS R"(\p{L}\p{N}]+[\r\n]*|[)" KVD_WS R"(]*[\r\n]+|[)" KVD_WS R"(]+(?![^)" KVD_WS \
  R"(])|[)" KVD_WS "]+"
constexpr const char* kLlama3 = KVD_LLAMA3_HEAD R"(\p{N}{1,3})" KVD_LLAMA3_TAIL;
constexpr const char* kQwen2 = KVD_LLAMA3_HEAD R"(\p{N})" KVD_LLAMA3_TAIL;

struct Rule {
  std::string_view name;
  // Applied one after the other, each to the pieces of the one before: its matches and the gaps
  // between them.
  std::array<const char*, 4> patterns;
  bool ignore_merges;
  bool add_bos;
};
constexpr std::array<Rule, 8> kRules{{
    {"smollm", {kDigit, kGpt2, nullptr, nullptr}, false, false},
    {"gpt-2", {kGpt2, nullptr, nullptr, nullptr}, false, false},
    {"gpt2", {kGpt2, nullptr, nullptr, nullptr}, false, false},
    {"default", {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}, false, false},
    {"llama-bpe", {kLlama3, nullptr, nullptr, nullptr}, true, true},
    {"llama3", {kLlama3, nullptr, nullptr, nullptr}, true, true},
    {"llama-v3", {kLlama3, nullptr, nullptr, nullptr}, true, true},
    {"qwen2", {kQwen2, nullptr, nullptr, nullptr}, false, false},
}};

struct CodeFree {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct MatchFree {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
using Code = std::unique_ptr<pcre2_code, CodeFree>;
using Match = std::unique_ptr<pcre2_match_data, MatchFree>;

class PcrePretokenizer final : public Pretokenizer {
 public:
  explicit PcrePretokenizer(const Rule& rule) : rule_(rule) {
    for (const char* pattern : rule.patterns) {
      if (pattern == nullptr) break;
      int error = 0;
      PCRE2_SIZE where = 0;
      Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                              PCRE2_UTF | PCRE2_UCP, &error, &where, nullptr));
      KVD_CHECK(code != nullptr);
      // A host may forbid writable code pages: then pcre2_match interprets, slower and with the
      // same result.
      static_cast<void>(pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE));
      codes_.push_back(std::move(code));
    }
  }

  bool ignore_merges() const override { return rule_.ignore_merges; }
  bool add_bos_default() const override { return rule_.add_bos; }

  void split(std::string_view text, std::vector<std::string_view>* pieces) const override {
    const Match match(pcre2_match_data_create(1, nullptr));
    KVD_CHECK(match != nullptr);
    std::size_t begin = 0;
    std::size_t at = 0;
    while (at < text.size()) {
      const Utf8Step step = utf8_step(text.substr(at));
      if (step.valid) {
        at += step.bytes;
        continue;
      }
      apply(0, text.substr(begin, at - begin), match.get(), pieces);
      for (std::size_t i = 0; i < step.bytes; ++i) pieces->push_back(text.substr(at + i, 1));
      at += step.bytes;
      begin = at;
    }
    apply(0, text.substr(begin), match.get(), pieces);
  }

 private:
  // Pattern `index` and the following ones on `text`, which is valid UTF-8.
  void apply(std::size_t index, std::string_view text, pcre2_match_data* match,
             std::vector<std::string_view>* pieces) const {
    if (text.empty()) return;
    if (index == codes_.size()) {
      pieces->push_back(text);
      return;
    }
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    std::size_t done = 0;
    while (done < text.size()) {
      const int rc = pcre2_match(codes_[index].get(), subject, text.size(), done,
                                 PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match, nullptr);
      if (rc < 0) break;  // no match; or a limit was hit, and the rest is one piece
      const PCRE2_SIZE* span = pcre2_get_ovector_pointer(match);
      const PCRE2_SIZE from = span[0];
      const PCRE2_SIZE to = span[1];
      apply(index + 1, text.substr(done, from - done), match, pieces);
      apply(index + 1, text.substr(from, to - from), match, pieces);
      done = to;
    }
    apply(index + 1, text.substr(done), match, pieces);
  }

  const Rule& rule_;
  std::vector<Code> codes_;
};

}  // namespace

Result<std::unique_ptr<Pretokenizer>> make_pretokenizer(const std::string& rule) {
  std::string known;
  for (const Rule& r : kRules) {
    if (r.name == rule) return std::unique_ptr<Pretokenizer>(new PcrePretokenizer(r));
    known += (known.empty() ? "" : ", ") + std::string(r.name);
  }
  return invalid_argument("unknown tokenizer.ggml.pre '" + rule.substr(0, 64) +
                          "'; take a model with one of: " + known);
}

}  // namespace kvd::engine
