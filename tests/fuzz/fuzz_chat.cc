// Messages of any content give the special tokens of the template and no others; a template of any
// bytes is known or not. The first byte chooses the format, 0x1e separates messages.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "engine/chat_template.h"
#include "engine/gguf.h"
#include "support/tiny_vocabulary.h"

namespace {

using kvd::engine::ChatMessage;
using kvd::engine::ChatTemplate;
using kvd::engine::Tokenizer;

constexpr std::array<const char*, 7> kNames{"chatml",   "qwen2",  "qwen2.0", "chatml-bare",
                                            "llama3.1", "llama3", "plain"};

std::size_t specials(const ChatTemplate& chat, const std::vector<ChatMessage>& messages) {
  const auto ids = chat.apply(messages, true);
  KVD_CHECK(ids.ok());
  return static_cast<std::size_t>(std::count_if(ids->begin(), ids->end(), [](kvd::TokenId id) {
    return id < kvd::test::TinyVocabulary::kFirstByte;
  }));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    const std::vector<std::byte> bytes = kvd::test::TinyVocabulary().file();
    auto made = kvd::engine::make_bpe_tokenizer(kvd::engine::Gguf::parse(bytes, "fuzz").value());
    return std::move(made).value();
  }();
  if (size == 0) return 0;
  std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  const auto guessed = kvd::engine::make_chat_template(std::string(rest), "", tokenizer.get());
  KVD_CHECK(guessed.ok());
  const auto chat =
      kvd::engine::make_chat_template("", kNames[data[0] % kNames.size()], tokenizer.get());
  KVD_CHECK(chat.ok());
  std::vector<ChatMessage> messages;
  std::vector<ChatMessage> empty;
  while (messages.empty() || !rest.empty()) {
    const std::size_t end = std::min(rest.find('\x1e'), rest.size());
    const char* role = messages.size() % 2 == 0 ? "user" : "assistant";
    messages.push_back({role, std::string(rest.substr(0, end))});
    empty.push_back({role, ""});
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  KVD_CHECK(specials(**chat, messages) == specials(**chat, empty));
  return 0;
}
