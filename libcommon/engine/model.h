// One forward step over a batch of sequences whose KV lies in pages. Implemented by cpu/ (Llama
// family) and mock/.
//
// Calling thread: the engine's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/status.h"
#include "kv/layout.h"

namespace kvd::engine {

// Some consecutive tokens of one sequence in this step, which has one segment of it.
struct Segment {
  std::span<const TokenId> tokens;
  std::uint32_t position = 0;        // of tokens[0]; the KV of earlier tokens is in the pages
  std::span<const PageIndex> pages;  // of the sequence, covering position + tokens.size()
  bool want_logits = false;          // of the last token of the segment
  std::uint64_t sequence = 0;        // the request's id
  // All tokens of the sequence up to the end of `tokens` (mock: they make the pages' pattern).
  std::span<const TokenId> history;
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const kv::KvLayout& layout() const = 0;
  virtual std::uint32_t vocab() const = 0;
  virtual void attach_pool(std::byte* base, std::uint32_t page_count) = 0;

  // Runs the step. Decode rows are segments of one token. `*logits` gets vocab() floats for each
  // segment that wants them, in order, one after the other; the memory is the model's and lives
  // until the next call. After layer l's K and V of all segments are in the pages, `on_layer(l)` is
  // called (null: not at all); it must be quick. An error means that a sequence's pages are
  // unreadable or corrupt (mock); it names the segment.
  struct StepError {
    std::size_t segment = 0;
    Status status;
  };
  virtual std::vector<StepError> forward(std::span<const Segment> segments,
                                         const std::function<void(std::uint32_t)>& on_layer,
                                         std::span<const float>* logits) = 0;
};

}  // namespace kvd::engine
