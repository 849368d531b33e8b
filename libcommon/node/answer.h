// The answer to one API request while it is made: whole, or streamed token by token.
//
// Nothing goes out before the first token of any choice, so that whoever owns the client's
// connection may still retry until then. Calling thread: the event loop's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/engine.h"
#include "http/openai.h"
#include "http/server.h"
#include "node/api.h"

namespace kvd::node {

class Answer {
 public:
  // `tokenizer` must outlive it. `request` is read during the call only.
  Answer(const PreparedRequest& request, const std::string& model,
         const engine::Tokenizer* tokenizer, std::shared_ptr<http::Responder> responder);

  // A token of choice `index`; `text` is what became printable with it.
  void token(std::size_t index, const SampledToken& token, const std::string& text);
  void finish(std::size_t index, engine::FinishReason reason, const std::string& text);
  http::KvdInfo& info(std::size_t index) { return infos_[index]; }
  // Everything is finished: sends the whole answer, or the end of the stream.
  void complete();
  // An error answer; in mid-stream an error event, then the connection is broken.
  void fail(const Status& status, int http_status);

  // Once true, a retry can no longer be hidden from the client.
  bool started() const { return started_; }
  bool all_finished() const { return finished_ == choices_.size(); }

 private:
  struct Part {
    http::Choice choice;       // whole answer so far, or what the next chunk will hold
    std::uint32_t offset = 0;  // characters before `entries` (completions' text_offset)
    std::uint32_t tokens = 0;
  };

  void start();
  void flush(Part* part);

  const engine::Tokenizer* tokenizer_;
  std::shared_ptr<http::Responder> responder_;
  http::Renderer renderer_;
  bool chat_, stream_, include_usage_, logprobs_, started_ = false;
  std::uint32_t prompt_tokens_ = 0;
  std::size_t finished_ = 0;
  std::vector<Part> choices_;
  std::vector<http::KvdInfo> infos_;
};

}  // namespace kvd::node
