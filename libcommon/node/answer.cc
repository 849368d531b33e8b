#include "node/answer.h"

#include <algorithm>
#include <ctime>
#include <variant>

#include "base/ids.h"
#include "base/rng.h"

namespace kvd::node {
namespace {

// Of valid UTF-8: every byte but the continuation bytes.
std::uint32_t characters(const std::string& text) {
  return static_cast<std::uint32_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

Answer::Answer(const PreparedRequest& request, const std::string& model,
               const engine::Tokenizer* tokenizer, std::shared_ptr<http::Responder> responder)
    : tokenizer_(tokenizer),
      responder_(std::move(responder)),
      renderer_(request.api.chat,
                (request.api.chat ? "chatcmpl-" : "cmpl-") + hex(secure_random_u64()),
                std::time(nullptr), model),
      chat_(request.api.chat),
      stream_(request.api.stream),
      include_usage_(request.api.include_usage),
      logprobs_(request.api.sampling.logprobs),
      choices_(request.items()),
      infos_(request.items()) {
  for (std::size_t i = 0; i < choices_.size(); ++i) {
    Part& part = choices_[i];
    part.choice.index = static_cast<std::uint32_t>(i);
    part.choice.logprobs = logprobs_;
    if (request.api.echo && !chat_) {
      const std::size_t prompt = i / request.api.n;
      const auto* text = std::get_if<std::string>(&request.api.prompts[prompt]);
      part.choice.text = text != nullptr ? *text : tokenizer_->decode_all(request.prompts[prompt]);
      part.offset = characters(part.choice.text);
    }
  }
  for (const auto& prompt : request.prompts) {
    prompt_tokens_ += static_cast<std::uint32_t>(prompt.size());
  }
}

void Answer::start() {
  if (started_) return;
  started_ = true;
  if (!stream_) return;
  responder_->begin(200, "text/event-stream", {{"cache-control", "no-cache"}});
  if (!chat_) return;
  for (const Part& part : choices_) responder_->write(renderer_.role_chunk(part.choice.index));
}

void Answer::flush(Part* part) {
  if (!stream_ || (part->choice.text.empty() && part->choice.finish_reason.empty())) return;
  part->choice.text_offset = part->offset;
  responder_->write(renderer_.chunk(part->choice));
  part->offset += characters(part->choice.text);
  part->choice.text.clear();
  part->choice.entries.clear();
}

void Answer::token(std::size_t index, const SampledToken& token, const std::string& text) {
  start();
  Part& part = choices_[index];
  ++part.tokens;
  part.choice.text += text;
  infos_[index].token_ids.push_back(token.id);
  if (logprobs_) {
    http::LogprobEntry entry{tokenizer_->decode(token.id, true), token.logprob, {}};
    for (const TokenLogprob& top : token.top) {
      entry.top.emplace_back(tokenizer_->decode(top.id, true), top.logprob);
    }
    part.choice.entries.push_back(std::move(entry));
  }
  flush(&part);
}

void Answer::finish(std::size_t index, engine::FinishReason reason, const std::string& text) {
  start();
  Part& part = choices_[index];
  part.choice.text += text;
  part.choice.finish_reason = reason == engine::FinishReason::kLength ? "length" : "stop";
  ++finished_;
  flush(&part);
}

void Answer::complete() {
  http::Usage usage;
  usage.prompt_tokens = prompt_tokens_;
  for (const Part& part : choices_) usage.completion_tokens += part.tokens;
  if (!stream_) {
    std::vector<http::Choice> choices;
    for (Part& part : choices_) {
      part.choice.text_offset = part.offset;
      choices.push_back(std::move(part.choice));
    }
    responder_->send(200, "application/json", renderer_.whole(choices, usage, infos_));
    return;
  }
  std::string tail;
  if (include_usage_) tail = renderer_.usage_chunk(usage, infos_);
  if (!tail.empty()) responder_->write(std::move(tail));
  // One write: SGLang's router closes the connection as soon as it sees [DONE].
  responder_->finish_with(http::Renderer::done());
}

void Answer::fail(const Status& status, int http_status) {
  if (stream_ && started_) {
    responder_->write(renderer_.error_chunk(status));
    responder_->abort();
    return;
  }
  responder_->send(http_status, "application/json", http::error_body(status));
}

}  // namespace kvd::node
