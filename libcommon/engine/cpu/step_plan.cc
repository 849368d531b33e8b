#include "engine/cpu/step_plan.h"

#include <algorithm>

#include "engine/cpu/kernels.h"

namespace kvd::engine::cpu {
namespace {

std::uint32_t blocks_for(std::uint32_t tokens) { return (tokens + kKvBlock - 1) / kKvBlock; }

std::uint64_t cost(const AttentionTask& task) {
  return std::uint64_t{task.block_end - task.block_begin} * task.tokens;
}

}  // namespace

void StepPlan::build(std::span<const Segment> segments, std::uint32_t page_size,
                     std::uint32_t kv_heads, std::uint32_t group, std::uint32_t threads) {
  rows_.clear();
  wanted_.clear();
  tasks_.clear();
  merges_.clear();
  partial_rows_ = 0;
  std::size_t single = 0;
  for (const Segment& segment : segments) single += segment.tokens.size() == 1 ? 1 : 0;
  // With many sequences whole rows keep every thread busy; a split then only adds merging.
  const bool spread = threads > 1 && single * kv_heads < std::size_t{threads} * 4;
  for (const Segment& segment : segments) {
    const auto row = static_cast<std::uint32_t>(rows_.size());
    for (std::size_t i = 0; i < segment.tokens.size(); ++i) {
      const std::uint32_t position = segment.position + static_cast<std::uint32_t>(i);
      rows_.push_back({segment.tokens[i], position, segment.pages[position / page_size]});
    }
    if (segment.tokens.size() == 1) {
      add_decode(segment, row, kv_heads, group, spread);
    } else if (!segment.tokens.empty()) {
      add_prefill(segment, row, kv_heads, group);
    }
    if (segment.want_logits) wanted_.push_back(static_cast<std::uint32_t>(rows_.size()) - 1);
  }
  single_tokens_ = single == rows_.size();
  // The longest first, so that no thread starts one when the others are done.
  std::stable_sort(
      tasks_.begin(), tasks_.end(),
      [](const AttentionTask& a, const AttentionTask& b) { return cost(a) > cost(b); });
}

void StepPlan::add_prefill(const Segment& segment, std::uint32_t row, std::uint32_t kv_heads,
                           std::uint32_t group) {
  const auto count = static_cast<std::uint32_t>(segment.tokens.size());
  const std::uint32_t at_once = std::max(1U, kTaskRows / group);
  for (std::uint32_t begin = 0; begin < count; begin += at_once) {
    const std::uint32_t tokens = std::min(at_once, count - begin);
    const std::uint32_t position = segment.position + begin;
    for (std::uint32_t h = 0; h < kv_heads; ++h) {
      tasks_.push_back({segment.pages.data(), row + begin, tokens, position, h, 0,
                        blocks_for(position + tokens), false, 0});
    }
  }
}

void StepPlan::add_decode(const Segment& segment, std::uint32_t row, std::uint32_t kv_heads,
                          std::uint32_t group, bool spread) {
  const std::uint32_t blocks = blocks_for(segment.position + 1);
  for (std::uint32_t h = 0; h < kv_heads; ++h) {
    AttentionTask task{segment.pages.data(), row, 1, segment.position, h, 0, blocks, false, 0};
    if (!spread || blocks <= kRunBlocks) {
      tasks_.push_back(task);
      continue;
    }
    task.split = true;
    merges_.push_back({row, h, (blocks + kRunBlocks - 1) / kRunBlocks, partial_rows_});
    for (std::uint32_t b = 0; b < blocks; b += kRunBlocks, partial_rows_ += group) {
      task.block_begin = b;
      task.block_end = std::min(b + kRunBlocks, blocks);
      task.partial = partial_rows_;
      tasks_.push_back(task);
    }
  }
}

}  // namespace kvd::engine::cpu
