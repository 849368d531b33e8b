// Writes GGUF files in memory for tests: valid ones of any shape and type, and broken ones on
// request. Nothing is checked: what a test asks for is what it gets.
//
//   std::vector<std::byte> file = GgufBuilder()
//       .meta("general.architecture", "llama").meta("llama.block_count", std::uint32_t{2})
//       .tensor_f32("output_norm.weight", {64}, std::vector<float>(64, 1.0F))
//       .tensor("output.weight", TensorType::kQ8_0, {64, 100}, bytes)
//       .build();
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/gguf.h"

namespace kvd::test {

class GgufBuilder {
 public:
  static constexpr std::uint32_t kString = 8, kArray = 9;

  // bool, any integer, float, double: stored as the GGUF type of the same width and sign.
  template <typename T>
  requires std::is_arithmetic_v<T> GgufBuilder& meta(std::string_view key, T value) {
    entry(key, type_of<T>());
    put_value(value);
    return *this;
  }
  GgufBuilder& meta(std::string_view key, std::string_view value) {
    entry(key, kString);
    put_string(value);
    return *this;
  }
  GgufBuilder& meta(std::string_view key, const char* value) {
    return meta(key, std::string_view(value));
  }
  GgufBuilder& meta(std::string_view key, const std::string& value) {
    return meta(key, std::string_view(value));
  }
  GgufBuilder& meta(std::string_view key, const std::vector<std::string>& values) {
    array(key, kString, values.size());
    for (const std::string& v : values) put_string(v);
    return *this;
  }
  // Integers of 8 to 64 bits, float, double; not bool.
  template <typename T>
  requires std::is_arithmetic_v<T> GgufBuilder& meta(std::string_view key,
                                                     const std::vector<T>& values) {
    array(key, type_of<T>(), values.size());
    for (const T& v : values) put_value(v);
    return *this;
  }
  // A key with a type number and value bytes as given: for hostile files.
  GgufBuilder& meta_raw(std::string_view key, std::uint32_t type, std::string_view bytes) {
    entry(key, type);
    meta_.insert(meta_.end(), bytes.begin(), bytes.end());
    return *this;
  }

  // dims: fastest first, {columns, rows}.
  GgufBuilder& tensor(std::string_view name, engine::TensorType type,
                      std::vector<std::uint64_t> dims, std::vector<std::byte> bytes) {
    return tensor_raw(name, static_cast<std::uint32_t>(type), std::move(dims), std::move(bytes),
                      {});
  }
  GgufBuilder& tensor_f32(std::string_view name, std::vector<std::uint64_t> dims,
                          const std::vector<float>& values) {
    std::vector<std::byte> bytes(values.size() * sizeof(float));
    if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
    return tensor(name, engine::TensorType::kF32, std::move(dims), std::move(bytes));
  }
  // Any type number; `offset` replaces the true one.
  GgufBuilder& tensor_raw(std::string_view name, std::uint32_t type,
                          std::vector<std::uint64_t> dims, std::vector<std::byte> bytes,
                          std::optional<std::uint64_t> offset) {
    tensors_.push_back({std::string(name), type, std::move(dims), std::move(bytes), offset});
    return *this;
  }

  // Also writes general.alignment.
  GgufBuilder& alignment(std::uint32_t value) {
    alignment_ = value;
    return meta("general.alignment", value);
  }
  GgufBuilder& version(std::uint32_t value) {
    version_ = value;
    return *this;
  }
  GgufBuilder& claim_tensors(std::uint64_t count) {
    claimed_tensors_ = count;
    return *this;
  }
  GgufBuilder& claim_entries(std::uint64_t count) {
    claimed_entries_ = count;
    return *this;
  }

  std::vector<std::byte> build() const {
    std::string out = "GGUF";
    append(out, version_);
    append(out, claimed_tensors_.value_or(tensors_.size()));
    append(out, claimed_entries_.value_or(entries_));
    out += meta_;
    std::string data;
    for (const Entry& t : tensors_) {
      append(out, static_cast<std::uint64_t>(t.name.size()));
      out += t.name;
      append(out, static_cast<std::uint32_t>(t.dims.size()));
      for (std::uint64_t d : t.dims) append(out, d);
      append(out, t.type);
      pad(data);
      append(out, t.offset.value_or(data.size()));
      data.append(reinterpret_cast<const char*>(t.bytes.data()), t.bytes.size());
    }
    if (!tensors_.empty()) pad(out);
    out += data;
    const auto* begin = reinterpret_cast<const std::byte*>(out.data());
    return {begin, begin + out.size()};
  }

  void write(const std::string& path) const {
    const std::vector<std::byte> bytes = build();
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    if (!file.good()) throw std::runtime_error("cannot write " + path);
  }

  template <typename T>
  static constexpr std::uint32_t type_of() {
    if constexpr (std::is_same_v<T, bool>) return 7;
    if constexpr (std::is_same_v<T, float>) return 6;
    if constexpr (std::is_same_v<T, double>) return 12;
    constexpr std::uint32_t kSigned = std::is_signed_v<T> ? 1 : 0;
    constexpr std::uint32_t kBase = sizeof(T) == 1   ? 0
                                    : sizeof(T) == 2 ? 2
                                    : sizeof(T) == 4 ? 4
                                                     : 10;
    return kBase + kSigned;
  }

 private:
  struct Entry {
    std::string name;
    std::uint32_t type;
    std::vector<std::uint64_t> dims;
    std::vector<std::byte> bytes;
    std::optional<std::uint64_t> offset;
  };
  template <typename T>
  static void append(std::string& out, T value) {
    static_assert(std::endian::native == std::endian::little);
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    out.append(raw, sizeof(T));
  }
  template <typename T>
  void put_value(T value) {
    append(meta_, value);
  }
  void put_string(std::string_view text) {
    append(meta_, static_cast<std::uint64_t>(text.size()));
    meta_ += text;
  }
  void entry(std::string_view key, std::uint32_t type) {
    ++entries_;
    put_string(key);
    append(meta_, type);
  }
  void array(std::string_view key, std::uint32_t type, std::uint64_t count) {
    entry(key, kArray);
    append(meta_, type);
    append(meta_, count);
  }
  void pad(std::string& out) const {
    while (alignment_ != 0 && out.size() % alignment_ != 0) out.push_back('\0');
  }

  std::uint32_t version_ = 3;
  std::uint32_t alignment_ = 32;
  std::uint64_t entries_ = 0;
  std::optional<std::uint64_t> claimed_tensors_, claimed_entries_;
  std::string meta_;
  std::vector<Entry> tensors_;
};

}  // namespace kvd::test
