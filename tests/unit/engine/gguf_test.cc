#include "engine/gguf.h"

#include <stdlib.h>
#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/rng.h"
#include "support/gguf_builder.h"

namespace kvd::engine {
namespace {

using Catch::Matchers::Contains;
using test::GgufBuilder;

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "kvd-gguf-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

GgufBuilder every_type() {
  GgufBuilder b;
  b.meta("general.architecture", "llama")
      .meta("u8", std::uint8_t{200})
      .meta("i8", std::int8_t{-3})
      .meta("u16", std::uint16_t{60000})
      .meta("i16", std::int16_t{-300})
      .meta("u32", std::uint32_t{4000000000})
      .meta("i32", std::int32_t{-5})
      .meta("f32", 1.5F)
      .meta("bool", true)
      .meta("u64", std::uint64_t{1} << 63)
      .meta("i64", std::int64_t{-7})
      .meta("f64", 0.25)
      .meta("strings", std::vector<std::string>{"", "a", "bc"})
      .meta("ints", std::vector<std::int32_t>{-1, 0, 1})
      .meta("floats", std::vector<float>{0.5F, -2.0F})
      .tensor_f32("norm", {3}, {1, 2, 3})
      .tensor("matrix", TensorType::kQ8_0, {32, 2}, std::vector<std::byte>(68, std::byte{7}));
  return b;
}

std::string refusal(const std::vector<std::byte>& bytes) {
  const Result<Gguf> file = Gguf::parse(bytes, "m.gguf");
  REQUIRE_FALSE(file.ok());
  CHECK(file.status().code() == StatusCode::kInvalidArgument);
  CHECK_THAT(file.status().message(), Catch::Matchers::StartsWith("m.gguf: "));
  CHECK(file.status().message().find('\n') == std::string::npos);
  return file.status().message();
}
std::string refusal(const GgufBuilder& builder) { return refusal(builder.build()); }

std::string raw(std::uint64_t value, std::size_t bytes) {
  return std::string(reinterpret_cast<const char*>(&value), bytes);
}

TEST_CASE("gguf: every value type is read") {
  const std::vector<std::byte> bytes = every_type().build();
  const Result<Gguf> file = Gguf::parse(bytes, "m.gguf");
  REQUIRE(file.ok());
  CHECK(file->path() == "m.gguf");
  CHECK(file->file_bytes() == bytes.size());
  CHECK(file->meta_string("general.architecture") == "llama");
  CHECK(file->meta_uint("u8") == 200);
  CHECK(std::get<std::int64_t>(*file->meta("i8")) == -3);
  CHECK(file->meta_uint("u16") == 60000);
  CHECK(std::get<std::int64_t>(*file->meta("i16")) == -300);
  CHECK(file->meta_uint("u32") == 4000000000);
  CHECK_FALSE(file->meta_uint("i32").has_value());
  CHECK(file->meta_number("i32") == -5.0);
  CHECK(file->meta_number("f32") == 1.5);
  CHECK(file->meta_bool("bool") == true);
  CHECK(file->meta_uint("u64") == std::uint64_t{1} << 63);
  CHECK(file->meta_number("f64") == 0.25);
  CHECK(*file->meta_strings("strings") == std::vector<std::string>{"", "a", "bc"});
  CHECK(*file->meta_ints("ints") == std::vector<std::int64_t>{-1, 0, 1});
  CHECK(std::get<std::vector<double>>(*file->meta("floats")) == std::vector<double>{0.5, -2.0});
  CHECK(file->meta("absent") == nullptr);
  CHECK(file->meta_ints("strings") == nullptr);
  CHECK_FALSE(file->meta_string("u8").has_value());
}

TEST_CASE("gguf: tensors lie where the file says") {
  const std::vector<std::byte> bytes = every_type().build();
  const Result<Gguf> file = Gguf::parse(bytes, "m.gguf");
  REQUIRE(file.ok());
  REQUIRE(file->tensors().size() == 2);
  const Tensor* norm = file->find("norm");
  REQUIRE(norm != nullptr);
  CHECK(norm->columns() == 3);
  CHECK(norm->rows() == 1);
  CHECK(norm->bytes == 12);
  float values[3];
  std::memcpy(values, norm->data, sizeof(values));
  CHECK(values[2] == 3.0F);
  const Tensor* matrix = file->find("matrix");
  REQUIRE(matrix != nullptr);
  CHECK(matrix->type == TensorType::kQ8_0);
  CHECK(matrix->rows() == 2);
  CHECK(matrix->bytes == 68);
  CHECK(matrix->data[67] == std::byte{7});
  CHECK((matrix->data - bytes.data()) % 32 == 0);
  CHECK(file->find("absent") == nullptr);
}

TEST_CASE("gguf: a file cut at any byte is refused") {
  const std::vector<std::byte> bytes = every_type().build();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    // A copy of its own, so that a sanitizer sees a read past the end.
    const std::vector<std::byte> cut(bytes.begin(), bytes.begin() + static_cast<long>(size));
    const Result<Gguf> file = Gguf::parse(cut, "m.gguf");
    INFO("at " << size);
    REQUIRE_FALSE(file.ok());
    REQUIRE_THAT(file.status().message(),
                 Contains("offset") || Contains("not a GGUF file") || Contains("do not fit"));
  }
}

TEST_CASE("gguf: changed bytes never read past the file") {
  const std::vector<std::byte> bytes = every_type().build();
  Rng rng(7);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> copy = bytes;
    for (std::uint64_t n = 1 + rng.below(4); n > 0; --n) {
      const auto value = rng.chance(0.3) ? 0xff : static_cast<unsigned>(rng.below(256));
      copy[rng.below(copy.size())] = static_cast<std::byte>(value);
    }
    const Result<Gguf> file = Gguf::parse(copy, "m.gguf");
    if (!file.ok()) {
      ++refused;
      continue;
    }
    for (const Tensor& t : file->tensors()) {
      REQUIRE(t.data >= copy.data());
      REQUIRE(t.data + t.bytes <= copy.data() + copy.size());
    }
  }
  CHECK(refused > 1000);
}

TEST_CASE("gguf: another format, version or byte order is refused with what it is") {
  std::vector<std::byte> bytes = every_type().build();
  CHECK_THAT(refusal(every_type().version(2)), Contains("version 2"));
  CHECK_THAT(refusal(every_type().version(4)), Contains("version 4"));
  CHECK_THAT(refusal(every_type().version(0x03000000)), Contains("big-endian"));
  bytes[0] = std::byte{'g'};
  CHECK_THAT(refusal(bytes), Contains("not a GGUF file"));
  CHECK_THAT(refusal(std::vector<std::byte>{}), Contains("not a GGUF file"));
}

TEST_CASE("gguf: counts that cannot fit the file are refused before anything is allocated") {
  CHECK_THAT(refusal(every_type().claim_tensors(UINT64_MAX)), Contains("tensors do not fit"));
  CHECK_THAT(refusal(every_type().claim_entries(UINT64_MAX)), Contains("entries do not fit"));
  const auto array = [](std::uint32_t type, std::uint64_t count) {
    return refusal(GgufBuilder().meta_raw("k", 9, raw(type, 4) + raw(count, 8) + "xxxxxxxx"));
  };
  CHECK_THAT(array(0, UINT64_MAX), Contains("at most 16777216"));
  CHECK_THAT(array(10, 1 << 20), Contains("truncated at offset"));
  CHECK_THAT(array(8, 1 << 20), Contains("truncated at offset"));
  CHECK_THAT(array(12, 2), Contains("truncated at offset"));
  // A string, a key and a name whose length runs past the end, or around.
  for (std::uint64_t length : {std::uint64_t{100}, std::uint64_t{1} << 40, UINT64_MAX}) {
    CHECK_THAT(refusal(GgufBuilder().meta_raw("k", 8, raw(length, 8) + "short")),
               Contains("truncated at offset") && Contains("(key 'k')"));
  }
  CHECK_THAT(refusal(GgufBuilder().meta(std::string(65536, 'k'), true)), Contains("65536 bytes"));
  CHECK_THAT(refusal(GgufBuilder().tensor_f32(std::string(256, 'n'), {1}, {1})),
             Contains("256 bytes"));
}

TEST_CASE("gguf: metadata that means nothing is refused") {
  CHECK_THAT(refusal(GgufBuilder().meta_raw("k", 13, "xxxxxxxx")), Contains("unknown value type"));
  CHECK_THAT(refusal(GgufBuilder().meta_raw("k", 7, std::string(1, '\x02'))), Contains("boolean"));
  CHECK_THAT(refusal(GgufBuilder().meta_raw("k", 9, raw(9, 4) + raw(1, 8) + "xxxx")),
             Contains("array of arrays"));
  CHECK_THAT(refusal(GgufBuilder().meta_raw("k", 9, raw(77, 4) + raw(1, 8) + "xxxx")),
             Contains("unknown type 77"));
  CHECK_THAT(refusal(GgufBuilder().meta("k", true).meta("k", false)), Contains("there twice"));
  CHECK_THAT(refusal(GgufBuilder().meta("", true).meta("k", 1)), Contains("empty metadata key"));
  const std::vector<std::uint64_t> large{UINT64_MAX};
  CHECK_THAT(refusal(GgufBuilder().meta("k", large)), Contains("above 2^63-1"));
  CHECK_THAT(refusal(GgufBuilder().alignment(24)), Contains("alignment"));
  CHECK_THAT(refusal(GgufBuilder().alignment(0)), Contains("alignment"));
  CHECK_THAT(refusal(GgufBuilder().meta("general.alignment", "32")), Contains("alignment"));
}

TEST_CASE("gguf: a tensor of impossible shape, type or place is refused") {
  const std::vector<std::byte> data(64, std::byte{});
  const auto tensor = [&](std::uint32_t type, std::vector<std::uint64_t> dims,
                          std::optional<std::uint64_t> offset = {}) {
    return refusal(GgufBuilder().tensor_raw("t", type, std::move(dims), data, offset));
  };
  CHECK_THAT(tensor(0, {}), Contains("do not fit") || Contains("0 dimensions"));
  CHECK_THAT(tensor(0, {1, 1, 1, 1, 1}), Contains("5 dimensions"));
  CHECK_THAT(tensor(0, {4, 0}), Contains("empty dimension"));
  CHECK_THAT(tensor(0, {std::uint64_t{1} << 32, std::uint64_t{1} << 32}), Contains("overflows"));
  CHECK_THAT(tensor(0, {std::uint64_t{1} << 63}), Contains("overflows"));
  CHECK_THAT(tensor(8, {31}), Contains("no multiple of the 32"));
  CHECK_THAT(tensor(12, {128}), Contains("no multiple of the 256"));
  CHECK_THAT(tensor(16, {32}), Contains("has type 16") && Contains("Q4_1"));
  CHECK_THAT(tensor(4, {32}), Contains("has type 4"));
  CHECK_THAT(tensor(0, {17}), Contains("truncated"));
  CHECK_THAT(tensor(0, {16}, 32), Contains("truncated"));
  CHECK_THAT(tensor(0, {4}, 4), Contains("not aligned"));
  CHECK_THAT(tensor(0, {4}, UINT64_MAX - 31), Contains("overflows"));
  CHECK_THAT(tensor(0, {4}, std::uint64_t{1} << 62), Contains("truncated"));
  CHECK_THAT(refusal(GgufBuilder().tensor_f32("t", {1}, {1}).tensor_f32("t", {1}, {1})),
             Contains("'t' is there twice"));
  CHECK_THAT(refusal(GgufBuilder().tensor_f32("", {1}, {1}).meta("k", std::string(40, 'x'))),
             Contains("empty tensor name"));
  CHECK_THAT(refusal(GgufBuilder().tensor_raw("\n\x1b[2J", 99, {1}, data, {})),
             Contains("'??[2J'"));
}

TEST_CASE("gguf: a larger alignment is followed") {
  GgufBuilder b;
  b.alignment(256).tensor_f32("a", {1}, {1}).tensor_f32("b", {1}, {2});
  const std::vector<std::byte> bytes = b.build();
  const Result<Gguf> file = Gguf::parse(bytes, "m.gguf");
  REQUIRE(file.ok());
  CHECK((file->find("b")->data - bytes.data()) % 256 == 0);
  float value = 0;
  std::memcpy(&value, file->find("b")->data, sizeof(value));
  CHECK(value == 2.0F);
}

TEST_CASE("gguf: a mapped file is what was written, and outlives moves and dropped pages") {
  const TemporaryDirectory dir;
  every_type().write(dir.file("m.gguf"));
  Result<Gguf> opened = Gguf::open(dir.file("m.gguf"));
  REQUIRE(opened.ok());
  Gguf first = std::move(opened).value();
  const Gguf file = std::move(first);
  const Tensor* matrix = file.find("matrix");
  REQUIRE(matrix != nullptr);
  file.drop_cache(*matrix);
  CHECK(matrix->data[5] == std::byte{7});
  const std::vector<std::byte> bytes = every_type().build();
  CHECK(file.fingerprint() == Gguf::parse(bytes, "elsewhere")->fingerprint());
}

TEST_CASE("gguf: the fingerprint is of the content") {
  const std::vector<std::byte> bytes = every_type().build();
  const std::string print = Gguf::parse(bytes, "a")->fingerprint();
  CHECK(print.size() == 32);
  std::vector<std::byte> weight = bytes;
  weight.back() = std::byte{8};
  CHECK(Gguf::parse(weight, "a")->fingerprint() != print);
  const std::vector<std::byte> meta = every_type().meta("one.more", true).build();
  CHECK(Gguf::parse(meta, "a")->fingerprint() != print);
  const std::vector<std::byte> bare = GgufBuilder().meta("k", 1).build();
  CHECK(Gguf::parse(bare, "a")->fingerprint().size() == 32);
}

TEST_CASE("gguf: what is no readable file is refused by name") {
  const TemporaryDirectory dir;
  CHECK_THAT(Gguf::open(dir.file("none")).status().message(),
             Contains("none: cannot open: No such file"));
  CHECK_THAT(Gguf::open(dir.file(".")).status().message(), Contains("not a regular file"));
  REQUIRE(::mkfifo(dir.file("fifo").c_str(), 0600) == 0);
  CHECK_THAT(Gguf::open(dir.file("fifo")).status().message(), Contains("not a regular file"));
  std::ofstream(dir.file("empty")).flush();
  CHECK_THAT(Gguf::open(dir.file("empty")).status().message(), Contains("it is empty"));
  std::ofstream(dir.file("text")) << "hello";
  CHECK_THAT(Gguf::open(dir.file("text")).status().message(), Contains("not a GGUF file"));
}

}  // namespace
}  // namespace kvd::engine
