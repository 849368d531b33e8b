#include "engine/cpu/llama_weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <set>
#include <string>
#include <utility>

#include "base/log.h"
#include "engine/cpu/pack.h"

namespace kvd::engine::cpu {
namespace {

constexpr std::uint32_t kPanelsAtOnce = 8;  // a packing task

struct PackJob {
  const Tensor* tensor;
  Matrix* matrix;
  std::size_t offset;  // in the buffer
};

class Loader {
 public:
  Loader(const Gguf& file, const LlamaConfig& config) : file_(file), config_(config) {}

  Status plan(LlamaWeights& weights);
  Status pack(LlamaWeights& weights, ThreadPool& pool);

 private:
  Status find(const std::string& name, std::uint64_t columns, std::uint64_t rows,
              const Tensor** tensor);
  // To be packed from where the last one ends.
  void place(const std::string& name, std::uint64_t columns, std::uint64_t rows, Matrix& matrix);
  // A matrix by itself.
  void matrix(const std::string& name, std::uint64_t columns, std::uint64_t rows, Matrix& matrix);
  // Two that are multiplied with the same input, two panels of one and two of the other by turns.
  void matrices(const std::string& first_name, const std::string& second_name,
                std::uint64_t columns, std::uint64_t rows, Matrix& first, Matrix& second);
  // From the start of `last`, the first that is not counted yet, to its end, in whole lines.
  void count(const Matrix& last);
  void vector(const std::string& name, std::uint64_t count, std::vector<float>& values);
  void plan_layer(std::uint32_t index, LlamaLayer& layer);
  void plan_rope(LlamaWeights& weights);
  void check_all_used();
  void keep(Status status) {
    if (status_.ok()) status_ = std::move(status);
  }

  const Gguf& file_;
  const LlamaConfig& config_;
  Status status_;
  std::set<std::string> used_;
  std::vector<PackJob> jobs_;
  std::size_t bytes_ = 0;
};

Status Loader::find(const std::string& name, std::uint64_t columns, std::uint64_t rows,
                    const Tensor** tensor) {
  const Tensor* found = file_.find(name);
  if (found == nullptr) return invalid_argument(file_.path() + ": tensor " + name + " is missing");
  if (found->dims.size() > 2 || found->columns() != columns || found->rows() != rows) {
    return invalid_argument(file_.path() + ": tensor " + name + " is " +
                            std::to_string(found->columns()) + " x " +
                            std::to_string(found->rows()) + ", must be " + std::to_string(columns) +
                            " x " + std::to_string(rows));
  }
  used_.insert(name);
  *tensor = found;
  return {};
}

void Loader::place(const std::string& name, std::uint64_t columns, std::uint64_t rows,
                   Matrix& matrix) {
  const Tensor* tensor = nullptr;
  if (Status status = find(name, columns, rows, &tensor); !status.ok()) return keep(status);
  Result<Matrix> planned = plan_matrix(*tensor);
  if (!planned.ok()) return keep(planned.status().with_context(file_.path()));
  matrix = *planned;
  jobs_.push_back({tensor, &matrix, bytes_});
}

void Loader::matrix(const std::string& name, std::uint64_t columns, std::uint64_t rows,
                    Matrix& matrix) {
  place(name, columns, rows, matrix);
  count(matrix);
}

void Loader::count(const Matrix& last) {
  if (status_.ok()) bytes_ += (packed_bytes(last) + 63) / 64 * 64;
}

void Loader::matrices(const std::string& first_name, const std::string& second_name,
                      std::uint64_t columns, std::uint64_t rows, Matrix& first, Matrix& second) {
  place(first_name, columns, rows, first);
  bytes_ += first.pair_stride;
  place(second_name, columns, rows, second);
  first.pair_stride = second.pair_stride = first.pair_stride + second.pair_stride;
  count(second);
}

void Loader::vector(const std::string& name, std::uint64_t count, std::vector<float>& values) {
  const Tensor* tensor = nullptr;
  if (Status status = find(name, count, 1, &tensor); !status.ok()) return keep(status);
  values.resize(count);
  keep(read_vector(*tensor, values.data()).with_context(file_.path()));
}

void Loader::plan_layer(std::uint32_t index, LlamaLayer& layer) {
  const std::string prefix = "blk." + std::to_string(index) + ".";
  const std::uint64_t hidden = config_.hidden, ffn = config_.ffn;
  const std::uint64_t q = std::uint64_t{config_.heads} * config_.head_dim;
  const std::uint64_t kv = std::uint64_t{config_.kv_heads} * config_.head_dim;
  vector(prefix + "attn_norm.weight", hidden, layer.attn_norm);
  matrix(prefix + "attn_q.weight", hidden, q, layer.q);
  matrix(prefix + "attn_k.weight", hidden, kv, layer.k);
  matrix(prefix + "attn_v.weight", hidden, kv, layer.v);
  matrix(prefix + "attn_output.weight", q, hidden, layer.attn_output);
  vector(prefix + "ffn_norm.weight", hidden, layer.ffn_norm);
  matrices(prefix + "ffn_gate.weight", prefix + "ffn_up.weight", hidden, ffn, layer.gate, layer.up);
  matrix(prefix + "ffn_down.weight", ffn, hidden, layer.down);
}

void Loader::plan_rope(LlamaWeights& weights) {
  const std::uint32_t pairs = config_.rope_dim / 2;
  weights.rope_factors.assign(pairs, 1.0);
  if (file_.find("rope_freqs.weight") == nullptr) return;
  std::vector<float> factors;
  vector("rope_freqs.weight", pairs, factors);
  for (std::size_t i = 0; i < factors.size(); ++i) {
    if (!(factors[i] > 0) || !std::isfinite(factors[i])) {
      return keep(
          invalid_argument(file_.path() + ": rope_freqs.weight has a factor that is not positive"));
    }
    weights.rope_factors[i] = double{factors[i]};
  }
}

// A tensor that the graph would leave out (a bias, a norm of another family) makes wrong tokens.
void Loader::check_all_used() {
  for (const Tensor& tensor : file_.tensors()) {
    if (used_.contains(tensor.name)) continue;
    return keep(invalid_argument(file_.path() + ": tensor " + tensor.name +
                                 " is not part of the llama graph; this variant is not supported"));
  }
}

Status Loader::plan(LlamaWeights& weights) {
  matrix("token_embd.weight", config_.hidden, config_.vocab, weights.embedding);
  const bool tied = file_.find("output.weight") == nullptr;
  if (!tied) matrix("output.weight", config_.hidden, config_.vocab, weights.output);
  vector("output_norm.weight", config_.hidden, weights.output_norm);
  plan_rope(weights);
  // A count that the file cannot hold must not be allocated.
  if (config_.layers > file_.tensors().size()) {
    keep(invalid_argument(file_.path() + ": " + std::to_string(config_.layers) +
                          " layers, but only " + std::to_string(file_.tensors().size()) +
                          " tensors"));
  }
  if (!status_.ok()) return status_;
  weights.layers.resize(config_.layers);
  for (std::uint32_t i = 0; i < config_.layers && status_.ok(); ++i) {
    plan_layer(i, weights.layers[i]);
  }
  check_all_used();
  return status_;
}

Status Loader::pack(LlamaWeights& weights, ThreadPool& pool) {
  Result<device::HostBuffer> memory = device::HostBuffer::allocate(bytes_);
  if (!memory.ok()) return memory.status().with_context("weights of " + file_.path());
  weights.memory = std::move(*memory);
  weights.bytes = bytes_;
  std::byte* base = weights.memory.data();
  for (const PackJob& job : jobs_) job.matrix->data = base + job.offset;
  struct Progress {
    std::atomic<std::uint32_t> next{0}, done{0};  // panels
  };
  std::vector<Progress> progress(jobs_.size());
  pool.run([&](std::uint32_t) {
    for (std::size_t i = 0; i < jobs_.size(); ++i) {
      const PackJob& job = jobs_[i];
      const std::uint32_t panels = job.matrix->panels;
      for (std::uint32_t begin; (begin = progress[i].next.fetch_add(kPanelsAtOnce)) < panels;) {
        const std::uint32_t end = std::min(begin + kPanelsAtOnce, panels);
        for (std::uint32_t p = begin; p < end; ++p) {
          pack_panel(*job.tensor, *job.matrix, p, base + job.offset + panel_at(*job.matrix, p));
        }
        // Whoever packs the last panel gives the tensor's pages back, so that file and panels are
        // never both in memory as a whole.
        if (progress[i].done.fetch_add(end - begin) + end - begin == panels) {
          file_.drop_cache(*job.tensor);
        }
      }
    }
  });
  if (weights.memory.huge_pages() == device::HugePages::kNone) {
    log_warn("weights are on small pages: enable transparent huge pages (madvise) for speed");
  }
  return {};
}

}  // namespace

Result<LlamaWeights> LlamaWeights::load(const Gguf& file, const LlamaConfig& config,
                                        ThreadPool& pool) {
  LlamaWeights weights;
  Loader loader(file, config);
  KVD_RETURN_IF_ERROR(loader.plan(weights));
  KVD_RETURN_IF_ERROR(loader.pack(weights, pool));
  if (weights.output.data == nullptr) weights.output = weights.embedding;
  return weights;
}

}  // namespace kvd::engine::cpu
