// An engine without a model: the pages and steps of a real one, at any size and speed. It serves
// tests under load.
//
// K and V of each token are a pattern of (all tokens up to it, layer, K|V, head, place), so equal
// prompts give equal pages on every host, and a byte from elsewhere is seen: each decode step
// compares one 64-byte line of each of the sequence's pages, another one each step, and a
// difference is a StepError kCorrupted. The next token is printable and depends on all tokens
// before it.
//
// Calling thread: the engine's; interrupt() any. The pool's memory is the caller's.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "engine/chat_template.h"
#include "engine/model.h"

namespace kvd::engine {

struct MockShape {
  std::string name;
  kv::KvLayout layout;
  std::uint32_t context = 0;
};
// A built-in shape: smollm2-135m, llama-3.1-8b, llama-3.1-70b, qwen3-32b, tiny.
// kInvalidArgument names them.
Result<MockShape> find_mock_shape(const std::string& name, std::uint32_t page_size);

class MockModel final : public Model {
 public:
  // A step takes `us_per_token` for each of its tokens, spread evenly over the layers.
  MockModel(const MockShape& shape, double us_per_token);

  const kv::KvLayout& layout() const override { return shape_.layout; }
  std::uint32_t vocab() const override;
  void attach_pool(std::byte* base, std::uint32_t page_count) override;
  std::vector<StepError> forward(std::span<const Segment> segments,
                                 const std::function<void(std::uint32_t)>& on_layer,
                                 std::span<const float>* logits) override;
  // Ends the wait of the step in progress and of all later ones.
  void interrupt();

 private:
  void write_token(std::byte* page, std::uint32_t layer, std::uint32_t slot,
                   std::uint64_t hash) const;
  Status verify(const Segment& segment, std::span<const std::uint64_t> hashes) const;
  void wait_until(TimePoint due);

  const MockShape shape_;
  const double us_per_token_;
  std::byte* pool_ = nullptr;
  std::vector<float> logits_;
  const SteadyClock clock_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool interrupted_ = false;
};

// "role: content", a line each: the mock's tokenizer has no special tokens to mark turns with.
std::unique_ptr<ChatTemplate> make_mock_chat_template(const Tokenizer* tokenizer);

}  // namespace kvd::engine
