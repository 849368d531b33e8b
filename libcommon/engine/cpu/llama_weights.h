// The weights of a Llama-family model in memory: every matrix packed into panels, once, in one
// buffer on huge pages where they can be had.
//
// Immutable after load(). Owns its memory; the file is not needed afterwards.
#pragma once

#include <cstdint>
#include <vector>

#include "base/status.h"
#include "device/host_buffer.h"
#include "engine/cpu/llama_config.h"
#include "engine/cpu/panels.h"
#include "engine/cpu/thread_pool.h"
#include "engine/gguf.h"

namespace kvd::engine::cpu {

struct LlamaLayer {
  std::vector<float> attn_norm, ffn_norm;
  Matrix q, k, v, attn_output, gate, up, down;
};

struct LlamaWeights {
  Matrix embedding;
  Matrix output;  // the embedding itself where the file ties them
  std::vector<float> output_norm;
  std::vector<double> rope_factors;  // of each pair; all 1 where the file has none
  std::vector<LlamaLayer> layers;
  device::HostBuffer memory;
  std::uint64_t bytes = 0;

  // Packs on all threads of `pool`, and gives the file's pages back as it goes. kInvalidArgument: a
  // tensor that is missing, of another shape than the configuration says, of an unsupported type,
  // or that the graph would not use.
  static Result<LlamaWeights> load(const Gguf& file, const LlamaConfig& config, ThreadPool& pool);
};

}  // namespace kvd::engine::cpu
