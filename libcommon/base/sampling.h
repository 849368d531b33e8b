// How a token is chosen, and what is reported of it. Shared by HTTP, the wire and the engine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"

namespace kvd {

struct SamplingParams {
  std::uint32_t max_tokens = 16;  // at least 1
  float temperature = 1.0F;       // 0 is greedy
  std::uint32_t top_k = 0;        // 0: all
  float top_p = 1.0F;
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;
  std::uint64_t seed = 0;               // draws are keyed by (seed, choice, position)
  std::vector<std::string> stop;        // at most 16 strings of at most 256 bytes
  std::vector<TokenId> stop_token_ids;  // besides the model's own end tokens
  bool ignore_eos = false;
  bool logprobs = false;
  std::uint32_t top_logprobs = 0;  // 0..20 alternatives

  bool operator==(const SamplingParams&) const = default;
};
constexpr std::uint32_t kMaxTopLogprobs = 20;
constexpr std::uint32_t kMaxStopStrings = 16;
constexpr std::uint32_t kMaxStopBytes = 256;

struct TokenLogprob {
  TokenId id = 0;
  float logprob = 0;
  bool operator==(const TokenLogprob&) const = default;
};

// One chosen token. Log-probabilities are natural, of the raw distribution at temperature 1.
struct SampledToken {
  TokenId id = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top;  // best first, empty unless asked for
  bool operator==(const SampledToken&) const = default;
};

}  // namespace kvd
