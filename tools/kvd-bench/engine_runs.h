// Runs steps of the CPU engine and times them: the forward pass and the batches of the daemons'
// scheduler, without tokenizing and sampling.
//
// One thread, which is the engine's. Owns the model and its KV pool.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "common/measure.h"
#include "device/host_buffer.h"
#include "engine/cpu/llama_model.h"
#include "kvd-bench/engine_ceilings.h"

namespace kvd::tools {

struct EngineBenchOptions {
  std::string model;
  std::uint32_t threads = 0;
  std::vector<int> pin;
  std::string cpu;
  std::uint32_t page_size = 32;
  std::uint32_t chunk = 512;
  std::vector<std::uint32_t> prompts = {128, 512, 2048};
  std::vector<std::uint32_t> batches = {1, 4, 8, 16, 32};
  std::vector<std::uint32_t> contexts = {0, 512, 2048};
  std::uint32_t samples = 5;
  Duration max_time{300'000'000'000};
  std::string compare;
  bool ndjson = false, csv = false;
};

// Tokens a second, of all sequences together.
struct SpeedFigure {
  // kMatrices: nothing but the products of a chunk of a prompt with the layers' matrices.
  enum class Kind { kPrefill, kMatrices, kDecode };
  Kind kind = Kind::kPrefill;
  std::uint32_t tokens = 0;   // of the prompt; kMatrices: of the chunk
  std::uint32_t batch = 0;    // decode: sequences
  std::uint32_t context = 0;  // decode: tokens in the KV of each before the first step
  std::uint32_t steps = 0;    // decode: a run
  Spread tok_per_s;
  // Decode: what memory gave before and after each run, and the part of the better of the two that
  // the run read weights and KV at.
  Spread memory_bytes_per_s, share_of_memory;
  std::size_t rejected = 0;
  bool disturbed = false;
  std::string name() const;  // "prefill 512", "matrices 512", "decode 8 @512"
};

// What a token costs, by the file.
struct ModelCost {
  std::uint64_t linear_macs = 0;     // of a prompt token in the layers' matrices
  std::uint64_t step_bytes = 0;      // of weights, packed, that a decode step reads
  std::uint64_t kv_token_bytes = 0;  // of K and V that a token of context has

  // Bytes that a step reads, in the mean over a run of `steps` from `context` tokens on.
  double decode_bytes(std::uint32_t batch, std::uint32_t context, std::uint32_t steps) const {
    const double seen = context + (steps + 1) / 2.0;
    return static_cast<double>(step_bytes) + seen * batch * static_cast<double>(kv_token_bytes);
  }
};

// Of each run but the first, which warms up: its rate against the better of memory's before and
// after it. `memory` has one more than `rates`.
std::vector<double> shares_of_memory(const std::vector<double>& rates,
                                     const std::vector<double>& memory);

class EngineRuns {
 public:
  // kInvalidArgument: the model cannot be loaded, a prompt or context is longer than the model's;
  // kResourceExhausted: the host has no memory for so much KV.
  static Result<std::unique_ptr<EngineRuns>> open(const EngineBenchOptions& options);

  SpeedFigure prefill(std::uint32_t tokens, const SampleLimits& limits);
  SpeedFigure matrices(const SampleLimits& limits);
  SpeedFigure decode(std::uint32_t batch, std::uint32_t context, const SampleLimits& limits,
                     MemoryReader* memory);

  std::string kernels() const { return model_->kernels(); }
  const ModelCost& cost() const { return cost_; }

 private:
  EngineRuns() = default;
  Status allocate(const EngineBenchOptions& options);
  void compute(std::uint32_t sequence, std::uint32_t tokens);
  void decode_step(std::uint32_t batch, std::uint32_t position, std::uint32_t step);
  TokenId token(std::uint64_t number) const;
  std::span<const PageIndex> pages(std::uint32_t sequence) const;

  std::unique_ptr<engine::cpu::CpuModel> model_;
  device::HostBuffer pool_;
  std::vector<PageIndex> pages_;  // of all sequences, pages_each_ of each
  std::uint32_t pages_each_ = 0;
  std::uint32_t chunk_ = 0;
  std::uint32_t computed_ = 0;  // tokens of sequence 0 whose KV is in its pages
  std::vector<TokenId> prompt_;
  ModelCost cost_;
};

}  // namespace kvd::tools
