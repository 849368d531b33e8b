// A Llama in double precision on a real model file: what kernels are measured against. Nothing is
// rounded but the weights, which are what the file says; K and V stay in double. Slow: about 0.15 s
// a token of a 135M model on two cores.
#pragma once

#include <vector>

#include "base/ids.h"
#include "engine/cpu/llama_config.h"
#include "engine/gguf.h"

namespace kvd::test {

// Logits after each token, one row after the other. `threads` share the rows of each matrix.
std::vector<float> oracle_logits(const engine::Gguf& file, const engine::cpu::LlamaConfig& config,
                                 const std::vector<TokenId>& tokens, unsigned threads);

}  // namespace kvd::test
