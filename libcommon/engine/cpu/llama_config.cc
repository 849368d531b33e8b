#include "engine/cpu/llama_config.h"

#include <cmath>
#include <optional>
#include <string>

namespace kvd::engine::cpu {
namespace {

// Above what any published model has; products of any three stay far below 2^64.
constexpr std::uint64_t kMaxLayers = 1024;
constexpr std::uint64_t kMaxWidth = std::uint64_t{1} << 20;
constexpr std::uint64_t kMaxHeads = 1024;
constexpr std::uint64_t kMaxHeadDim = 512;
constexpr std::uint64_t kMaxContext = std::uint64_t{1} << 24;

// Reads keys of one architecture; the first fault stays.
class Keys {
 public:
  explicit Keys(const Gguf& file) : file_(file) {}

  std::uint32_t required(const std::string& key, std::uint64_t most) {
    const std::optional<std::uint64_t> value = file_.meta_uint("llama." + key);
    if (!value) {
      fail("llama." + key + " is missing or not a whole number");
      return 1;
    }
    return checked(key, *value, most);
  }
  std::uint32_t optional(const std::string& key, std::uint32_t otherwise, std::uint64_t most) {
    if (file_.meta("llama." + key) == nullptr) return otherwise;
    return required(key, most);
  }
  double number(const std::string& key, double otherwise) {
    if (file_.meta("llama." + key) == nullptr) return otherwise;
    const std::optional<double> value = file_.meta_number("llama." + key);
    if (!value || !std::isfinite(*value) || *value <= 0) {
      fail("llama." + key + " is not a positive number");
      return otherwise;
    }
    return *value;
  }
  void fail(const std::string& what) {
    if (status_.ok()) status_ = invalid_argument(file_.path() + ": " + what);
  }
  const Status& status() const { return status_; }

 private:
  std::uint32_t checked(const std::string& key, std::uint64_t value, std::uint64_t most) {
    if (value == 0 || value > most) {
      fail("llama." + key + " is " + std::to_string(value) + ", must be 1 to " +
           std::to_string(most));
      return 1;
    }
    return static_cast<std::uint32_t>(value);
  }

  const Gguf& file_;
  Status status_;
};

void read_rope(const Gguf& file, Keys& keys, LlamaConfig& config) {
  config.rope_dim = keys.optional("rope.dimension_count", config.head_dim, kMaxHeadDim);
  if (config.rope_dim > config.head_dim || config.rope_dim % 2 != 0) {
    keys.fail("llama.rope.dimension_count must be even and at most the head dim");
  }
  config.rope_base = keys.number("rope.freq_base", 10000);
  const std::string scaling = file.meta_string("llama.rope.scaling.type").value_or("none");
  if (scaling == "linear") {
    config.rope_scale = keys.number("rope.scaling.factor", 1);
  } else if (scaling != "none") {
    keys.fail("llama.rope.scaling.type " + scaling + " is not supported (none and linear are)");
  }
}

}  // namespace

Result<LlamaConfig> read_llama_config(const Gguf& file) {
  const std::string architecture = file.meta_string("general.architecture").value_or("");
  if (architecture != "llama") {
    return invalid_argument(file.path() + ": architecture " +
                            (architecture.empty() ? "is not named" : architecture) +
                            " is not supported; use a GGUF file of the llama architecture");
  }
  Keys keys(file);
  LlamaConfig config;
  config.layers = keys.required("block_count", kMaxLayers);
  config.hidden = keys.required("embedding_length", kMaxWidth);
  config.ffn = keys.required("feed_forward_length", kMaxWidth);
  config.heads = keys.required("attention.head_count", kMaxHeads);
  config.kv_heads = keys.optional("attention.head_count_kv", config.heads, kMaxHeads);
  config.context = keys.required("context_length", kMaxContext);
  config.norm_epsilon = static_cast<float>(keys.number("attention.layer_norm_rms_epsilon", 1e-5));
  config.head_dim =
      keys.optional("attention.key_length", config.hidden / config.heads, kMaxHeadDim);
  if (config.heads % config.kv_heads != 0) {
    keys.fail("llama.attention.head_count must be a multiple of head_count_kv");
  }
  if (config.head_dim == 0 || config.head_dim % 8 != 0 || config.head_dim > kMaxHeadDim ||
      keys.optional("attention.value_length", config.head_dim, kMaxHeadDim) != config.head_dim) {
    keys.fail("head dim " + std::to_string(config.head_dim) +
              " is not supported: keys and values must have the same, a multiple of 8");
  }
  if (config.hidden % 8 != 0 || config.ffn % 8 != 0) {
    keys.fail("llama.embedding_length and feed_forward_length must be multiples of 8");
  }
  if (keys.optional("expert_count", 1, kMaxWidth) > 1) {
    keys.fail("mixture-of-experts models are not supported");
  }
  if (file.meta("llama.attention.sliding_window") != nullptr) {
    keys.fail("sliding-window attention is not supported");
  }
  read_rope(file, keys, config);
  const Tensor* embedding = file.find("token_embd.weight");
  if (embedding == nullptr) {
    keys.fail("tensor token_embd.weight is missing");
  } else if (embedding->rows() == 0 || embedding->rows() > (std::uint64_t{1} << 24)) {
    keys.fail("tensor token_embd.weight has " + std::to_string(embedding->rows()) + " rows");
  } else {
    config.vocab = static_cast<std::uint32_t>(embedding->rows());
  }
  if (!keys.status().ok()) return keys.status();
  return config;
}

}  // namespace kvd::engine::cpu
