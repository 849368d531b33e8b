// Chooses a token from logits. Pure: the same input gives the same token on every host, so that
// prefill's first token and decode's next ones continue one stream.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"
#include "base/sampling.h"

namespace kvd::engine {

// `history`: prompt and generated tokens so far (for the repetition penalty). `position`: number of
// tokens generated before this one; the draw is keyed by (seed, choice, position).
// The log-probabilities are filled in when `params.logprobs` or `top_logprobs` asks for them: they cost a
// pass over the vocabulary. A NaN counts as the least logit; a log-probability is at least -9999.
// Order: penalty, temperature, top-k, top-p, min-p. temperature 0: the largest logit, lowest id on a tie.
SampledToken sample(std::span<const float> logits, const SamplingParams& params,
                    std::uint32_t choice, std::uint32_t position, std::span<const TokenId> history);

}  // namespace kvd::engine
