// Writes GGUF files for measuring:
//   kvd_make_gguf requantize FILE q4_0|q8_0 OUT   the same model, its Q4_1 matrices in another
//   type;
//                                                 q8_0: all its matrices
//   kvd_make_gguf random FILE q4_k|q5_k|q6_k OUT  a model of a 1B class (16 layers, 2048/8192, 32
//   heads,
//                                                 8 KV heads) with random weights and FILE's
//                                                 vocabulary
// Exit: 0 written, 2 usage or an unreadable file.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/rng.h"
#include "engine/cpu/float16.h"
#include "engine/cpu/pack.h"
#include "engine/gguf.h"

namespace {

namespace cpu = kvd::engine::cpu;
using kvd::engine::Gguf;
using kvd::engine::Tensor;
using kvd::engine::TensorType;

constexpr std::uint64_t kAlignment = 32;

struct OutTensor {
  std::string name;
  TensorType type;
  std::vector<std::uint64_t> dims;
  std::uint64_t bytes() const {
    const auto* info = kvd::engine::tensor_type_info(static_cast<std::uint32_t>(type));
    std::uint64_t count = 1;
    for (std::uint64_t d : dims) count *= d;
    return count / info->block * info->bytes;
  }
};

template <typename T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void append_text(std::string& out, const std::string& text) {
  append(out, static_cast<std::uint64_t>(text.size()));
  out += text;
}

// The metadata entries of a valid file as they stand, by key.
class Entries {
 public:
  explicit Entries(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    bytes_.resize(64 << 20);
    file.read(bytes_.data(), static_cast<std::streamsize>(bytes_.size()));
    at_ = 16;
    const auto count = take<std::uint64_t>();
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::size_t begin = at_;
      const std::string key = take_text();
      skip(take<std::uint32_t>());
      keys_.push_back(key);
      raw_[key] = bytes_.substr(begin, at_ - begin);
    }
  }
  void set(const std::string& key, std::uint32_t value) {
    std::string raw;
    append_text(raw, key);
    append(raw, std::uint32_t{4});
    append(raw, value);
    put(key, raw);
  }
  void set(const std::string& key, float value) {
    std::string raw;
    append_text(raw, key);
    append(raw, std::uint32_t{6});
    append(raw, value);
    put(key, raw);
  }
  std::size_t size() const { return keys_.size(); }
  std::string all() const {
    std::string out;
    for (const std::string& key : keys_) out += raw_.at(key);
    return out;
  }

 private:
  template <typename T>
  T take() {
    T value;
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  std::string take_text() {
    const auto size = take<std::uint64_t>();
    at_ += size;
    return bytes_.substr(at_ - size, size);
  }
  void skip(std::uint32_t type) {
    constexpr std::size_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == 8) {
      take_text();
    } else if (type == 9) {
      const auto element = take<std::uint32_t>();
      const auto count = take<std::uint64_t>();
      for (std::uint64_t i = 0; i < count; ++i) skip(element);
    } else {
      at_ += kSizes[type];
    }
  }
  void put(const std::string& key, std::string raw) {
    if (!raw_.contains(key)) keys_.push_back(key);
    raw_[key] = std::move(raw);
  }

  std::string bytes_;
  std::size_t at_ = 0;
  std::vector<std::string> keys_;
  std::map<std::string, std::string> raw_;
};

// Header first, then the tensors' data in order, padded.
class Writer {
 public:
  Writer(const std::string& path, const Entries& entries, const std::vector<OutTensor>& tensors)
      : file_(path, std::ios::binary | std::ios::trunc) {
    std::string head = "GGUF";
    append(head, std::uint32_t{3});
    append(head, static_cast<std::uint64_t>(tensors.size()));
    append(head, static_cast<std::uint64_t>(entries.size()));
    head += entries.all();
    std::uint64_t offset = 0;
    for (const OutTensor& tensor : tensors) {
      append_text(head, tensor.name);
      append(head, static_cast<std::uint32_t>(tensor.dims.size()));
      for (std::uint64_t d : tensor.dims) append(head, d);
      append(head, static_cast<std::uint32_t>(tensor.type));
      append(head, offset);
      offset += (tensor.bytes() + kAlignment - 1) / kAlignment * kAlignment;
    }
    write(head.data(), head.size());
    pad();
  }
  void write(const void* data, std::size_t size) {
    file_.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
    written_ += size;
  }
  void pad() {
    const char zeros[kAlignment] = {};
    if (written_ % kAlignment != 0) write(zeros, kAlignment - written_ % kAlignment);
  }
  bool finish() { return static_cast<bool>(file_.flush()); }

 private:
  std::ofstream file_;
  std::uint64_t written_ = 0;
};

// As ggml's quantize_row_q8_0_ref.
void quantize_q8_0(const float* x, std::string& out) {
  float most = 0;
  for (int i = 0; i < 32; ++i) most = std::max(most, std::fabs(x[i]));
  const float d = most / 127, inverse = d != 0 ? 1 / d : 0;
  append(out, cpu::float_to_half(d));
  for (int i = 0; i < 32; ++i) out += static_cast<char>(std::lround(x[i] * inverse));
}

// As ggml's quantize_row_q4_0_ref: the value of largest magnitude becomes -8.
void quantize_q4_0(const float* x, std::string& out) {
  float most = 0;
  for (int i = 0; i < 32; ++i) most = std::fabs(x[i]) > std::fabs(most) ? x[i] : most;
  const float d = most / -8, inverse = d != 0 ? 1 / d : 0;
  append(out, cpu::float_to_half(d));
  const auto level = [&](int i) {
    return std::min(15U, static_cast<unsigned>(x[i] * inverse + 8.5F));
  };
  for (int i = 0; i < 16; ++i) out += static_cast<char>(level(i) | level(i + 16) << 4);
}

bool requantize(const Gguf& file, TensorType to, const std::string& path) {
  std::vector<OutTensor> tensors;
  for (const Tensor& t : file.tensors()) {
    const bool change =
        t.dims.size() == 2 && (to == TensorType::kQ8_0 || t.type == TensorType::kQ4_1);
    tensors.push_back({t.name, change ? to : t.type, t.dims});
  }
  Entries entries(file.path());
  entries.set("general.file_type", to == TensorType::kQ8_0 ? 7U : 2U);
  Writer writer(path, entries, tensors);
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& from = file.tensors()[i];
    if (tensors[i].type == from.type) {
      writer.write(from.data, from.bytes);
      writer.pad();
      continue;
    }
    auto planned = cpu::plan_matrix(from);
    if (!planned.ok()) return std::cerr << planned.status().message() << "\n", false;
    cpu::Matrix panel = *planned;
    std::vector<std::byte> packed(panel.panel_bytes);
    std::vector<float> row(panel.columns);
    for (std::uint32_t p = 0; p < planned->panels; ++p) {
      cpu::pack_panel(from, *planned, p, packed.data());
      panel.data = packed.data();
      for (std::uint32_t r = 0; r < std::min(16U, planned->rows - p * 16); ++r) {
        cpu::dequantize_row(panel, r, row.data());
        std::string out;
        for (std::uint32_t k = 0; k < panel.columns; k += 32) {
          (to == TensorType::kQ8_0 ? quantize_q8_0 : quantize_q4_0)(row.data() + k, out);
        }
        writer.write(out.data(), out.size());
      }
    }
    writer.pad();
  }
  return writer.finish();
}

// A block of 256 with random quants, and scales that make weights of about `scale`, mean about 0.
void random_block(kvd::Rng& rng, TensorType type, double scale, std::string& out) {
  const auto half = [&out](double value) {
    append(out, cpu::float_to_half(static_cast<float>(value)));
  };
  const auto random = [&](std::size_t bytes) {
    for (std::size_t i = 0; i < bytes; i += 8) {
      const std::uint64_t word = rng.next();
      out.append(reinterpret_cast<const char*>(&word), std::min<std::size_t>(8, bytes - i));
    }
  };
  if (type == TensorType::kQ6_K) {
    random(128 + 64);
    for (int i = 0; i < 16; ++i) out += static_cast<char>(static_cast<int>(rng.below(128)) - 64);
    return half(scale / 680);
  }
  const bool five = type == TensorType::kQ5_K;
  const double d = scale / (five ? 340 : 170);
  half(d);
  half(d * (five ? 15.5 : 7.5));
  random(12 + (five ? 32 : 0) + 128);
}

struct Shape {
  std::uint32_t layers = 16, hidden = 2048, ffn = 8192, heads = 32, kv_heads = 8, head_dim = 64;
};

std::vector<OutTensor> tensors_of(const Shape& s, TensorType type, std::uint64_t vocab) {
  const std::uint64_t kv = std::uint64_t{s.kv_heads} * s.head_dim;
  std::vector<OutTensor> out = {{"token_embd.weight", type, {s.hidden, vocab}},
                                {"output_norm.weight", TensorType::kF32, {s.hidden}}};
  for (std::uint32_t l = 0; l < s.layers; ++l) {
    const std::string p = "blk." + std::to_string(l) + ".";
    out.push_back({p + "attn_norm.weight", TensorType::kF32, {s.hidden}});
    out.push_back({p + "ffn_norm.weight", TensorType::kF32, {s.hidden}});
    out.push_back({p + "attn_q.weight", type, {s.hidden, s.heads * s.head_dim}});
    out.push_back({p + "attn_k.weight", type, {s.hidden, kv}});
    out.push_back({p + "attn_v.weight", type, {s.hidden, kv}});
    out.push_back({p + "attn_output.weight", type, {s.heads * s.head_dim, s.hidden}});
    out.push_back({p + "ffn_gate.weight", type, {s.hidden, s.ffn}});
    out.push_back({p + "ffn_up.weight", type, {s.hidden, s.ffn}});
    out.push_back({p + "ffn_down.weight", type, {s.ffn, s.hidden}});
  }
  return out;
}

bool write_random(const Gguf& file, TensorType type, const std::string& path) {
  const Shape shape;
  Entries entries(file.path());
  entries.set("llama.block_count", shape.layers);
  entries.set("llama.context_length", 8192U);
  entries.set("llama.embedding_length", shape.hidden);
  entries.set("llama.feed_forward_length", shape.ffn);
  entries.set("llama.attention.head_count", shape.heads);
  entries.set("llama.attention.head_count_kv", shape.kv_heads);
  entries.set("llama.rope.dimension_count", shape.head_dim);
  entries.set("llama.rope.freq_base", 500000.0F);
  const auto tensors = tensors_of(shape, type, file.find("token_embd.weight")->rows());
  Writer writer(path, entries, tensors);
  kvd::Rng rng(1);
  for (const OutTensor& tensor : tensors) {
    std::string out;
    if (tensor.type == TensorType::kF32) {
      for (std::uint64_t i = 0; i < tensor.dims[0]; ++i) append(out, 1.0F);
    }
    for (std::uint64_t row = 0; tensor.type != TensorType::kF32 && row < tensor.dims[1]; ++row) {
      const double scale = 1 / std::sqrt(static_cast<double>(tensor.dims[0]));
      for (std::uint64_t k = 0; k < tensor.dims[0]; k += 256) random_block(rng, type, scale, out);
      if (out.size() > (1 << 20)) {
        writer.write(out.data(), out.size());
        out.clear();
      }
    }
    writer.write(out.data(), out.size());
    writer.pad();
  }
  return writer.finish();
}

}  // namespace

int main(int argc, char** argv) {
  const std::map<std::string, TensorType> types = {{"q4_0", TensorType::kQ4_0},
                                                   {"q8_0", TensorType::kQ8_0},
                                                   {"q4_k", TensorType::kQ4_K},
                                                   {"q5_k", TensorType::kQ5_K},
                                                   {"q6_k", TensorType::kQ6_K}};
  const std::string verb = argc == 5 ? argv[1] : "";
  const auto type = argc == 5 ? types.find(argv[3]) : types.end();
  const bool of_32 = type != types.end() &&
                     (type->second == TensorType::kQ4_0 || type->second == TensorType::kQ8_0);
  if (type == types.end() || verb != (of_32 ? "requantize" : "random")) {
    std::cerr << "usage: kvd_make_gguf requantize FILE q4_0|q8_0 OUT\n"
                 "       kvd_make_gguf random FILE q4_k|q5_k|q6_k OUT\n";
    return 2;
  }
  const auto file = Gguf::open(argv[2]);
  if (!file.ok()) return std::cerr << file.status().message() << "\n", 2;
  const bool written =
      of_32 ? requantize(*file, type->second, argv[4]) : write_random(*file, type->second, argv[4]);
  if (!written) std::cerr << argv[4] << ": cannot be written\n";
  return written ? 0 : 2;
}
