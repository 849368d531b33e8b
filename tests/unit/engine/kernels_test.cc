// Each instruction set's inner loops against plain double arithmetic on the same inputs.
#include "engine/cpu/kernels.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "base/rng.h"
#include "engine/cpu/dispatch.h"
#include "engine/cpu/float16.h"
#include "engine/cpu/pack.h"
#include "support/tiny_llama.h"

namespace kvd::engine::cpu {
namespace {

// Packed as the loader packs, on memory as aligned as the loader's, with `between` bytes of another
// matrix behind every two panels.
struct Packed {
  Packed(const std::vector<std::byte>& file_bytes, const std::string& name, std::size_t between = 0)
      : file(Gguf::parse(file_bytes, "t").value()) {
    const Tensor& tensor = *file.find(name);
    matrix = plan_matrix(tensor).value();
    matrix.pair_stride += between;
    memory.reset(static_cast<std::byte*>(::operator new(packed_bytes(matrix), kAlign)));
    std::fill_n(memory.get(), packed_bytes(matrix), std::byte{0xFF});
    for (std::uint32_t p = 0; p < matrix.panels; ++p) {
      pack_panel(tensor, matrix, p, memory.get() + panel_at(matrix, p));
    }
    matrix.data = memory.get();
  }
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, kAlign); }
  };
  Gguf file;
  Matrix matrix;
  std::unique_ptr<std::byte, Free> memory;
};

bool is_amx(const Kernels& kernels) { return kernels.name == std::string("amx"); }
double as_bf16(double value) {
  return double{bf16_to_float(float_to_bf16(static_cast<float>(value)))};
}
std::size_t quantized_bytes(const Kernels& kernels, std::uint32_t columns) {
  return kernels.quantized_row_bytes == nullptr ? 0 : kernels.quantized_row_bytes(columns);
}

struct Inputs {
  Inputs(const Kernels& kernels, std::uint32_t rows, std::uint32_t columns, std::uint64_t seed,
         bool offsets = false)
      : floats(std::size_t{rows} * columns), quantized(rows * quantized_bytes(kernels, columns)) {
    Rng rng(seed);
    for (float& v : floats) v = static_cast<float>(rng.uniform() * 2 - 1);
    // A block of zeros and a block of extremes among the rest.
    for (std::uint32_t i = 0; i < kBlock && columns >= 2 * kBlock; ++i) {
      floats[i] = 0;
      floats[kBlock + i] = i % 2 == 0 ? 1.0F : -1.0F;
    }
    x = {floats.data(), columns, quantized.data(), quantized_bytes(kernels, columns), offsets};
    seen.assign(floats.begin(), floats.end());
    for (std::uint32_t row = 0; row < rows && x.quantized_stride != 0; ++row) {
      std::byte* to = quantized.data() + row * x.quantized_stride;
      kernels.quantize(floats.data() + row * columns, columns, 0, columns / kBlock, offsets, to);
    }
  }
  // What a block-quantized matrix is multiplied with.
  void use_bf16() {
    for (double& v : seen) v = as_bf16(v);
  }
  void use_int8(std::uint32_t rows, std::uint32_t columns) {
    for (std::uint32_t row = 0; row < rows; ++row) {
      const std::byte* from = quantized.data() + row * x.quantized_stride;
      for (std::uint32_t k = 0; k < columns; ++k) {
        const auto number = [&](std::uint32_t array) {
          float value = 0;
          const std::uint32_t place = array * columns / kBlock + k / kBlock;
          std::memcpy(&value, from + columns + place * sizeof value, sizeof value);
          return double{value};
        };
        seen[row * columns + k] = number(0) * static_cast<signed char>(from[k]) + number(2);
      }
    }
  }
  std::vector<float> floats;
  std::vector<std::byte> quantized;
  std::vector<double> seen;
  Activations x;
};

void check_linear(const Kernels& kernels, const Matrix& matrix, std::vector<double> weights,
                  std::uint32_t rows, bool add, bool offsets) {
  Inputs inputs(kernels, rows, matrix.columns, 3, offsets);
  if (is_quantized(matrix.type) && is_amx(kernels)) {
    inputs.use_bf16();
    for (double& w : weights) w = as_bf16(w);
  } else if (is_quantized(matrix.type) && inputs.x.quantized_stride != 0) {
    inputs.use_int8(rows, matrix.columns);
  }
  std::vector<std::byte> scratch(linear_scratch_bytes(matrix.columns) + 64);
  void* aligned = scratch.data();
  std::size_t space = scratch.size();
  std::align(64, space - 64, aligned, space);
  // A guard behind each row shows a store beyond the matrix.
  const std::size_t stride = matrix.rows + 3;
  std::vector<float> out(rows * stride, 0.25F);
  const std::uint32_t half = matrix.panels / 2;
  for (const auto& [begin, end] : {std::pair{0U, half}, std::pair{half, matrix.panels}}) {
    kernels.linear(matrix, begin, end, inputs.x, rows, out.data(), stride, add,
                   static_cast<std::byte*>(aligned));
  }
  double worst = 0;
  for (std::uint32_t row = 0; row < rows; ++row) {
    for (std::uint32_t r = 0; r < matrix.rows; ++r) {
      double sum = add ? 0.25 : 0;
      for (std::uint32_t k = 0; k < matrix.columns; ++k) {
        sum += weights[std::size_t{r} * matrix.columns + k] * inputs.seen[row * matrix.columns + k];
      }
      worst = std::max(worst, std::fabs(sum - double{out[row * stride + r]}));
    }
    for (std::size_t g = matrix.rows; g < stride; ++g) REQUIRE(out[row * stride + g] == 0.25F);
  }
  // Two bf16 parts hold 16 bits of a float.
  CHECK(worst < (is_amx(kernels) && !is_quantized(matrix.type) ? 4e-5 : 1e-5));
}

constexpr const char* kEmbedding = "token_embd.weight";

TEST_CASE("kernels: products of every type and row count are those of double arithmetic") {
  const bool offsets = GENERATE(false, true);
  test::TinyLlama tiny;
  // The embedding has a width of its own and any number of rows: the last panel has 14.
  tiny.type = TensorType::kF32, tiny.layers = 1;
  tiny.embedding_type =
      GENERATE(TensorType::kF32, TensorType::kF16, TensorType::kBF16, TensorType::kQ4_0,
               TensorType::kQ4_1, TensorType::kQ8_0, TensorType::kQ5_0, TensorType::kQ5_1,
               TensorType::kQ4_K, TensorType::kQ5_K, TensorType::kQ6_K);
  const auto type = static_cast<std::uint32_t>(tiny.embedding_type);
  if (tensor_type_info(type)->block == 256) tiny.hidden = 512;
  tiny.make();
  const Packed packed(tiny.builder.build(), kEmbedding, GENERATE(0U, 192U));
  for (const std::string& name : available_kernels()) {
    const Kernels& kernels = *select_kernels(name).value();
    for (std::uint32_t rows : {1U, 2U, 3U, 4U, 5U, 7U, 8U, 9U, 12U, 18U, 19U}) {
      CAPTURE(name, type, rows, offsets);
      check_linear(kernels, packed.matrix, tiny.weights.at(kEmbedding).values, rows, rows % 2 == 0,
                   offsets);
    }
  }
}

// Full and partial tiles of 16 and 32 tokens, an odd number of panels, several slices of columns,
// of which Q4_K's begin within a super-block.
TEST_CASE("kernels: products of many rows and columns are those of double arithmetic") {
  const bool offsets = GENERATE(false, true);
  test::TinyLlama tiny;
  tiny.type = TensorType::kF32, tiny.layers = 1;
  tiny.embedding_type = GENERATE(TensorType::kBF16, TensorType::kF16, TensorType::kQ4_1,
                                 TensorType::kQ8_0, TensorType::kQ4_K);
  tiny.hidden = GENERATE(576U, 704U);
  if (tiny.embedding_type == TensorType::kQ4_K) tiny.hidden = tiny.hidden == 576 ? 1280 : 2048;
  tiny.vocab = 265;
  tiny.make();
  const Packed packed(tiny.builder.build(), kEmbedding);
  for (const std::string& name : available_kernels()) {
    const Kernels& kernels = *select_kernels(name).value();
    for (std::uint32_t rows : {16U, 31U, 32U, 33U, 49U, 64U, 257U}) {
      if (name == "scalar" && rows > 33) continue;  // slow, and the same for every row
      CAPTURE(name, rows, tiny.hidden, offsets);
      check_linear(kernels, packed.matrix, tiny.weights.at(kEmbedding).values, rows, rows % 2 == 0,
                   offsets);
    }
  }
}

// The last number of each block gets the other sign: all others are then quantized to 127 or -127.
void opposite_in_each_block(std::vector<float>& numbers) {
  for (std::size_t i = kBlock - 1; i < numbers.size(); i += kBlock) numbers[i] = -numbers[i];
}

// Four bits at 15, five at 31, six at -32 and 31, against activations at -127 and 127.
TEST_CASE("kernels: the largest values of K-quants' blocks do not overflow") {
  const TensorType type = GENERATE(TensorType::kQ4_K, TensorType::kQ5_K, TensorType::kQ6_K);
  const bool six = type == TensorType::kQ6_K, offsets = GENERATE(false, true);
  const unsigned fill = GENERATE(0U, 255U);
  CAPTURE(static_cast<int>(type), fill);
  const std::uint32_t columns = 512, rows = 9;
  const std::size_t size = tensor_type_info(static_cast<std::uint32_t>(type))->bytes;
  std::vector<std::byte> block(size, static_cast<std::byte>(fill));
  const auto put = [&](std::size_t at, unsigned half) {
    block[at] = static_cast<std::byte>(half & 255);
    block[at + 1] = static_cast<std::byte>(half >> 8);
  };
  if (six) {
    std::fill_n(block.begin() + 192, 16, std::byte{1});
    put(208, 0x3C00);
  } else {
    // All scales 63 or 0, no minimum: w = 63/64 * q.
    put(0, 0x2400), put(2, 0);
  }
  const double most = type == TensorType::kQ4_K ? 15 : 31;
  const double weight = six ? (fill == 0 ? -32 : 31) : (fill == 0 ? 0 : most * 63.0 / 64);
  std::vector<std::byte> bytes;
  for (std::uint32_t i = 0; i < 16 * columns / 256; ++i) {
    bytes.insert(bytes.end(), block.begin(), block.end());
  }
  test::GgufBuilder builder;
  builder.tensor("w", type, {columns, 16}, bytes);
  const Packed packed(builder.build(), "w");
  for (const std::string& name : available_kernels()) {
    const Kernels& kernels = *select_kernels(name).value();
    for (const float value : {-1.0F, 1.0F}) {
      CAPTURE(name, value);
      Inputs inputs(kernels, rows, columns, 1, offsets);
      std::fill(inputs.floats.begin(), inputs.floats.end(), value);
      opposite_in_each_block(inputs.floats);
      for (std::uint32_t row = 0; row < rows && inputs.x.quantized_stride != 0; ++row) {
        kernels.quantize(inputs.floats.data() + row * columns, columns, 0, columns / kBlock,
                         offsets, inputs.quantized.data() + row * inputs.x.quantized_stride);
      }
      std::vector<float> out(std::size_t{rows} * 16);
      const std::unique_ptr<std::byte, Packed::Free> scratch(
          static_cast<std::byte*>(::operator new(linear_scratch_bytes(columns), Packed::kAlign)));
      kernels.linear(packed.matrix, 0, 1, inputs.x, rows, out.data(), 16, false, scratch.get());
      const double used = is_amx(kernels) ? as_bf16(weight) : weight;
      for (float v : out) CHECK(double{v} == Approx(used * double{value} * columns * 30 / 32));
    }
  }
}

TEST_CASE("kernels: the largest values that 4- and 8-bit blocks can hold do not overflow") {
  const bool eight = GENERATE(false, true), offsets = GENERATE(false, true);
  const std::uint32_t columns = 64, matrix_rows = 16;
  // d = 1: every weight 15, or -128.
  std::vector<std::byte> bytes;
  for (std::uint32_t b = 0; b < matrix_rows * columns / 32; ++b) {
    bytes.insert(bytes.end(), {std::byte{0}, std::byte{0x3C}});
    if (!eight) bytes.insert(bytes.end(), {std::byte{0}, std::byte{0}});
    bytes.insert(bytes.end(), eight ? 32 : 16, eight ? std::byte{0x80} : std::byte{0xFF});
  }
  const auto file =
      test::GgufBuilder()
          .tensor("w", eight ? TensorType::kQ8_0 : TensorType::kQ4_1, {columns, matrix_rows}, bytes)
          .build();
  const Packed packed(file, "w");
  const double weight = eight ? -128 : 15;
  for (const std::string& name : available_kernels()) {
    const Kernels& kernels = *select_kernels(name).value();
    for (std::uint32_t rows : {1U, 4U, 12U}) {
      for (float value : {127.0F, -127.0F}) {
        CAPTURE(name, eight, rows, value);
        std::vector<float> floats(std::size_t{rows} * columns, value);
        opposite_in_each_block(floats);
        const std::size_t row_bytes = quantized_bytes(kernels, columns);
        std::vector<std::byte> quantized(rows * row_bytes);
        const Activations x{floats.data(), columns, quantized.data(), row_bytes, offsets};
        for (std::uint32_t r = 0; r < rows; ++r) {
          kernels.quantize(floats.data(), columns, 0, 2, offsets,
                           quantized.data() + r * x.quantized_stride);
        }
        alignas(64) std::byte scratch[2 * 64 * kPanelRows * sizeof(float)];
        std::vector<float> out(std::size_t{rows} * matrix_rows);
        kernels.linear(packed.matrix, 0, 1, x, rows, out.data(), matrix_rows, false, scratch);
        for (float v : out) CHECK(double{v} == Approx(weight * double{value} * columns * 30 / 32));
      }
    }
  }
}

TEST_CASE("kernels: norms and activations are those of double arithmetic") {
  Rng rng(5);
  std::vector<float> x(576), weight(576), up(576);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(rng.uniform() * 40 - 20);
    weight[i] = static_cast<float>(rng.uniform());
    up[i] = static_cast<float>(rng.uniform());
  }
  x[0] = -200, x[1] = 200, x[2] = 0;
  double squares = 0;
  for (float v : x) squares += double{v} * double{v};
  const double scale = 1 / std::sqrt(squares / 576 + 1e-5);
  for (const std::string& name : available_kernels()) {
    CAPTURE(name);
    const Kernels& kernels = *select_kernels(name).value();
    std::vector<float> normed(x.size()), gate = x;
    kernels.rms_norm(x.data(), weight.data(), 1e-5F, 576, normed.data());
    kernels.swiglu(gate.data(), up.data(), 576);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double v{x[i]};
      CHECK(double{normed[i]} == Approx(v * scale * double{weight[i]}).margin(1e-7));
      CHECK(double{gate[i]} ==
            Approx(v / (1 + std::exp(-v)) * double{up[i]}).margin(1e-7).epsilon(1e-5));
    }
  }
}

TEST_CASE("kernels: bf16 rounds to nearest, ties to even, and keeps NaN") {
  CHECK(float_to_bf16(1.0F) == 0x3F80);
  CHECK(float_to_bf16(bits_to_float(0x3F808000)) == 0x3F80);  // tie, even below
  CHECK(float_to_bf16(bits_to_float(0x3F818000)) == 0x3F82);  // tie, even above
  CHECK(float_to_bf16(bits_to_float(0x3F808001)) == 0x3F81);
  CHECK(float_to_bf16(-3.0e38F) == 0xFF62);
  CHECK((float_to_bf16(bits_to_float(0x7F800001)) & 0x7FFF) > 0x7F80);
  CHECK(half_to_float(0x3C00) == 1.0F);
  CHECK(half_to_float(0x8001) == -0x1.0p-24F);
  CHECK(half_to_float(0x7BFF) == 65504.0F);
}

TEST_CASE("kernels: f16 rounds to nearest, ties to even, and every f16 comes back") {
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    const float value = half_to_float(static_cast<std::uint16_t>(half));
    if (value != value) continue;
    if (float_to_half(value) != half) FAIL(half);
  }
  CHECK(float_to_half(1.0F + 0x1p-11F) == 0x3C00);             // tie, even below
  CHECK(float_to_half(1.0F + 3 * 0x1p-11F) == 0x3C02);         // tie, even above
  CHECK(float_to_half(1.0F + 0x1p-11F + 0x1p-20F) == 0x3C01);  // above a tie
  CHECK(float_to_half(0x1p-25F) == 0);                         // subnormal ties
  CHECK(float_to_half(3 * 0x1p-25F) == 2);
  CHECK(float_to_half(-0x1.8p-24F) == 0x8002);
  CHECK(float_to_half(65519.0F) == 0x7BFF);
  CHECK(float_to_half(65520.0F) == 0x7C00);
  CHECK((float_to_half(bits_to_float(0x7F800001)) & 0x7FFF) > 0x7C00);
}

// What a file may hold that no quantizer writes: the answer is as far from a number on every path.
TEST_CASE("kernels: scales that are no numbers, negative or huge do the same on every path") {
  const std::uint16_t halves[] = {0x0000, 0x8000, 0x0001, 0x83FF, 0x3C00, 0xBC00,
                                  0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00};
  const std::uint32_t columns = 256, rows = 6;
  for (const std::uint16_t d : halves) {
    for (const std::uint16_t dmin : halves) {
      Rng rng(d + std::uint64_t{dmin});
      std::vector<std::byte> bytes(16 * std::size_t{144});
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng.below(256));
      for (std::size_t at = 0; at < bytes.size(); at += 144) {
        std::memcpy(bytes.data() + at, &d, 2), std::memcpy(bytes.data() + at + 2, &dmin, 2);
      }
      test::GgufBuilder builder;
      builder.tensor("w", TensorType::kQ4_K, {columns, 16}, bytes);
      const Packed packed(builder.build(), "w");
      std::vector<float> weights(columns * kPanelRows);
      dequantize_panel(packed.matrix, 0, weights.data());
      const bool numbers = std::isfinite(half_to_float(d)) && std::isfinite(half_to_float(dmin));
      for (const std::string& name : available_kernels()) {
        const Kernels& kernels = *select_kernels(name).value();
        CAPTURE(name, d, dmin);
        Inputs inputs(kernels, rows, columns, 1);
        std::vector<float> out(std::size_t{rows} * 16);
        const std::unique_ptr<std::byte, Packed::Free> scratch(
            static_cast<std::byte*>(::operator new(linear_scratch_bytes(columns), Packed::kAlign)));
        kernels.linear(packed.matrix, 0, 1, inputs.x, rows, out.data(), 16, false, scratch.get());
        for (std::size_t i = 0; i < out.size(); ++i) {
          REQUIRE(std::isfinite(out[i]) == numbers);
          if (!numbers) continue;
          double sum = 0, most = 0;
          for (std::uint32_t k = 0; k < columns; ++k) {
            const double w = weights[k * kPanelRows + i % 16];
            sum += w * double{inputs.floats[i / 16 * columns + k]};
            most = std::max(most, std::fabs(w));
          }
          REQUIRE(std::fabs(sum - double{out[i]}) <= most * 0.3 + 1e-30);
        }
      }
    }
  }
}

// Whole blocks with every bit drawn, as the file has them and packed.
struct AnyScales {
  AnyScales(TensorType type, std::uint32_t columns, std::uint32_t rows) {
    Rng rng(9);
    while (values.size() < std::size_t{columns} * rows) {
      test::QuantBlocks::append(rng, type, 0.05, bytes, values, true);
    }
    test::GgufBuilder builder;
    builder.tensor("w", type, {columns, rows}, bytes);
    packed = std::make_unique<Packed>(builder.build(), "w");
  }
  std::vector<std::byte> bytes;
  std::vector<double> values;
  std::unique_ptr<Packed> packed;
};

// What the file says, but for the rounding of the products of K-quants' scales to f16.
TEST_CASE("kernels: blocks with any scales are unpacked to within the rounding of a scale") {
  const TensorType type =
      GENERATE(TensorType::kQ5_0, TensorType::kQ5_1, TensorType::kQ5_K, TensorType::kQ6_K);
  CAPTURE(static_cast<int>(type));
  const std::uint32_t columns = 512, rows = 20;
  const AnyScales any(type, columns, rows);
  const std::vector<double>& values = any.values;
  const Packed& packed = *any.packed;
  std::vector<float> panel(std::size_t{columns} * kPanelRows), row(columns);
  for (std::uint32_t r = 0; r < rows; ++r) {
    dequantize_row(packed.matrix, r, row.data());
    dequantize_panel(packed.matrix, r / kPanelRows, panel.data());
    double worst = 0, most = 0;
    for (std::uint32_t k = 0; k < columns; ++k) {
      const double value = values[std::size_t{r} * columns + k];
      REQUIRE(panel[k * kPanelRows + r % kPanelRows] == row[k]);
      worst = std::max(worst, std::fabs(double{row[k]} - value));
      most = std::max(most, std::fabs(value));
    }
    CHECK(most > 0.01);
    CHECK(worst < most * 0x1p-10);
  }
}

// Products in double are exact, so that a weight is rounded to f32 once, as by the panels.
TEST_CASE("kernels: weights of Q4_K are the file's formula in f32, exactly") {
  const std::uint32_t columns = 512, rows = 20;
  const AnyScales any(TensorType::kQ4_K, columns, rows);
  const Matrix& matrix = any.packed->matrix;
  std::vector<float> panel(std::size_t{columns} * kPanelRows), row(columns);
  for (std::uint32_t r = 0; r < rows; ++r) {
    dequantize_row(matrix, r, row.data());
    dequantize_panel(matrix, r / kPanelRows, panel.data());
    for (std::uint32_t k = 0; k < columns; ++k) {
      const auto value = static_cast<float>(any.values[std::size_t{r} * columns + k]);
      REQUIRE(row[k] == value);
      REQUIRE(panel[k * kPanelRows + r % kPanelRows] == value);
    }
  }
  // A weight that a path rounds otherwise is one bf16 off now and then, far beyond the limit.
  for (const std::string& name : available_kernels()) {
    const Kernels& kernels = *select_kernels(name).value();
    for (std::uint32_t count : {1U, 4U, 9U, 33U}) {
      CAPTURE(name, count);
      check_linear(kernels, matrix, any.values, count, false, count % 2 == 0);
    }
  }
}

// Written down from the file's blocks, bit by bit (ggml's get_scale_min_k4).
TEST_CASE("kernels: a panel of Q4_K has the file's bits, 4.5 a weight") {
  const std::uint32_t columns = 512, rows = 20, supers = columns / 256;
  const AnyScales any(TensorType::kQ4_K, columns, rows);
  const Matrix& matrix = any.packed->matrix;
  CHECK(matrix.type == PanelType::kQ4K);
  REQUIRE(matrix.panel_bytes == std::size_t{supers} * 2304);
  CHECK(packed_bytes(matrix) * 8 == std::size_t{2 * kPanelRows} * columns * 9 / 2);
  const auto bits = [](const std::byte* at, std::size_t first, std::size_t count) {
    unsigned value = 0;
    for (std::size_t i = 0; i < count; ++i) {
      value |= (static_cast<unsigned>(at[(first + i) / 8]) >> (first + i) % 8 & 1U) << i;
    }
    return value;
  };
  for (std::uint32_t i = 0; i < rows * supers; ++i) {
    const std::uint32_t row = i / supers, r = row % kPanelRows;
    const std::byte* from = any.bytes.data() + std::size_t{i} * 144;
    const std::byte* packed =
        matrix.data + panel_at(matrix, row / kPanelRows) + std::size_t{i % supers} * 2304;
    REQUIRE(bits(packed, 16 * r, 16) == bits(from, 0, 16));
    REQUIRE(bits(packed, 256 + 16 * r, 16) == bits(from, 16, 16));
    for (std::size_t g = 0; g < 8; ++g) {
      CAPTURE(row, g);
      const std::size_t low = 8 * g + (g < 4 ? 32 : 64), top = 8 * g + (g < 4 ? 32 + 4 : 6);
      unsigned scales = 0;
      for (std::size_t bit = 0; bit < 12; ++bit) {
        const std::size_t n = g % 2 * 12 + bit;
        const std::size_t word = g < 6 ? g / 2 : n / 8, place = g < 6 ? n : 24 + n % 8;
        scales |= bits(packed + 64 + 64 * word, 32 * r + place, 1) << bit;
      }
      REQUIRE((scales & 15U) == bits(from, low, 4));
      REQUIRE((scales >> 4 & 3U) == bits(from, top, 2));
      REQUIRE((scales >> 6 & 15U) == bits(from, low + (g < 4 ? 32 : 4), 4));
      REQUIRE(scales >> 10 == bits(from, top + 32, 2));
      const std::byte* units = packed + 256 + 256 * g;
      for (std::size_t k = 0; k < 32; ++k) {
        const std::byte* byte = units + k / 8 * 64 + std::size_t{4} * r + k % 4;
        const std::size_t quant = 128 + g / 2 * 256 + 8 * k + g % 2 * 4;
        REQUIRE(bits(byte, k % 8 / 4 * 4, 4) == bits(from, quant, 4));
      }
    }
  }
}

TEST_CASE("pack: a matrix of Q4_K has whole super-blocks") {
  Tensor tensor;
  tensor.type = TensorType::kQ4_K;
  tensor.dims = {288, 16};
  REQUIRE_FALSE(plan_matrix(tensor).ok());
  CHECK(plan_matrix(tensor).status().message().find("multiple of 256") != std::string::npos);
}

}  // namespace
}  // namespace kvd::engine::cpu
