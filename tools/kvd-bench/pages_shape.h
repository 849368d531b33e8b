// What a transfer looks like: the KV layout of one rank of a model, and how long prompts are.
//
// Dimensions of the built-in shapes are those of the models' config.json on Hugging Face. One
// thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/rng.h"
#include "base/status.h"
#include "kv/layout.h"

namespace kvd::tools {

// A model's KV as it is cached. With MLA (DeepSeek) a token has one latent for all heads of a
// layer, `latent` elements, which every rank of a tensor-parallel group holds whole.
struct ModelShape {
  std::string name;
  std::uint32_t layers = 0, kv_heads = 0, head_dim = 0;
  std::uint32_t latent = 0;  // 0: K and V of kv_heads x head_dim
};

std::vector<std::string> shape_names();
// By name, without regard to case. kInvalidArgument names them.
Result<ModelShape> find_shape(const std::string& name);
// Of a model's config.json. kNotFound, or kInvalidArgument with the field that is missing.
Result<ModelShape> read_model_config(const std::string& path);
// The layout of one of `tp` ranks: KV heads are divided, and repeated where there are fewer of them
// than ranks; latents are not divided. kInvalidArgument when heads cannot be divided evenly.
Result<kv::KvLayout> rank_layout(const ModelShape& shape, std::uint32_t tp,
                                 std::uint32_t page_size);
// One layer, pages of `page_bytes`: a multiple of 128. kInvalidArgument.
Result<kv::KvLayout> plain_layout(std::uint64_t page_bytes);

// Lengths of prompts in tokens: "2048", "100-4000" (uniform), "lognormal:MEDIAN:SIGMA".
class TokenLengths {
 public:
  static Result<TokenLengths> parse(const std::string& text);
  std::uint32_t draw(Rng* rng) const;
  std::uint32_t longest() const { return high_; }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
  std::uint32_t low_ = 0, high_ = 0;
  double median_ = 0, sigma_ = 0;  // of the lognormal, cut at low_ and high_
};

}  // namespace kvd::tools
