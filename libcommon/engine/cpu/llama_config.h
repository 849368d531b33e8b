// Hyperparameters of a Llama-family model, read from a GGUF file and checked.
#pragma once

#include <cstdint>

#include "base/status.h"
#include "engine/gguf.h"

namespace kvd::engine::cpu {

struct LlamaConfig {
  std::uint32_t layers = 0;
  std::uint32_t hidden = 0;
  std::uint32_t ffn = 0;
  std::uint32_t heads = 0;
  std::uint32_t kv_heads = 0;
  std::uint32_t head_dim = 0;
  std::uint32_t rope_dim = 0;  // leading dims of a head that are rotated, in interleaved pairs
  std::uint32_t vocab = 0;     // rows of the embedding
  std::uint32_t context = 0;   // the model's own
  double rope_base = 10000;
  double rope_scale = 1;  // positions are divided by it (rope.scaling.type = linear)
  float norm_epsilon = 1e-5F;
  std::uint32_t group() const { return heads / kv_heads; }
};

// kInvalidArgument: another architecture, a missing key, a value out of bounds, a feature that the
// graph does not compute.
Result<LlamaConfig> read_llama_config(const Gguf& file);

}  // namespace kvd::engine::cpu
