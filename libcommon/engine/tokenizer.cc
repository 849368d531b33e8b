#include "engine/tokenizer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <functional>
#include <limits>
#include <optional>
#include <queue>
#include <unordered_map>
#include <utility>

#include "engine/gguf.h"
#include "engine/pretokenizer.h"
#include "engine/utf8.h"

namespace kvd::engine {
namespace {

// tokenizer.ggml.token_type
constexpr std::int64_t kControl = 3, kUserDefined = 4;
// Ids are 31 bits and merges are keyed by two of them; no vocabulary comes near this.
constexpr std::size_t kMaxVocab = std::size_t{1} << 24;
// What instruct models end a turn or a text with, besides the file's own eos.
constexpr std::array<std::string_view, 5> kEndNames{"<|im_end|>", "<|eot_id|>", "<|eom_id|>",
                                                    "<|endoftext|>", "<|end_of_text|>"};

struct StringHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const noexcept {
    return std::hash<std::string_view>{}(text);
  }
};
using TokenMap = std::unordered_map<std::string, TokenId, StringHash, std::equal_to<>>;

// GPT-2's printable stand-ins for bytes: bytes that print are themselves, the others follow from
// U+0100.
std::array<std::uint32_t, 256> byte_symbols() {
  std::array<std::uint32_t, 256> symbols{};
  std::uint32_t next = 0x100;
  for (std::uint32_t b = 0; b < 256; ++b) {
    const bool prints = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    symbols[b] = prints ? b : next++;
  }
  return symbols;
}

// Stand-ins back to bytes; nothing when `text` has a character that stands for no byte.
std::optional<std::string> to_bytes(std::string_view text) {
  static const std::array<int, 0x144> kBytes = [] {
    std::array<int, 0x144> bytes{};
    bytes.fill(-1);
    const auto symbols = byte_symbols();
    for (std::size_t b = 0; b < symbols.size(); ++b) bytes[symbols[b]] = static_cast<int>(b);
    return bytes;
  }();
  std::string out;
  while (!text.empty()) {
    const Utf8Step step = utf8_step(text);
    if (!step.valid || step.code >= kBytes.size() || kBytes[step.code] < 0) return std::nullopt;
    out.push_back(static_cast<char>(kBytes[step.code]));
    text.remove_prefix(step.bytes);
  }
  return out;
}

// (left, right) -> rank and merged token. Open addressing: this look-up is most of the work of
// encoding.
class MergeTable {
 public:
  struct Merge {
    std::uint32_t rank;
    TokenId token;
  };

  explicit MergeTable(std::size_t count)
      : slots_(std::bit_ceil(std::max<std::size_t>(16, count * 2))) {}

  // The first rank of a pair stays.
  void insert(TokenId left, TokenId right, Merge merge) {
    const std::uint64_t key = key_of(left, right);
    std::size_t i = index(key);
    while (slots_[i].key != kEmpty) {
      if (slots_[i].key == key) return;
      i = (i + 1) & (slots_.size() - 1);
    }
    slots_[i] = {key, merge};
  }
  const Merge* find(TokenId left, TokenId right) const {
    const std::uint64_t key = key_of(left, right);
    for (std::size_t i = index(key); slots_[i].key != kEmpty; i = (i + 1) & (slots_.size() - 1)) {
      if (slots_[i].key == key) return &slots_[i].merge;
    }
    return nullptr;
  }

 private:
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  struct Slot {
    std::uint64_t key = kEmpty;
    Merge merge{};
  };
  static std::uint64_t key_of(TokenId left, TokenId right) {
    return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
  }
  std::size_t index(std::uint64_t key) const {
    return (key * 0x9e3779b97f4a7c15U >> 32) & (slots_.size() - 1);
  }
  std::vector<Slot> slots_;
};

// The texts of all tokens, one behind the other: as strings of their own they and an index of them
// took 5 MB for 49,000 tokens.
class TokenTexts {
 public:
  void push_back(std::string_view text) {
    all_ += text;
    ends_.push_back(all_.size());
  }
  void shrink_to_fit() {
    all_.shrink_to_fit();
    ends_.shrink_to_fit();
  }
  std::size_t size() const { return ends_.size(); }
  std::string_view operator[](TokenId token) const {
    const auto i = static_cast<std::size_t>(token);
    const std::size_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(all_).substr(begin, ends_[i] - begin);
  }

 private:
  std::string all_;
  std::vector<std::size_t> ends_;
};

// Text -> token. Open addressing; a slot is a token, whose text is in TokenTexts.
class TextIndex {
 public:
  explicit TextIndex(std::size_t count = 0)
      : slots_(std::bit_ceil(std::max<std::size_t>(16, count * 2)), kEmpty) {}

  // False: another token has this text already, and keeps it.
  bool insert(const TokenTexts& texts, TokenId token) {
    TokenId& slot = slots_[place(texts, texts[token])];
    if (slot != kEmpty) return false;
    slot = token;
    return true;
  }
  // -1: none.
  TokenId find(const TokenTexts& texts, std::string_view text) const {
    return slots_[place(texts, text)];
  }

 private:
  static constexpr TokenId kEmpty = -1;
  std::size_t place(const TokenTexts& texts, std::string_view text) const {
    std::size_t i = std::hash<std::string_view>{}(text) & (slots_.size() - 1);
    while (slots_[i] != kEmpty && texts[slots_[i]] != text) i = (i + 1) & (slots_.size() - 1);
    return i;
  }
  std::vector<TokenId> slots_;
};

struct Vocabulary {
  TokenTexts bytes;  // of special tokens, their text
  std::vector<bool> is_special;
  TokenMap specials;
  TextIndex by_bytes;  // ordinary tokens only: text can never become a special token
  std::array<TokenId, 256> byte_token{};
  TokenId bos = -1;
  bool add_bos = false;
  std::vector<TokenId> ends;
};

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(Vocabulary vocab, MergeTable merges, std::unique_ptr<Pretokenizer> pre)
      : vocab_(std::move(vocab)), merges_(std::move(merges)), pre_(std::move(pre)) {}

  std::vector<TokenId> encode(std::string_view text) const override {
    std::vector<std::string_view> pieces;
    pre_->split(text, &pieces);
    std::vector<TokenId> out;
    out.reserve(pieces.size() + pieces.size() / 4);
    Scratch scratch;
    for (std::string_view piece : pieces) encode_piece(piece, &scratch, &out);
    return out;
  }

  TokenId special(std::string_view text) const override {
    const auto found = vocab_.specials.find(text);
    return found == vocab_.specials.end() ? -1 : found->second;
  }

  std::string decode(TokenId token, bool with_special) const override {
    if (token < 0 || static_cast<std::size_t>(token) >= vocab_.bytes.size()) return "";
    const bool hidden = vocab_.is_special[static_cast<std::size_t>(token)] && !with_special;
    return hidden ? "" : std::string(vocab_.bytes[token]);
  }

  std::uint32_t vocab_size() const override {
    return static_cast<std::uint32_t>(vocab_.bytes.size());
  }
  TokenId bos() const override { return vocab_.bos; }
  bool add_bos() const override { return vocab_.add_bos; }
  bool is_end(TokenId token) const override {
    return std::find(vocab_.ends.begin(), vocab_.ends.end(), token) != vocab_.ends.end();
  }

 private:
  struct Symbol {
    TokenId token;  // -1: merged into its left neighbour
    std::int32_t previous, next;
  };
  struct Candidate {
    std::uint32_t rank;
    std::int32_t left;
    TokenId left_token, right_token, merged;
    // The queue gives the largest: least rank first, then leftmost.
    bool operator<(const Candidate& o) const {
      return rank != o.rank ? rank > o.rank : left > o.left;
    }
  };
  struct Scratch {
    std::vector<TokenId> tokens;
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  void encode_piece(std::string_view piece, Scratch* scratch, std::vector<TokenId>* out) const {
    if (pre_->ignore_merges()) {
      if (const TokenId whole = vocab_.by_bytes.find(vocab_.bytes, piece); whole >= 0) {
        out->push_back(whole);
        return;
      }
    }
    // Bytes without a token go first, so that their neighbours may merge: the reference
    // implementation's order.
    std::vector<TokenId>& tokens = scratch->tokens;
    tokens.clear();
    for (char c : piece) {
      const TokenId token = vocab_.byte_token[static_cast<unsigned char>(c)];
      if (token >= 0) tokens.push_back(token);
    }
    // Words are short: a scan beats the queue there, and the queue keeps long pieces from being
    // quadratic.
    constexpr std::size_t kScanned = 48;
    if (tokens.size() <= kScanned) {
      merge_by_scan(&tokens);
      out->insert(out->end(), tokens.begin(), tokens.end());
    } else {
      merge_by_queue(scratch, out);
    }
  }

  void merge_by_scan(std::vector<TokenId>* tokens) const {
    while (tokens->size() > 1) {
      std::size_t best = 0;
      const MergeTable::Merge* merge = nullptr;
      for (std::size_t i = 0; i + 1 < tokens->size(); ++i) {
        const MergeTable::Merge* m = merges_.find((*tokens)[i], (*tokens)[i + 1]);
        if (m != nullptr && (merge == nullptr || m->rank < merge->rank)) {
          merge = m;
          best = i;
        }
      }
      if (merge == nullptr) return;
      (*tokens)[best] = merge->token;
      tokens->erase(tokens->begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
  }

  void merge_by_queue(Scratch* scratch, std::vector<TokenId>* out) const {
    std::vector<Symbol>& symbols = scratch->symbols;
    const auto count = static_cast<std::int32_t>(scratch->tokens.size());
    symbols.clear();
    for (std::int32_t i = 0; i < count; ++i) {
      symbols.push_back(
          {scratch->tokens[static_cast<std::size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1});
    }
    const auto at = [&](std::int32_t i) -> Symbol& { return symbols[static_cast<std::size_t>(i)]; };
    std::vector<Candidate>& heap = scratch->heap;
    heap.clear();
    const auto consider = [&](std::int32_t left) {
      if (left < 0 || at(left).next < 0) return false;
      const TokenId a = at(left).token;
      const TokenId b = at(at(left).next).token;
      const MergeTable::Merge* m = merges_.find(a, b);
      if (m == nullptr) return false;
      heap.push_back({m->rank, left, a, b, m->token});
      return true;
    };
    for (std::int32_t i = 0; i + 1 < count; ++i) consider(i);
    std::make_heap(heap.begin(), heap.end());
    while (!heap.empty()) {
      std::pop_heap(heap.begin(), heap.end());
      const Candidate c = heap.back();
      heap.pop_back();
      Symbol& left = at(c.left);
      // One of the two was merged elsewhere since.
      if (left.token != c.left_token || left.next < 0 || at(left.next).token != c.right_token) {
        continue;
      }
      Symbol& right = at(left.next);
      left.token = c.merged;
      right.token = -1;
      left.next = right.next;
      if (left.next >= 0) at(left.next).previous = c.left;
      if (consider(left.previous)) std::push_heap(heap.begin(), heap.end());
      if (consider(c.left)) std::push_heap(heap.begin(), heap.end());
    }
    for (std::int32_t i = 0; i >= 0; i = at(i).next) out->push_back(at(i).token);
  }

  const Vocabulary vocab_;
  const MergeTable merges_;
  const std::unique_ptr<Pretokenizer> pre_;
};

Status bad(const Gguf& file, const std::string& what) {
  return invalid_argument(file.path() + ": " + what);
}

// The id under `key`, -1 when the file has none.
Result<TokenId> id_of(const Gguf& file, const std::string& key, std::size_t vocab_size) {
  if (file.meta(key) == nullptr) return TokenId{-1};
  const std::optional<std::uint64_t> id = file.meta_uint(key);
  if (!id || *id >= vocab_size) return bad(file, key + " is not in the vocabulary");
  return static_cast<TokenId>(*id);
}

Status read_special_ids(const Gguf& file, Vocabulary* vocab) {
  const std::size_t size = vocab->is_special.size();
  const std::string prefix = "tokenizer.ggml.";
  const Result<TokenId> bos = id_of(file, prefix + "bos_token_id", size);
  if (!bos.ok()) return bos.status();
  vocab->bos = *bos;
  if (*bos >= 0) vocab->is_special[static_cast<std::size_t>(*bos)] = true;
  for (const char* name : {"eos_token_id", "eot_token_id", "eom_token_id"}) {
    const Result<TokenId> id = id_of(file, prefix + name, size);
    if (!id.ok()) return id.status();
    if (*id < 0) continue;
    vocab->ends.push_back(*id);
    vocab->is_special[static_cast<std::size_t>(*id)] = true;
  }
  return {};
}

Status read_tokens(const Gguf& file, Vocabulary* vocab) {
  const auto* tokens = file.meta_strings("tokenizer.ggml.tokens");
  if (tokens == nullptr || tokens->empty()) return bad(file, "no tokenizer.ggml.tokens");
  if (tokens->size() > kMaxVocab) return bad(file, "more than 2^24 tokens");
  const auto* types = file.meta_ints("tokenizer.ggml.token_type");
  if (types != nullptr && types->size() != tokens->size()) {
    return bad(file, "tokenizer.ggml.token_type has " + std::to_string(types->size()) +
                         " elements, tokenizer.ggml.tokens " + std::to_string(tokens->size()));
  }
  vocab->is_special.assign(tokens->size(), false);
  for (std::size_t i = 0; types != nullptr && i < types->size(); ++i) {
    vocab->is_special[i] = (*types)[i] == kControl || (*types)[i] == kUserDefined;
  }
  KVD_RETURN_IF_ERROR(read_special_ids(file, vocab));
  vocab->byte_token.fill(-1);
  vocab->by_bytes = TextIndex(tokens->size());
  for (std::size_t i = 0; i < tokens->size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    const std::string& text = (*tokens)[i];
    if (vocab->is_special[i]) {
      vocab->specials.emplace(text, id);
      vocab->bytes.push_back(text);
      continue;
    }
    // A token that is no byte-level text (padding such as "[PAD7]" is) stays as it is written.
    const std::optional<std::string> bytes = to_bytes(text);
    vocab->bytes.push_back(bytes ? *bytes : text);
    if (!bytes || !vocab->by_bytes.insert(vocab->bytes, id) || bytes->size() != 1) continue;
    vocab->byte_token[static_cast<unsigned char>((*bytes)[0])] = id;
  }
  vocab->bytes.shrink_to_fit();
  for (std::string_view name : kEndNames) {
    if (const auto found = vocab->specials.find(name); found != vocab->specials.end()) {
      vocab->ends.push_back(found->second);
    }
  }
  return {};
}

Result<MergeTable> read_merges(const Gguf& file, const Vocabulary& vocab) {
  const auto* merges = file.meta_strings("tokenizer.ggml.merges");
  if (merges == nullptr) return bad(file, "no tokenizer.ggml.merges");
  MergeTable table(merges->size());
  for (std::size_t rank = 0; rank < merges->size(); ++rank) {
    const std::string& text = (*merges)[rank];
    const std::size_t blank = text.find(' ', 1);
    const auto id = [&](std::string_view part) -> TokenId {
      const std::optional<std::string> bytes = to_bytes(part);
      return bytes ? vocab.by_bytes.find(vocab.bytes, *bytes) : TokenId{-1};
    };
    TokenId left = -1;
    TokenId right = -1;
    TokenId merged = -1;
    if (blank != std::string::npos) {
      const std::string_view view(text);
      left = id(view.substr(0, blank));
      right = id(view.substr(blank + 1));
      merged = id(text.substr(0, blank) + text.substr(blank + 1));
    }
    if (left < 0 || right < 0 || merged < 0) {
      return bad(file, "merge " + std::to_string(rank) +
                           " of tokenizer.ggml.merges is not two tokens that make a third");
    }
    table.insert(left, right, {static_cast<std::uint32_t>(rank), merged});
  }
  return table;
}

class ByteTokenizer final : public Tokenizer {
 public:
  static constexpr TokenId kEnd = 256;

  std::vector<TokenId> encode(std::string_view text) const override {
    std::vector<TokenId> out;
    out.reserve(text.size());
    for (char c : text) out.push_back(static_cast<unsigned char>(c));
    return out;
  }
  TokenId special(std::string_view text) const override { return text == "<|end|>" ? kEnd : -1; }
  std::string decode(TokenId token, bool with_special) const override {
    if (token == kEnd && with_special) return "<|end|>";
    if (token < 0 || token >= kEnd) return "";
    return std::string(1, static_cast<char>(token));
  }
  std::uint32_t vocab_size() const override { return kEnd + 1; }
  TokenId bos() const override { return -1; }
  bool add_bos() const override { return false; }
  bool is_end(TokenId token) const override { return token == kEnd; }
};

}  // namespace

Result<std::unique_ptr<Tokenizer>> make_bpe_tokenizer(const Gguf& file) {
  const std::string model = file.meta_string("tokenizer.ggml.model").value_or("");
  if (model != "gpt2") {
    return bad(file, "tokenizer model '" + model.substr(0, 64) +
                         "' is not supported; take a model with byte-level BPE (gpt2)");
  }
  Result<std::unique_ptr<Pretokenizer>> pre =
      make_pretokenizer(file.meta_string("tokenizer.ggml.pre").value_or("default"));
  if (!pre.ok()) return pre.status().with_context(file.path());
  Vocabulary vocab;
  KVD_RETURN_IF_ERROR(read_tokens(file, &vocab));
  vocab.add_bos =
      vocab.bos >= 0 &&
      file.meta_bool("tokenizer.ggml.add_bos_token").value_or((*pre)->add_bos_default());
  Result<MergeTable> merges = read_merges(file, vocab);
  if (!merges.ok()) return merges.status();
  return std::unique_ptr<Tokenizer>(
      new BpeTokenizer(std::move(vocab), std::move(merges).value(), std::move(pre).value()));
}

std::unique_ptr<Tokenizer> make_byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

}  // namespace kvd::engine
