#include "engine/chat_template.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "engine/utf8.h"

namespace kvd::engine {
namespace {

// A prompt in the making: special strings and text in turn. Neighbouring text is one run, as it is
// when the reference implementation tokenises between special tokens.
class Prompt {
 public:
  void special(std::string_view text) { runs_.push_back({std::string(text), true}); }
  void text(std::string_view text) {
    if (runs_.empty() || runs_.back().special) runs_.push_back({"", false});
    runs_.back().text += text;
  }
  std::string render() const {
    std::string out;
    for (const Run& run : runs_) out += run.text;
    return out;
  }
  Result<std::vector<TokenId>> encode(const Tokenizer& tokenizer) const {
    std::vector<TokenId> out;
    for (const Run& run : runs_) {
      if (!run.special) {
        const std::vector<TokenId> tokens = tokenizer.encode(run.text);
        out.insert(out.end(), tokens.begin(), tokens.end());
        continue;
      }
      const TokenId token = tokenizer.special(run.text);
      if (token < 0) return internal_error("the tokenizer lost the token " + run.text);
      out.push_back(token);
    }
    return out;
  }

 private:
  struct Run {
    std::string text;
    bool special;
  };
  std::vector<Run> runs_;
};

using Messages = std::span<const ChatMessage>;

// What Jinja's `trim` strips: Python's whitespace.
bool is_blank(std::uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
         c == 0x205f || c == 0x3000;
}

std::string_view trim(std::string_view text) {
  std::size_t begin = text.size();
  std::size_t end = 0;
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Step step = utf8_step(text.substr(i));
    if (!step.valid || !is_blank(step.code)) {
      begin = std::min(begin, i);
      end = i + step.bytes;
    }
    i += step.bytes;
  }
  return begin < end ? text.substr(begin, end - begin) : std::string_view{};
}

void chatml_turn(Prompt* prompt, std::string_view role, std::string_view content) {
  prompt->special("<|im_start|>");
  prompt->text(role);
  prompt->text("\n");
  prompt->text(content);
  prompt->special("<|im_end|>");
  prompt->text("\n");
}

void chatml(Prompt* prompt, Messages messages, bool generate, std::string_view system) {
  if (!system.empty() && messages[0].role != "system") chatml_turn(prompt, "system", system);
  for (const ChatMessage& m : messages) chatml_turn(prompt, m.role, m.content);
  if (!generate) return;
  prompt->special("<|im_start|>");
  prompt->text("assistant\n");
}

void llama3_turn(Prompt* prompt, std::string_view role, std::string_view head,
                 std::string_view content) {
  prompt->special("<|start_header_id|>");
  prompt->text(role);
  prompt->special("<|end_header_id|>");
  prompt->text("\n\n");
  prompt->text(head);
  prompt->text(content);
  prompt->special("<|eot_id|>");
}

// `system_head`: what Llama 3.1 and later put before the system text, which is then always there.
void llama3(Prompt* prompt, Messages messages, bool generate, std::string_view system_head) {
  prompt->special("<|begin_of_text|>");
  if (!system_head.empty()) {
    std::string_view system;
    if (messages[0].role == "system") {
      system = trim(messages[0].content);
      messages = messages.subspan(1);
    }
    llama3_turn(prompt, "system", system_head, system);
  }
  for (const ChatMessage& m : messages) llama3_turn(prompt, m.role, "", trim(m.content));
  if (!generate) return;
  prompt->special("<|start_header_id|>");
  prompt->text("assistant");
  prompt->special("<|end_header_id|>");
  prompt->text("\n\n");
}

// No special tokens: for models without a chat format, and for the mock engine's bytes.
void plain(Prompt* prompt, Messages messages, bool generate, std::string_view) {
  for (const ChatMessage& m : messages) {
    prompt->text(m.role);
    prompt->text(": ");
    prompt->text(m.content);
    prompt->text("\n");
  }
  if (generate) prompt->text("assistant:");
}

struct Format {
  std::string_view name;
  // In a file's template all of these choose the format; the first format that fits is taken.
  std::array<std::string_view, 2> markers;
  std::array<std::string_view, 4> specials;
  std::array<std::string_view, 4> roles;
  void (*write)(Prompt*, Messages, bool, std::string_view);
  std::string_view argument;
};

constexpr std::array<std::string_view, 4> kChatmlSpecials{"<|im_start|>", "<|im_end|>"};
constexpr std::array<std::string_view, 4> kLlama3Specials{
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"};
constexpr std::array<std::string_view, 4> kPlainRoles{"system", "user", "assistant"};
constexpr std::array<std::string_view, 4> kToolRoles{"system", "user", "assistant", "tool"};
constexpr std::string_view kSmolLm2 =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
constexpr std::string_view kQwen25 =
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";
constexpr std::string_view kQwen2 = "You are a helpful assistant.";
// The templates' own default, used by everyone who passes no date.
constexpr std::string_view kLlama31Head =
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";

constexpr std::array<Format, 7> kFormats{{
    {"chatml", {"<|im_start|>", kSmolLm2}, kChatmlSpecials, kToolRoles, chatml, kSmolLm2},
    {"qwen2", {"<|im_start|>", kQwen25}, kChatmlSpecials, kPlainRoles, chatml, kQwen25},
    {"qwen2.0", {"<|im_start|>system", kQwen2}, kChatmlSpecials, kPlainRoles, chatml, kQwen2},
    {"chatml-bare", {"<|im_start|>", "<|im_end|>"}, kChatmlSpecials, kToolRoles, chatml, ""},
    {"llama3.1",
     {"<|start_header_id|>", "Cutting Knowledge Date"},
     kLlama3Specials,
     kPlainRoles,
     llama3,
     kLlama31Head},
    {"llama3", {"<|start_header_id|>", "<|eot_id|>"}, kLlama3Specials, kPlainRoles, llama3, ""},
    {"plain", {}, {}, kPlainRoles, plain, ""},
}};

std::string names() {
  std::string out;
  for (const Format& f : kFormats) out += (out.empty() ? "" : ", ") + std::string(f.name);
  return out;
}

bool fits(const Format& format, std::string_view file_template) {
  const auto has = [&](std::string_view text) {
    return file_template.find(text) != std::string_view::npos;
  };
  // Templates with a system text of their own, or that cut thoughts out of history, look like
  // ChatML.
  if (format.name == "chatml-bare" && (has("<|im_start|>system") || has("think>"))) return false;
  if (format.markers[0].empty()) return false;
  return std::all_of(format.markers.begin(), format.markers.end(), has);
}

class FormatTemplate final : public ChatTemplate {
 public:
  FormatTemplate(const Format& format, const Tokenizer* tokenizer)
      : format_(format), tokenizer_(tokenizer) {}

  std::string name() const override { return std::string(format_.name); }

  Result<std::vector<TokenId>> apply(Messages messages, bool generate) const override {
    KVD_RETURN_IF_ERROR(check(messages));
    Prompt prompt;
    format_.write(&prompt, messages, generate, format_.argument);
    return prompt.encode(*tokenizer_);
  }
  Result<std::string> render(Messages messages, bool generate) const override {
    KVD_RETURN_IF_ERROR(check(messages));
    Prompt prompt;
    format_.write(&prompt, messages, generate, format_.argument);
    return prompt.render();
  }

 private:
  Status check(Messages messages) const {
    if (messages.empty()) return invalid_argument("messages is empty; give at least one");
    for (const ChatMessage& m : messages) {
      const auto& roles = format_.roles;
      if (!m.role.empty() && std::find(roles.begin(), roles.end(), m.role) != roles.end()) continue;
      std::string known;
      for (std::string_view role : roles) {
        if (!role.empty()) known += (known.empty() ? "" : ", ") + std::string(role);
      }
      return invalid_argument("a message has a role that the chat template " + name() +
                              " does not know; use one of: " + known);
    }
    return {};
  }

  const Format& format_;
  const Tokenizer* const tokenizer_;
};

// Completions work without a template; only chats are refused.
class NoTemplate final : public ChatTemplate {
 public:
  explicit NoTemplate(Status why) : why_(std::move(why)) {}
  std::string name() const override { return ""; }
  Result<std::vector<TokenId>> apply(Messages, bool) const override { return why_; }
  Result<std::string> render(Messages, bool) const override { return why_; }

 private:
  const Status why_;
};

Status missing_special(const Format& format, const Tokenizer& tokenizer) {
  for (std::string_view special : format.specials) {
    if (special.empty() || tokenizer.special(special) >= 0) continue;
    return invalid_argument(
        "the chat template " + std::string(format.name) + " needs the token " +
        std::string(special) +
        ", which the model does not have; choose another --chat-template: " + names());
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<ChatTemplate>> make_chat_template(const std::string& file_template,
                                                         const std::string& name,
                                                         const Tokenizer* tokenizer) {
  const auto found = std::find_if(kFormats.begin(), kFormats.end(), [&](const Format& f) {
    return name.empty() ? fits(f, file_template) : f.name == name;
  });
  if (found == kFormats.end()) {
    if (!name.empty()) {
      return invalid_argument("unknown chat template '" + name.substr(0, 64) +
                              "'; choose one of: " + names());
    }
    const std::string what = file_template.empty() ? "the model has no chat template"
                                                   : "the model's chat template is not known";
    return std::unique_ptr<ChatTemplate>(new NoTemplate(
        invalid_argument(what + "; start the worker with --chat-template, one of: " + names())));
  }
  const Status missing = missing_special(*found, *tokenizer);
  if (missing.ok()) return std::unique_ptr<ChatTemplate>(new FormatTemplate(*found, tokenizer));
  if (!name.empty()) return missing;
  return std::unique_ptr<ChatTemplate>(new NoTemplate(missing));
}

}  // namespace kvd::engine
