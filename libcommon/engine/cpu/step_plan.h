// What one step computes, laid out before the threads start: its rows, and the attention work cut
// into pieces. Cutting never changes a result (kernels.h); it only spreads work.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/model.h"

namespace kvd::engine::cpu {

// One token of the step.
struct StepRow {
  TokenId token;
  std::uint32_t position;
  std::uint64_t page;  // where its K and V go
};

// Query rows that share a KV head, against blocks [block_begin, block_end).
struct AttentionTask {
  const PageIndex* pages;
  std::uint32_t row;       // first row in the step
  std::uint32_t tokens;    // neighbouring rows
  std::uint32_t position;  // of the first
  std::uint32_t kv_head;
  std::uint32_t block_begin, block_end;
  bool split;           // one token's runs of blocks go to a task each: results stay partial
  std::size_t partial;  // split: index of the run's first partial
};

// A row whose runs were split.
struct MergeTask {
  std::uint32_t row;
  std::uint32_t kv_head;
  std::uint32_t runs;
  std::size_t partial;
};

constexpr std::uint32_t kTaskRows =
    96;  // query rows a task: keeps its state in the second-level cache

class StepPlan {
 public:
  void build(std::span<const Segment> segments, std::uint32_t page_size, std::uint32_t kv_heads,
             std::uint32_t group, std::uint32_t threads);

  std::size_t rows() const { return rows_.size(); }
  const StepRow& row(std::size_t index) const { return rows_[index]; }
  // No segment has more than one token: nobody but a row itself reads its K and V.
  bool single_tokens() const { return single_tokens_; }
  // Rows whose logits are wanted, in order.
  std::span<const std::uint32_t> wanted() const { return wanted_; }
  std::span<const AttentionTask> tasks() const { return tasks_; }
  std::span<const MergeTask> merges() const { return merges_; }
  std::size_t partial_rows() const { return partial_rows_; }

 private:
  void add_prefill(const Segment& segment, std::uint32_t row, std::uint32_t kv_heads,
                   std::uint32_t group);
  void add_decode(const Segment& segment, std::uint32_t row, std::uint32_t kv_heads,
                  std::uint32_t group, bool spread);

  std::vector<StepRow> rows_;
  std::vector<std::uint32_t> wanted_;
  std::vector<AttentionTask> tasks_;
  std::vector<MergeTask> merges_;
  std::size_t partial_rows_ = 0;
  bool single_tokens_ = false;
};

}  // namespace kvd::engine::cpu
