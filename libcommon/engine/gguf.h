// GGUF v3 files, memory-mapped. Every count, offset and length is checked against the file before use;
// a hostile file gets an error that names the offset. Format: ggml docs/gguf.md; block layouts below.
//
// Immutable after open(); any thread. Tensor data points into the mapping and lives as long as the Gguf.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/status.h"

namespace kvd::engine {

// ggml's type numbers.
enum class TensorType : std::uint32_t {
  kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ5_0 = 6, kQ5_1 = 7, kQ8_0 = 8,
  kQ4_K = 12, kQ5_K = 13, kQ6_K = 14, kBF16 = 30,
};
struct TensorTypeInfo {
  TensorType type;
  std::string_view name;
  std::uint32_t block;  // elements
  std::uint32_t bytes;  // of a block
};
const TensorTypeInfo* tensor_type_info(std::uint32_t type);  // null: unknown

struct Tensor {
  std::string name;
  TensorType type = TensorType::kF32;
  std::vector<std::uint64_t> dims;  // fastest first: {columns, rows}
  const std::byte* data = nullptr;
  std::uint64_t bytes = 0;
  std::uint64_t columns() const { return dims.empty() ? 0 : dims[0]; }
  std::uint64_t rows() const { return dims.size() < 2 ? 1 : dims[1]; }
};

using GgufValue = std::variant<std::uint64_t, std::int64_t, double, bool, std::string,
                               std::vector<std::string>, std::vector<std::int64_t>,
                               std::vector<double>>;

class Gguf {
 public:
  // Errors: kInvalidArgument "FILE: not a GGUF file (...)", "FILE: truncated at offset ...".
  static Result<Gguf> open(const std::string& path);
  // The same from memory (fuzzing, tests); `bytes` must outlive the Gguf.
  static Result<Gguf> parse(std::span<const std::byte> bytes, const std::string& name);

  Gguf(Gguf&&) noexcept;
  Gguf& operator=(Gguf&&) noexcept;
  ~Gguf();

  const std::string& path() const { return path_; }
  std::uint64_t file_bytes() const { return bytes_.size(); }
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor* find(const std::string& name) const;
  const GgufValue* meta(const std::string& key) const;
  std::optional<std::string> meta_string(const std::string& key) const;
  std::optional<std::uint64_t> meta_uint(const std::string& key) const;
  std::optional<double> meta_number(const std::string& key) const;
  std::optional<bool> meta_bool(const std::string& key) const;
  const std::vector<std::string>* meta_strings(const std::string& key) const;
  const std::vector<std::int64_t>* meta_ints(const std::string& key) const;
  // xxh3-128 (hex) over the metadata, the tensor infos and a sample of each tensor: equal files have equal
  // fingerprints without reading all of them.
  std::string fingerprint() const;
  // Tells the kernel that the pages of a tensor's data are no longer needed (weights are packed).
  void drop_cache(const Tensor& tensor) const;

 private:
  Gguf() = default;
  std::string path_;
  std::span<const std::byte> bytes_;
  bool mapped_ = false;
  std::map<std::string, GgufValue> meta_;
  std::vector<Tensor> tensors_;
  std::map<std::string, std::size_t> by_name_;
};

}  // namespace kvd::engine
