#include "engine/cpu/llama_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <utility>

#include "engine/cpu/dispatch.h"
#include "engine/cpu/kernels.h"
#include "engine/cpu/llama_weights.h"
#include "engine/cpu/rows.h"
#include "engine/cpu/step_plan.h"
#include "engine/cpu/thread_pool.h"

namespace kvd::engine::cpu {
namespace {

// One matrix product of a phase.
struct Product {
  const Matrix* matrix;
  float* out;
};

// Vector attention takes heads 16 numbers at a time; other head dims use the scalar one.
const Attention& attention_for(const Kernels& kernels, const LlamaConfig& config,
                               const LlamaWeights& weights) {
  if (config.head_dim % 16 != 0) return kScalarKernels.attention;
  const bool quantized = !weights.layers.empty() && is_quantized(weights.layers[0].q.type);
  return quantized ? kernels.attention : kernels.exact_attention;
}

// Products whose input gets offsets (kernels.h): query, key and value, the head, and down, where
// single numbers stand out the most. They are two fifths of a prompt's products and cause three
// quarters of the divergence.
constexpr bool kWithOffsets = true;

// Rows of partials that a thread merges in about the time of a barrier.
constexpr std::size_t kPartialsAlone = 96;

constexpr std::size_t kBlockPanels = kBlock / kPanelRows;

// Makes the quantized form of a row.
void quantize(const Kernels& kernels, const Rows& rows, std::size_t row, bool offsets = false) {
  if (kernels.quantized_row_bytes == nullptr) return;
  kernels.quantize(rows.row(row), rows.columns, 0, rows.columns / kBlock, offsets,
                   rows.quantized_row(row));
}

// The first query row that sees a block.
std::uint32_t first_row(const Queries& queries, std::uint32_t block) {
  const std::uint32_t token = block * kKvBlock;
  return token > queries.position ? (token - queries.position) * queries.group : 0;
}

class LlamaModel final : public CpuModel {
 public:
  LlamaModel(const LlamaConfig& config, LlamaWeights weights, kv::KvLayout layout,
             const Kernels& kernels, std::unique_ptr<ThreadPool> pool);

  const kv::KvLayout& layout() const override { return layout_; }
  std::uint32_t vocab() const override { return config_.vocab; }
  std::uint32_t context() const override { return config_.context; }
  std::uint64_t weight_bytes() const override { return weights_.bytes; }
  std::string kernels() const override { return kernels_.name; }
  void adopt_thread() override { pool_->pin_caller(); }
  void multiply_layers(std::uint32_t rows) override;
  void attach_pool(std::byte* base, std::uint32_t) override { pool_base_ = base; }
  std::vector<StepError> forward(std::span<const Segment> segments,
                                 const std::function<void(std::uint32_t)>& on_layer,
                                 std::span<const float>* logits) override;

 private:
  void reserve(std::size_t rows, std::size_t wanted);
  void make_up(std::uint32_t rows);
  void run(std::uint32_t thread, const std::function<void(std::uint32_t)>& on_layer);
  // Phases. Each is called by all threads alike.
  struct Worker {
    std::uint32_t thread;
    std::byte* scratch;
    Rows* own;  // of this thread, for up to kFewRows
  };
  template <typename Work>
  void share(const Worker& worker, std::size_t items, std::size_t grain, const Work& work,
             ThreadPool::Parts parts = ThreadPool::Parts::kRuns) {
    pool_->share(worker.thread, items, grain, work, parts);
  }
  // share() one by one.
  template <typename Work>
  void each(const Worker& worker, std::size_t items, const Work& work,
            ThreadPool::Parts parts = ThreadPool::Parts::kRuns) {
    const auto piece = [&](std::size_t begin, std::size_t end) {
      for (; begin < end; ++begin) work(begin);
    };
    share(worker, items, 1, piece, parts);
  }
  // share() of a layer's gate and up, in items of kBlock columns of each.
  template <typename Work>
  void share_gated(const Worker& worker, const LlamaLayer& layer, std::size_t rows,
                   const Work& work) {
    const std::size_t items = (layer.gate.panels + kBlockPanels - 1) / kBlockPanels;
    share(worker, items, at_once(items, layer.gate.pair_stride, rows), work, parts_for(rows));
  }
  static ThreadPool::Parts parts_for(std::size_t rows) {
    return rows <= kFewRows ? ThreadPool::Parts::kHalves : ThreadPool::Parts::kRuns;
  }
  // Panels, or what else has `bytes` of weights, of `items` in a piece: an even number where it
  // can, as AMX takes pairs. With few rows no more than some microseconds' reading, which is what
  // one thread may wait for another's last piece.
  std::size_t at_once(std::size_t items, std::size_t bytes, std::size_t rows) const {
    constexpr std::size_t kFewRowsBytes = 96 << 10;
    std::size_t most = items / (std::size_t{pool_->size()} * 6);
    if (rows <= kFewRows) most = std::min(most, kFewRowsBytes / bytes);
    return most > 1 ? most - most % 2 : 1;
  }
  void embed(Worker& worker);
  Activations normalize(Worker& worker, const std::vector<float>& weight, bool offsets = false);
  void multiply(Worker& worker, const Activations& in, std::span<const Product> products,
                std::size_t rows, bool add);
  void rotate_and_store(Worker& worker, std::uint32_t layer);
  void rotate_queries(std::size_t row, std::uint32_t heads, float* query) const;
  void store_key_and_value(std::size_t row, std::uint32_t kv_head, std::uint32_t layer);
  void attend(Worker& worker, std::uint32_t layer);
  // `next`: what the thread does then, most likely; may be null.
  void attend_task(const AttentionTask& task, const AttentionTask* next, std::uint32_t layer,
                   std::byte* scratch);
  KvView view_of(const AttentionTask& task, std::uint32_t layer) const;
  // Partials of a run's blocks, merged to `to`; a block's own are in `partials` meanwhile.
  void attend_run(const KvView& kv, std::uint32_t begin, std::uint32_t end, const Queries& queries,
                  float* to, float* partials, std::byte* scratch) const;
  // Its part of the row's attention output to `out`.
  void merge_row(const MergeTask& task, std::byte* scratch, float* out) const;
  // A split row's few runs are merged by every thread for itself, a barrier less.
  bool merges_alone() const { return few() && plan_.partial_rows() <= kPartialsAlone; }
  Activations quantize_attended(Worker& worker);
  void multiply_gated(Worker& worker, const Activations& in, const LlamaLayer& layer);
  // Gate and up of columns [kBlock * begin, kBlock * end), unless there are fewer.
  void gate_and_up(Worker& worker, const Activations& in, const LlamaLayer& layer,
                   std::uint32_t rows, std::size_t begin, std::size_t end);
  // What is cheap beside a barrier is done by every thread for itself when there are few rows.
  bool few() const { return plan_.rows() <= kFewRows; }
  const Kernels& kernels_for(std::size_t rows) const {
    const bool own = rows <= kFewRows && kernels_.few_rows != nullptr;
    return own ? *kernels_.few_rows : kernels_;
  }
  void project_head(Worker& worker);

  LlamaConfig config_;
  LlamaWeights weights_;
  kv::KvLayout layout_;
  const Kernels& kernels_;
  const Attention& attention_;
  std::unique_ptr<ThreadPool> pool_;
  std::byte* pool_base_ = nullptr;

  // Of the step.
  StepPlan plan_;
  std::uint32_t made_up_ = 0;  // rows of made-up activations, of multiply_layers()
  Buffer<float> residual_, angles_, query_, key_, value_, partials_, logits_, up_;
  Rows normed_, attended_, gate_, last_;
  std::vector<Buffer<std::byte>> scratch_;  // by thread
  std::vector<Rows> own_;                   // by thread
  std::vector<double> frequencies_;         // of each rotated pair, radians a token
};

LlamaModel::LlamaModel(const LlamaConfig& config, LlamaWeights weights, kv::KvLayout layout,
                       const Kernels& kernels, std::unique_ptr<ThreadPool> pool)
    : config_(config),
      weights_(std::move(weights)),
      layout_(std::move(layout)),
      kernels_(kernels),
      attention_(attention_for(kernels, config, weights_)),
      pool_(std::move(pool)),
      scratch_(pool_->size()),
      own_(pool_->size()) {
  for (std::uint32_t i = 0; i < config_.rope_dim / 2; ++i) {
    frequencies_.push_back(std::pow(config_.rope_base, -2.0 * i / config_.rope_dim) /
                           (weights_.rope_factors[i] * config_.rope_scale));
  }
  const std::uint32_t widest =
      std::max({config_.hidden, config_.ffn, config_.heads * config_.head_dim});
  const std::size_t rows = std::size_t{kTaskRows} + config_.group();
  const std::size_t attention =
      attend_scratch_bytes(config_.head_dim) + (std::size_t{config_.group()} * config_.head_dim +
                                                3 * rows * partial_stride(config_.head_dim)) *
                                                   sizeof(float);
  for (Buffer<std::byte>& scratch : scratch_) {
    scratch.reserve(std::max(linear_scratch_bytes(widest), attention));
  }
}

std::vector<Model::StepError> LlamaModel::forward(
    std::span<const Segment> segments, const std::function<void(std::uint32_t)>& on_layer,
    std::span<const float>* logits) {
  plan_.build(segments, layout_.page_size, config_.kv_heads, config_.group(), pool_->size());
  made_up_ = 0;
  reserve(plan_.rows(), plan_.wanted().size());
  if (plan_.rows() != 0) pool_->run([&](std::uint32_t thread) { run(thread, on_layer); });
  *logits = {logits_.get(), plan_.wanted().size() * config_.vocab};
  return {};
}

void LlamaModel::reserve(std::size_t rows, std::size_t wanted) {
  const Kernels& kernels = kernels_for(rows);
  const std::size_t kv_width = std::size_t{config_.kv_heads} * config_.head_dim;
  const std::uint32_t q_width = config_.heads * config_.head_dim;
  residual_.reserve(rows * config_.hidden);
  angles_.reserve(rows * config_.rope_dim);
  query_.reserve(rows * q_width);
  key_.reserve(rows * kv_width);
  value_.reserve(rows * kv_width);
  partials_.reserve(plan_.partial_rows() * partial_stride(config_.head_dim));
  up_.reserve(rows * config_.ffn);
  normed_.reserve(config_.hidden, rows, kernels);
  attended_.reserve(q_width, rows, kernels);
  gate_.reserve(config_.ffn, rows, kernels);
  last_.reserve(config_.hidden, wanted, kernels_for(wanted));
  logits_.reserve(wanted * config_.vocab);
}

void LlamaModel::make_up(std::uint32_t rows) {
  reserve(rows, 0);
  for (const Rows* input : {&normed_, &attended_, &gate_}) {
    for (std::uint32_t row = 0; row < rows; ++row) {
      for (std::uint32_t i = 0; i < input->columns; ++i) {
        input->row(row)[i] = static_cast<float>((row + i * 97) % 255) / 64 - 2;
      }
      quantize(kernels_for(rows), *input, row, kWithOffsets);
    }
  }
  std::fill_n(residual_.get(), std::size_t{rows} * config_.hidden, 0.0F);
  made_up_ = rows;
}

void LlamaModel::multiply_layers(std::uint32_t rows) {
  if (rows == 0) return;
  if (rows != made_up_) make_up(rows);
  pool_->run([&](std::uint32_t thread) {
    Worker worker{thread, scratch_[thread].get(), nullptr};
    const auto times = [&](const Activations& in, std::initializer_list<Product> products,
                           bool add) { multiply(worker, in, products, rows, add); };
    for (const LlamaLayer& layer : weights_.layers) {
      times(normed_.activations(kWithOffsets),
            {{&layer.q, query_.get()}, {&layer.k, key_.get()}, {&layer.v, value_.get()}}, false);
      times(attended_.activations(), {{&layer.attn_output, residual_.get()}}, true);
      share_gated(worker, layer, rows, [&](std::size_t begin, std::size_t end) {
        gate_and_up(worker, normed_.activations(), layer, rows, begin, end);
      });
      times(gate_.activations(kWithOffsets), {{&layer.down, residual_.get()}}, true);
    }
  });
}

// The whole pass, as every thread runs it.
void LlamaModel::run(std::uint32_t thread, const std::function<void(std::uint32_t)>& on_layer) {
  Worker worker{thread, scratch_[thread].get(), &own_[thread]};
  const std::size_t rows = plan_.rows();
  embed(worker);
  for (std::uint32_t l = 0; l < config_.layers; ++l) {
    const LlamaLayer& layer = weights_.layers[l];
    multiply(worker, normalize(worker, layer.attn_norm, kWithOffsets),
             std::array<Product, 3>{
                 {{&layer.q, query_.get()}, {&layer.k, key_.get()}, {&layer.v, value_.get()}}},
             rows, false);
    // With one token a sequence each task of attend() does it for its own, a barrier less.
    const bool together = plan_.single_tokens();
    if (!together) rotate_and_store(worker, l);
    if (!together && thread == 0 && on_layer) on_layer(l);
    attend(worker, l);
    if (together && thread == 0 && on_layer) on_layer(l);
    multiply(worker, quantize_attended(worker),
             std::array<Product, 1>{{{&layer.attn_output, residual_.get()}}}, rows, true);
    multiply_gated(worker, normalize(worker, layer.ffn_norm), layer);
    multiply(worker, gate_.activations(kWithOffsets),
             std::array<Product, 1>{{{&layer.down, residual_.get()}}}, rows, true);
  }
  project_head(worker);
}

void LlamaModel::embed(Worker& worker) {
  const std::uint32_t pairs = config_.rope_dim / 2;
  each(worker, plan_.rows(), [&](std::size_t row) {
    const StepRow& at = plan_.row(row);
    dequantize_row(weights_.embedding, static_cast<std::uint32_t>(at.token),
                   residual_.get() + row * config_.hidden);
    // From angles in double precision: float angles cost 2e-3 in logits at 4,000 tokens.
    float* out = angles_.get() + row * config_.rope_dim;
    for (std::uint32_t i = 0; i < pairs; ++i) {
      const double angle = at.position * frequencies_[i];
      out[2 * i] = static_cast<float>(std::cos(angle));
      out[2 * i + 1] = static_cast<float>(std::sin(angle));
    }
  });
}

// A few rows are normalized by every thread for itself: that takes less time than to wait for
// another.
Activations LlamaModel::normalize(Worker& worker, const std::vector<float>& weight, bool offsets) {
  const Kernels& kernels = kernels_for(plan_.rows());
  const auto normalize_row = [&](std::size_t row, const Rows& to) {
    kernels.rms_norm(residual_.get() + row * config_.hidden, weight.data(), config_.norm_epsilon,
                     config_.hidden, to.row(row));
    quantize(kernels, to, row, offsets);
  };
  if (few()) {
    worker.own->reserve(config_.hidden, plan_.rows(), kernels);
    for (std::size_t row = 0; row < plan_.rows(); ++row) normalize_row(row, *worker.own);
    return worker.own->activations(offsets);
  }
  each(worker, plan_.rows(), [&](std::size_t row) { normalize_row(row, normed_); });
  return normed_.activations(offsets);
}

void LlamaModel::multiply(Worker& worker, const Activations& in, std::span<const Product> products,
                          std::size_t rows, bool add) {
  const Kernels& kernels = kernels_for(rows);
  std::size_t panels = 0;
  for (const Product& product : products) panels += product.matrix->panels;
  const std::size_t grain = at_once(panels, products[0].matrix->panel_bytes, rows);
  const auto multiply_piece = [&](std::size_t begin, std::size_t end) {
    std::size_t base = 0;
    for (const Product& product : products) {
      const Matrix& matrix = *product.matrix;
      const std::size_t from = std::max(begin, base), to = std::min(end, base + matrix.panels);
      if (from < to) {
        kernels.linear(matrix, static_cast<std::uint32_t>(from - base),
                       static_cast<std::uint32_t>(to - base), in, static_cast<std::uint32_t>(rows),
                       product.out, matrix.rows, add, worker.scratch);
      }
      base += matrix.panels;
    }
  };
  share(worker, panels, grain, multiply_piece, parts_for(rows));
}

void LlamaModel::rotate_and_store(Worker& worker, std::uint32_t layer) {
  each(worker, plan_.rows(), [&](std::size_t row) {
    const std::uint32_t q_width = config_.heads * config_.head_dim;
    rotate_queries(row, config_.heads, query_.get() + row * q_width);
    for (std::uint32_t h = 0; h < config_.kv_heads; ++h) store_key_and_value(row, h, layer);
  });
}

void LlamaModel::rotate_queries(std::size_t row, std::uint32_t heads, float* query) const {
  const std::uint32_t dim = config_.head_dim;
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  const float* angles = angles_.get() + row * config_.rope_dim;
  for (std::uint32_t h = 0; h < heads; ++h, query += dim) {
    attention_.rotate(query, angles, config_.rope_dim);
    attention_.prepare_query(query, dim, scale);
  }
}

void LlamaModel::store_key_and_value(std::size_t row, std::uint32_t kv_head, std::uint32_t layer) {
  const std::uint32_t dim = config_.head_dim;
  const StepRow& at = plan_.row(row);
  std::byte* page = pool_base_ + at.page * layout_.page_bytes();
  const std::uint32_t token = at.position % layout_.page_size;
  const std::size_t from = (row * config_.kv_heads + kv_head) * dim;
  attention_.rotate(key_.get() + from, angles_.get() + row * config_.rope_dim, config_.rope_dim);
  auto* k = reinterpret_cast<std::uint16_t*>(page + layout_.offset(layer, false, kv_head, token));
  auto* v = reinterpret_cast<std::uint16_t*>(page + layout_.offset(layer, true, kv_head, token));
  attention_.to_bf16(key_.get() + from, dim, k);
  attention_.to_bf16(value_.get() + from, dim, v);
}

void LlamaModel::attend(Worker& worker, std::uint32_t layer) {
  const std::span<const AttentionTask> tasks = plan_.tasks();
  each(
      worker, tasks.size(),
      [&](std::size_t i) {
        // By turns: the thread's own next. Of who helps another a guess, and it costs nothing.
        const std::size_t next = i + pool_->size();
        attend_task(tasks[i], next < tasks.size() ? &tasks[next] : nullptr, layer, worker.scratch);
      },
      ThreadPool::Parts::kTurns);
  const std::span<const MergeTask> merges = plan_.merges();
  if (!merges.empty() && !merges_alone()) {
    each(worker, merges.size(), [&](std::size_t i) {
      merge_row(merges[i], worker.scratch, attended_.row(merges[i].row));
    });
  }
}

KvView LlamaModel::view_of(const AttentionTask& task, std::uint32_t layer) const {
  return {.pool = pool_base_,
          .pages = task.pages,
          .page_bytes = layout_.page_bytes(),
          .key_offset = layout_.offset(layer, false, task.kv_head, 0),
          .value_offset = layout_.offset(layer, true, task.kv_head, 0),
          .page_size = layout_.page_size,
          .head_dim = config_.head_dim,
          .end = std::min(task.block_end * kKvBlock, task.position + task.tokens)};
}

// The query rows of a task against its blocks: run by run to the end, or one run whose partials are
// left for merge_row() where those of a row are spread over threads.
void LlamaModel::attend_task(const AttentionTask& task, const AttentionTask* next,
                             std::uint32_t layer, std::byte* scratch) {
  const std::uint32_t dim = config_.head_dim, group = config_.group();
  const std::size_t stride = partial_stride(dim);
  KvView kv = view_of(task, layer);
  if (next != nullptr) {
    const KvView other = view_of(*next, layer);
    const std::uint32_t first = next->block_begin * kKvBlock;
    if (other.end > first + kKvFew) kv.after = runs_from(other, other.key_offset, first);
  }
  const std::size_t q_width = std::size_t{config_.heads} * dim;
  const std::size_t head = std::size_t{task.kv_head} * group * dim;
  Queries queries{query_.get() + task.row * q_width + head, q_width, group, task.position,
                  task.tokens * group};
  auto* states = reinterpret_cast<float*>(scratch + attend_scratch_bytes(dim));
  if (plan_.single_tokens()) {
    // Tasks that share a row's blocks each rotate its queries; the last has its key and value.
    float* own = std::exchange(states, states + std::size_t{group} * dim);
    std::copy_n(queries.data, group * dim, own);
    rotate_queries(task.row, group, own);
    queries.data = own;
    if (task.block_end * kKvBlock > task.position) {
      store_key_and_value(task.row, task.kv_head, layer);
    }
  }
  float* run = states + queries.rows * stride;
  float* partials = run + queries.rows * stride;
  if (task.split) {
    float* to = partials_.get() + task.partial * stride;
    return attend_run(kv, task.block_begin, task.block_end, queries, to, partials, scratch);
  }
  for (std::uint32_t b = task.block_begin; b < task.block_end; b += kRunBlocks) {
    const std::uint32_t end = std::min(b + kRunBlocks, task.block_end);
    attend_run(kv, b, end, queries, b == 0 ? states : run, partials, scratch);
    for (std::uint32_t r = first_row(queries, b); b != 0 && r < queries.rows; ++r) {
      attention_.merge(states + r * stride, run + r * stride, dim);
    }
  }
  for (std::uint32_t r = 0; r < queries.rows; ++r) {
    attention_.finish(states + r * stride, dim,
                      attended_.row(task.row + r / group) + head + r % group * dim);
  }
}

void LlamaModel::attend_run(const KvView& kv, std::uint32_t begin, std::uint32_t end,
                            const Queries& queries, float* to, float* partials,
                            std::byte* scratch) const {
  const std::size_t stride = partial_stride(config_.head_dim);
  for (std::uint32_t b = begin; b < end; ++b) {
    const std::uint32_t first = first_row(queries, b);
    attention_.attend_block(kv, b, queries, first, b == begin ? to : partials, scratch);
    for (std::uint32_t r = first; b != begin && r < queries.rows; ++r) {
      attention_.merge(to + r * stride, partials + r * stride, config_.head_dim);
    }
  }
}

void LlamaModel::merge_row(const MergeTask& task, std::byte* scratch, float* out) const {
  const std::uint32_t dim = config_.head_dim, group = config_.group();
  const std::size_t stride = partial_stride(dim);
  auto* state = reinterpret_cast<float*>(scratch);
  for (std::uint32_t g = 0; g < group; ++g) {
    const float* partial = partials_.get() + (task.partial + g) * stride;
    std::copy_n(partial, stride, state);
    for (std::uint32_t run = 1; run < task.runs; ++run) {
      attention_.merge(state, partial += group * stride, dim);
    }
    attention_.finish(state, dim, out + (task.kv_head * group + g) * dim);
  }
}

Activations LlamaModel::quantize_attended(Worker& worker) {
  const Kernels& kernels = kernels_for(plan_.rows());
  if (!few()) {
    if (kernels.quantized_row_bytes != nullptr) {
      each(worker, plan_.rows(), [&](std::size_t row) { quantize(kernels, attended_, row); });
    }
    return attended_.activations();
  }
  Rows& own = *worker.own;
  own.reserve(attended_.columns, plan_.rows(), kernels);
  for (std::size_t row = 0; row < plan_.rows(); ++row) {
    std::copy_n(attended_.row(row), own.columns, own.row(row));
  }
  if (merges_alone()) {
    for (const MergeTask& task : plan_.merges()) {
      merge_row(task, worker.scratch, own.row(task.row));
    }
  }
  for (std::size_t row = 0; row < plan_.rows(); ++row) quantize(kernels, own, row);
  return own.activations();
}

// Gate and up of the same columns, a block's width at a time, so that whoever has computed them
// activates them, and makes them the input of the next product.
void LlamaModel::multiply_gated(Worker& worker, const Activations& in, const LlamaLayer& layer) {
  const Kernels& kernels = kernels_for(plan_.rows());
  const std::uint32_t ffn = config_.ffn;
  const auto rows = static_cast<std::uint32_t>(plan_.rows());
  share_gated(worker, layer, rows, [&](std::size_t first, std::size_t last) {
    gate_and_up(worker, in, layer, rows, first, last);
    const auto begin = static_cast<std::uint32_t>(first), end = static_cast<std::uint32_t>(last);
    const std::uint32_t from = begin * kBlock, to = std::min(end * kBlock, ffn);
    for (std::size_t row = 0; row < rows; ++row) {
      kernels.swiglu(gate_.row(row) + from, up_.get() + row * ffn + from, to - from);
      if (kernels.quantized_row_bytes != nullptr) {
        kernels.quantize(gate_.row(row), ffn, begin, to / kBlock, kWithOffsets,
                         gate_.quantized_row(row));
      }
    }
  });
}

void LlamaModel::gate_and_up(Worker& worker, const Activations& in, const LlamaLayer& layer,
                             std::uint32_t rows, std::size_t begin, std::size_t end) {
  // So many still wait for memory, which is read in order: by turns, as the two lie there.
  constexpr std::uint32_t kRowsByTurns = 16;
  const std::size_t step = rows <= kRowsByTurns ? 1 : end - begin;
  for (; begin < end; begin += step) {
    const auto first = static_cast<std::uint32_t>(begin * kBlockPanels);
    const auto last = static_cast<std::uint32_t>((begin + step) * kBlockPanels);
    for (const auto& [matrix, out] : {Product{&layer.gate, gate_.row(0)}, {&layer.up, up_.get()}}) {
      kernels_for(rows).linear(*matrix, first, std::min(last, matrix->panels), in, rows, out,
                               matrix->rows, false, worker.scratch);
    }
  }
}

// Logits of the rows that want them.
void LlamaModel::project_head(Worker& worker) {
  const std::span<const std::uint32_t> wanted = plan_.wanted();
  if (wanted.empty()) return;
  const Kernels& kernels = kernels_for(wanted.size());
  each(worker, wanted.size(), [&](std::size_t i) {
    kernels.rms_norm(residual_.get() + wanted[i] * std::size_t{config_.hidden},
                     weights_.output_norm.data(), config_.norm_epsilon, config_.hidden,
                     last_.row(i));
    quantize(kernels, last_, i, kWithOffsets);
  });
  multiply(worker, last_.activations(kWithOffsets),
           std::array<Product, 1>{{{&weights_.output, logits_.get()}}}, wanted.size(), false);
}

}  // namespace

Result<std::unique_ptr<CpuModel>> make_llama_model(const Gguf& file, const CpuOptions& options) {
  Result<const Kernels*> kernels = select_kernels(options.kernels);
  if (!kernels.ok()) return kernels.status();
  Result<LlamaConfig> config = read_llama_config(file);
  if (!config.ok()) return config.status();
  kv::KvLayout layout;
  layout.layers = config->layers;
  layout.kv_heads = config->kv_heads;
  layout.head_dim = config->head_dim;
  layout.page_size = options.page_size;
  KVD_RETURN_IF_ERROR(layout.validate());
  const bool one = options.deterministic && (*kernels)->few_rows != nullptr;
  const Kernels& used = one ? *(*kernels)->few_rows : **kernels;
  auto pool = std::make_unique<ThreadPool>(options.threads, options.pin_cpus);
  Result<LlamaWeights> weights = LlamaWeights::load(file, *config, *pool);
  if (!weights.ok()) return weights.status();
  return std::unique_ptr<CpuModel>(std::make_unique<LlamaModel>(
      *config, std::move(*weights), std::move(layout), used, std::move(pool)));
}

}  // namespace kvd::engine::cpu
