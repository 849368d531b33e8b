#include "kvd-bench/pages_shape.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <numbers>
#include <optional>
#include <sstream>

#include "cli/input.h"

namespace kvd::tools {
namespace {

constexpr std::uint32_t kMostTokens = 1u << 24;
constexpr std::size_t kMostConfigBytes = 1u << 20;
constexpr std::uint64_t kElements = 64;  // of a page of one layer: K, V and 32 tokens

const std::vector<ModelShape>& shapes() {
  static const std::vector<ModelShape> all = {
      {"SmolLM2-135M", 30, 3, 64, 0},   {"Llama-3.1-8B", 32, 8, 128, 0},
      {"Llama-3.1-70B", 80, 8, 128, 0}, {"Qwen3-32B", 64, 8, 128, 0},
      {"DeepSeek-V3", 61, 0, 0, 576},
  };
  return all;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  return text;
}

std::optional<std::uint32_t> to_number(std::string_view text) {
  std::uint32_t value = 0;
  const auto end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || at != end) return std::nullopt;
  return value;
}

}  // namespace

std::vector<std::string> shape_names() {
  std::vector<std::string> out;
  for (const ModelShape& shape : shapes()) out.push_back(shape.name);
  return out;
}

Result<ModelShape> find_shape(const std::string& name) {
  std::string known;
  for (const ModelShape& shape : shapes()) {
    if (lower(shape.name) == lower(name)) return shape;
    known += (known.empty() ? "" : ", ") + shape.name;
  }
  return invalid_argument("--shape " + name + " is not known; choose one of " + known +
                          ", or give --model-config FILE");
}

Result<ModelShape> read_model_config(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf()) || text.str().size() > kMostConfigBytes) {
    return Status(StatusCode::kInvalidArgument, "--model-config " + path + ": cannot be read");
  }
  const auto fields = cli::parse_json_object(text.str());
  if (!fields.ok()) return fields.status().with_context("--model-config " + path);
  const auto number = [&](const char* name) -> std::uint32_t {
    for (const cli::JsonField& field : *fields) {
      if (field.name == name) return to_number(field.json).value_or(0);
    }
    return 0;
  };
  ModelShape shape;
  for (const cli::JsonField& field : *fields) {
    if (field.name == "model_type" || field.name == "_name_or_path") shape.name = field.text;
  }
  if (shape.name.empty()) shape.name = path;
  shape.layers = number("num_hidden_layers");
  if (const std::uint32_t rank = number("kv_lora_rank"); rank != 0) {
    shape.latent = rank + number("qk_rope_head_dim");
  } else {
    const std::uint32_t heads = number("num_attention_heads");
    shape.kv_heads = number("num_key_value_heads") != 0 ? number("num_key_value_heads") : heads;
    shape.head_dim = number("head_dim");
    if (shape.head_dim == 0 && heads != 0) shape.head_dim = number("hidden_size") / heads;
  }
  const char* missing = shape.layers == 0                          ? "num_hidden_layers"
                        : shape.latent == 0 && shape.kv_heads == 0 ? "num_attention_heads"
                        : shape.latent == 0 && shape.head_dim == 0 ? "hidden_size"
                                                                   : nullptr;
  if (missing != nullptr) {
    return invalid_argument("--model-config " + path + ": " + missing + " is missing or no number");
  }
  return shape;
}

Result<kv::KvLayout> rank_layout(const ModelShape& shape, std::uint32_t tp,
                                 std::uint32_t page_size) {
  kv::KvLayout layout;
  layout.layers = shape.layers;
  layout.page_size = page_size;
  if (shape.latent != 0) {
    // The same bytes as one head whose K and V are half a latent each.
    if (shape.latent % 2 != 0) return invalid_argument("the model's latent has an odd size");
    layout.kv_heads = 1;
    layout.head_dim = shape.latent / 2;
  } else {
    const bool even = tp <= shape.kv_heads ? shape.kv_heads % tp == 0 : tp % shape.kv_heads == 0;
    if (!even) {
      return invalid_argument("--tp " + std::to_string(tp) + " does not divide the " +
                              std::to_string(shape.kv_heads) + " KV heads of " + shape.name);
    }
    layout.kv_heads = std::max<std::uint32_t>(1, shape.kv_heads / tp);
    layout.head_dim = shape.head_dim;
  }
  if (const Status valid = layout.validate(); !valid.ok()) return valid;
  return layout;
}

Result<kv::KvLayout> plain_layout(std::uint64_t page_bytes) {
  constexpr std::uint64_t kUnit = kElements * 2;
  if (page_bytes == 0 || page_bytes % kUnit != 0 || page_bytes / kUnit > UINT32_MAX) {
    return invalid_argument("--page-bytes must be a multiple of " + std::to_string(kUnit));
  }
  kv::KvLayout layout;
  layout.layers = layout.kv_heads = 1;
  layout.head_dim = static_cast<std::uint32_t>(page_bytes / kUnit);
  if (const Status valid = layout.validate(); !valid.ok()) return valid;
  return layout;
}

Result<TokenLengths> TokenLengths::parse(const std::string& text) {
  const Status wrong =
      invalid_argument("--tokens " + text + ": give a number, LOW-HIGH, or lognormal:MEDIAN:SIGMA");
  TokenLengths out;
  out.text_ = text;
  constexpr std::string_view kLognormal = "lognormal:";
  if (text.starts_with(kLognormal)) {
    const std::string rest = text.substr(kLognormal.size());
    const auto colon = rest.find(':');
    if (colon == std::string::npos) return wrong;
    const auto median = to_number(std::string_view(rest).substr(0, colon));
    double sigma = 0;
    const char* end = rest.data() + rest.size();
    const auto [at, error] = std::from_chars(rest.data() + colon + 1, end, sigma);
    if (!median || *median == 0 || error != std::errc() || at != end ||
        !(sigma > 0 && sigma <= 2)) {
      return wrong;
    }
    out.median_ = *median;
    out.sigma_ = sigma;
    out.low_ = 1;
    // Beyond three sigma lengths are cut: the pools must hold the longest.
    const double high = out.median_ * std::exp(3 * sigma);
    if (high > kMostTokens) return wrong;
    out.high_ = static_cast<std::uint32_t>(high);
    return out;
  }
  const auto dash = text.find('-');
  const auto low = to_number(std::string_view(text).substr(0, dash));
  const auto high =
      dash == std::string::npos ? low : to_number(std::string_view(text).substr(dash + 1));
  if (!low || !high || *low == 0 || *low > *high || *high > kMostTokens) return wrong;
  out.low_ = *low;
  out.high_ = *high;
  return out;
}

std::uint32_t TokenLengths::draw(Rng* rng) const {
  if (low_ == high_) return low_;
  if (sigma_ == 0) return low_ + static_cast<std::uint32_t>(rng->below(high_ - low_ + 1));
  const double radius = std::sqrt(-2 * std::log(1 - rng->uniform()));
  const double normal = radius * std::cos(2 * std::numbers::pi * rng->uniform());
  const double drawn = median_ * std::exp(sigma_ * normal);
  return static_cast<std::uint32_t>(std::clamp<double>(drawn, low_, high_));
}

}  // namespace kvd::tools
