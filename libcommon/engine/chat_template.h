// Chat messages -> prompt tokens. Built-in formats, chosen by markers in the file's template or by name.
// The template's own strings become special tokens; the messages' text never does.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "engine/tokenizer.h"

namespace kvd::engine {

struct ChatMessage {
  std::string role;
  std::string content;
};

class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;
  virtual std::string name() const = 0;
  // kInvalidArgument: a role the template does not know, no messages.
  virtual Result<std::vector<TokenId>> apply(std::span<const ChatMessage> messages,
                                             bool add_generation_prompt) const = 0;
  // The same as text, for logs and tests.
  virtual Result<std::string> render(std::span<const ChatMessage> messages,
                                     bool add_generation_prompt) const = 0;
};

// `name` empty: by the template in the file; without a known one apply() fails with what to do.
// The tokenizer must outlive the template.
Result<std::unique_ptr<ChatTemplate>> make_chat_template(const std::string& file_template,
                                                         const std::string& name,
                                                         const Tokenizer* tokenizer);

}  // namespace kvd::engine
