// Forward pass of the Llama family on the CPU, over paged bf16 KV (model.h).
//
// A step is one dispatch on the thread pool; every thread runs the same function, and they
// share the pieces of each phase (thread_pool.h). K and V are rounded to bf16 when
// written, and attention always reads the pages, so prefill and decode see the same bits.
//
// Results are the same bits for a row whatever else is in the step, however its prompt was cut into
// chunks, wherever its pages lie, and on however many threads; with AMX only when `deterministic`
// (kernels.h).
//
// Calling thread: one, the engine's. Owns the weights and its threads; the pool's memory is the
// caller's.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "engine/gguf.h"
#include "engine/model.h"

namespace kvd::engine::cpu {

struct CpuOptions {
  std::uint32_t page_size = 32;
  std::uint32_t threads = 0;  // 0: one for each usable processor
  std::vector<int> pin_cpus;
  std::string kernels;         // "": the best this host has; "scalar", "avx2", "avx512", "amx"
  bool deterministic = false;  // the same kernels for every step: with "amx" those of "avx512"
};

class CpuModel : public Model {
 public:
  virtual std::uint32_t context() const = 0;  // the model's own
  virtual std::uint64_t weight_bytes() const = 0;
  virtual std::string kernels() const = 0;
  // Pins the calling thread, which from now on calls forward().
  virtual void adopt_thread() = 0;
  // The products of a step of `rows` tokens with the layers' matrices, on all threads, of made-up
  // activations: for those who measure. What it computes is thrown away; forward() is none the
  // wiser. The first call with so many rows since forward() makes the activations up, too.
  virtual void multiply_layers(std::uint32_t rows) = 0;
};

// `file` is not needed afterwards. Errors as LlamaWeights::load(), and kInvalidArgument for kernels
// that are unknown or that this processor does not have.
Result<std::unique_ptr<CpuModel>> make_llama_model(const Gguf& file, const CpuOptions& options);

}  // namespace kvd::engine::cpu
