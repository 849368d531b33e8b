// kvd_golden_text --model FILE --golden DIR: the tokenizer and the chat template of a model file
// against the token ids that independent implementations gave (tokenizer.jsonl, chat.jsonl). Exit
// 0: all match; 1: not; 2: usage; 77: a file is missing.
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/chat_template.h"
#include "engine/gguf.h"
#include "engine/tokenizer.h"

namespace {

using kvd::TokenId;
using nlohmann::json;
using Ids = std::vector<TokenId>;

struct Tally {
  int cases = 0, checks = 0, failures = 0;

  void expect(bool ok, const json& line, const std::string& what) {
    ++checks;
    if (ok) return;
    ++failures;
    std::cerr << line.at("id").get<std::string>() << ": " << what << "\n";
  }
};

std::string to_hex(const std::string& bytes) {
  std::string out;
  for (char c : bytes) {
    constexpr const char* kDigits = "0123456789abcdef";
    out += kDigits[static_cast<unsigned char>(c) >> 4];
    out += kDigits[static_cast<unsigned char>(c) & 15];
  }
  return out;
}

void check_text(const kvd::engine::Tokenizer& tokenizer, const json& line, Tally* tally) {
  const auto text = line.at("text").get<std::string>();
  const Ids ids = tokenizer.encode(text);
  tally->expect(ids == line.at("ids").get<Ids>(), line, "ids differ: " + json(ids).dump());
  const std::string decoded = tokenizer.decode_all(ids);
  tally->expect((decoded == text) == line.at("roundtrip").get<bool>(), line, "roundtrip differs");
  if (line.contains("decoded_hex")) {
    tally->expect(to_hex(decoded) == line.at("decoded_hex").get<std::string>(), line,
                  "decoded bytes differ: " + to_hex(decoded));
  }
  // Token by token, as a stream gives it out.
  kvd::engine::TextStream stream(&tokenizer, {});
  std::string streamed;
  for (TokenId id : ids) streamed += stream.push(id);
  streamed += stream.finish();
  if (line.at("roundtrip").get<bool>()) tally->expect(streamed == text, line, "stream differs");
}

void check_chat(const kvd::engine::ChatTemplate& chat, const json& line, Tally* tally) {
  std::vector<kvd::engine::ChatMessage> messages;
  for (const json& m : line.at("messages")) {
    messages.push_back({m.at("role").get<std::string>(), m.at("content").get<std::string>()});
  }
  const bool generate = line.at("add_generation_prompt").get<bool>();
  const auto rendered = chat.render(messages, generate);
  tally->expect(rendered.ok() && *rendered == line.at("rendered").get<std::string>(), line,
                "rendered text differs");
  const auto ids = chat.apply(messages, generate);
  tally->expect(ids.ok() && *ids == line.at("ids").get<Ids>(), line,
                "ids differ: " + (ids.ok() ? json(*ids).dump() : ids.status().message()));
}

bool run(const std::filesystem::path& path, const std::function<void(const json&, Tally*)>& check) {
  Tally tally;
  std::ifstream file(path);
  for (std::string text; std::getline(file, text);) {
    if (text.empty()) continue;
    ++tally.cases;
    check(json::parse(text), &tally);
  }
  std::cout << path.filename().string() << ": " << tally.cases << " cases, " << tally.checks
            << " checks, " << tally.failures << " failures\n";
  return tally.cases > 0 && tally.failures == 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::string model;
  std::filesystem::path golden;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--model") model = argv[i + 1];
    if (flag == "--golden") golden = argv[i + 1];
  }
  if (model.empty() || golden.empty()) {
    std::cerr << "usage: kvd_golden_text --model FILE --golden DIR\n";
    return 2;
  }
  for (const auto& path :
       {std::filesystem::path(model), golden / "tokenizer.jsonl", golden / "chat.jsonl"}) {
    if (std::filesystem::exists(path)) continue;
    std::cerr << "skipped: " << path.string() << " is not there\n";
    return 77;
  }
  const auto file = kvd::engine::Gguf::open(model);
  if (!file.ok()) {
    std::cerr << file.status().message() << "\n";
    return 1;
  }
  const auto tokenizer = kvd::engine::make_bpe_tokenizer(*file);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status().message() << "\n";
    return 1;
  }
  const auto chat = kvd::engine::make_chat_template(
      file->meta_string("tokenizer.chat_template").value_or(""), "", tokenizer->get());
  if (!chat.ok()) {
    std::cerr << chat.status().message() << "\n";
    return 1;
  }
  const bool text_ok = run(golden / "tokenizer.jsonl", [&](const json& line, Tally* tally) {
    check_text(**tokenizer, line, tally);
  });
  const bool chat_ok = run(golden / "chat.jsonl", [&](const json& line, Tally* tally) {
    check_chat(**chat, line, tally);
  });
  return text_ok && chat_ok ? 0 : 1;
}
