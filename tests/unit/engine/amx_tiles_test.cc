// The tiles in software themselves: what they compute and what they refuse. The kernels on them are
// tested by kernels_test.cc and model_test.cc, which this program runs too.
#include <catch2/catch.hpp>
#include <string>

#include "engine/cpu/float16.h"
#include "support/software_tiles.h"

namespace kvd::test {
namespace {

using engine::cpu::bf16_to_float;
using engine::cpu::float_to_bf16;
using engine::cpu::amx::TileConfig;

void shape(TileConfig& config, int tile, int rows, int bytes) {
  config.rows[tile] = static_cast<std::uint8_t>(rows);
  config.row_bytes[tile] = static_cast<std::uint16_t>(bytes);
}

// 2 x 4 times 4 x 3: sums in tile 0, operands in 1 and 2.
TileConfig small() {
  TileConfig config;
  shape(config, 0, 2, 12), shape(config, 1, 2, 8), shape(config, 2, 2, 12);
  return config;
}

std::uint16_t half(float value) { return float_to_bf16(value); }

TEST_CASE("amx tiles: a product adds pairs of columns to what the sums hold") {
  SoftwareTiles tiles;
  tiles.configure(small());
  const std::uint16_t x[2][4] = {{half(1), half(2), half(3), half(4)},
                                 {half(-1), half(0.5F), half(0), half(8)}};
  // Row k of the tile has columns 2k and 2k + 1 of each of the 3 weight rows, as pairs.
  const std::uint16_t w[2][6] = {{half(1), half(10), half(2), half(20), half(3), half(30)},
                                 {half(5), half(50), half(6), half(60), half(7), half(70)}};
  float sums[2][3] = {{1000, 0, 0}, {0, 0, -1}};
  tiles.load<0>(sums, sizeof sums[0]);
  tiles.load<1>(x, sizeof x[0]);
  tiles.load<2>(w, sizeof w[0]);
  tiles.multiply_add<0, 1, 2>();
  tiles.store<0>(sums, sizeof sums[0]);
  CHECK(sums[0][0] == 1000 + 1 + 20 + 15 + 200);
  CHECK(sums[0][1] == 2 + 40 + 18 + 240);
  CHECK(sums[0][2] == 3 + 60 + 21 + 280);
  CHECK(sums[1][0] == -1 + 5 + 0 + 400);
  CHECK(sums[1][2] == -3 + 15 + 0 + 560 - 1);
  CHECK(tiles.misuse() == nullptr);
}

TEST_CASE("amx tiles: even and odd columns are summed apart, and denormals are zero") {
  SoftwareTiles tiles;
  TileConfig config;
  shape(config, 0, 1, 4), shape(config, 1, 1, 8), shape(config, 2, 2, 4);
  tiles.configure(config);
  const auto product = [&](float start, const float(&x)[4], const float(&w)[4]) {
    std::uint16_t a[4], b[4];
    for (int i = 0; i < 4; ++i) a[i] = half(x[i]), b[i] = half(w[i]);
    float sum = start;
    tiles.load<0>(&sum, 4);
    tiles.load<1>(a, 8);
    tiles.load<2>(b, 4);
    tiles.multiply_add<0, 1, 2>();
    tiles.store<0>(&sum, 4);
    return sum;
  };
  // (2^24 + 1) - 2^24 is 0 in one sum, 1 where the even columns cancel first.
  CHECK(product(0, {0x1p24F, 1, -0x1p24F, 0}, {1, 1, 1, 1}) == 1);
  // The products meet before they meet the sum.
  CHECK(product(0x1p24F, {1, 1, 0, 0}, {1, 1, 1, 1}) == 0x1p24F + 2);
  CHECK(product(0, {0x1p-130F, 0, 0, 0}, {0x1p100F, 1, 1, 1}) == 0);  // a denormal operand
  CHECK(product(0, {0x1p-70F, 0, 0, 0}, {0x1p-70F, 1, 1, 1}) == 0);   // a denormal product
  CHECK(product(0x1p-130F, {0, 0, 0, 0}, {1, 1, 1, 1}) == 0);         // a denormal sum
  CHECK(product(0, {0x1p-63F, 0, 0, 0}, {0x1p-63F, 1, 1, 1}) == 0x1p-126F);
}

TEST_CASE("amx tiles: misuse is noticed") {
  SoftwareTiles tiles;
  float memory[32 * 16] = {};
  std::string what;
  SECTION("no configuration") {
    tiles.zero<0>();
    what = "tiles without a configuration";
  }
  SECTION("use after release") {
    tiles.configure(small());
    tiles.release();
    tiles.load<0>(memory, 64);
    what = "tiles without a configuration";
  }
  SECTION("a tile without a shape") {
    tiles.configure(small());
    tiles.load<3>(memory, 64);
    what = "a tile that is not configured";
  }
  SECTION("overlapping rows") {
    tiles.configure(small());
    tiles.store<0>(memory, 8);
    what = "rows that overlap in memory";
  }
  SECTION("shapes that do not fit") {
    TileConfig config = small();
    shape(config, 2, 1, 12);
    tiles.configure(config);
    tiles.multiply_add<0, 1, 2>();
    what = "a product of tiles whose shapes do not fit";
  }
  SECTION("too many rows") {
    TileConfig config = small();
    shape(config, 0, 17, 12);
    tiles.configure(config);
    what = "a tile of more than 16 rows or 64 bytes";
  }
  SECTION("rows without bytes") {
    TileConfig config = small();
    shape(config, 5, 4, 0);
    tiles.configure(config);
    what = "a tile with rows or bytes but not both";
  }
  SECTION("another palette") {
    TileConfig config = small();
    config.palette = 0;
    tiles.configure(config);
    what = "another palette or row than 1 and 0";
  }
  REQUIRE(tiles.misuse() != nullptr);
  CHECK(tiles.misuse() == what);
}

}  // namespace
}  // namespace kvd::test
