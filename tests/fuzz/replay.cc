// The main of a fuzz target where there is no libFuzzer: every file of the corpus as it is, then
// mutations of them, the same in every run. It shows that the target holds on what was found
// before; finding more is scripts/fuzz's part.
//   kvd_fuzz_NAME CORPUS [MUTATIONS [FIRST_SEED]]   or   kvd_fuzz_NAME FILE
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "base/rng.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Input = std::vector<std::uint8_t>;

constexpr std::size_t kMaxInput = 64 << 10;
constexpr std::uint64_t kMutations = 20000;
constexpr std::array<std::uint8_t, 14> kTelling{0x00, 0x01, 0x7f, 0x80, 0xff, 0xdf, 0xdd,
                                                0xc6, 0xdb, '"',  '{',  '\\', '\n', '='};

Input read(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void run(const Input& input) { LLVMFuzzerTestOneInput(input.data(), input.size()); }

std::size_t below(kvd::Rng& rng, std::size_t bound) {
  return static_cast<std::size_t>(rng.below(bound));
}

// One step of what libFuzzer does: a byte changed, removed or added, a piece repeated, another
// file's tail.
void mutate(kvd::Rng& rng, const std::vector<Input>& corpus, Input* input) {
  const std::size_t at = below(rng, input->size() + 1);
  const auto place = input->begin() + static_cast<std::ptrdiff_t>(at);
  const std::size_t left = input->size() - at;
  switch (below(rng, 6)) {
    case 0:
      if (left > 0) (*input)[at] ^= static_cast<std::uint8_t>(1U << below(rng, 8));
      break;
    case 1:
      if (left > 0) (*input)[at] = kTelling[below(rng, kTelling.size())];
      break;
    case 2:
      input->erase(place, place + static_cast<std::ptrdiff_t>(below(rng, left + 1)));
      break;
    case 3:
      input->insert(place, kTelling[below(rng, kTelling.size())]);
      break;
    case 4: {
      const Input piece(place, place + static_cast<std::ptrdiff_t>(below(rng, left + 1)));
      input->insert(input->end(), piece.begin(), piece.end());
      break;
    }
    default: {
      const Input& other = corpus[below(rng, corpus.size())];
      const std::size_t from = below(rng, other.size() + 1);
      input->resize(at);
      input->insert(input->end(), other.begin() + static_cast<std::ptrdiff_t>(from), other.end());
    }
  }
  if (input->size() > kMaxInput) input->resize(kMaxInput);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: " << argv[0] << " CORPUS [MUTATIONS [FIRST_SEED]] | FILE\n";
    return 2;
  }
  const std::filesystem::path path(argv[1]);
  if (std::filesystem::is_regular_file(path)) {
    run(read(path));
    return 0;
  }
  std::vector<std::filesystem::path> files;
  std::error_code missing;
  for (const auto& entry : std::filesystem::directory_iterator(path, missing)) {
    files.push_back(entry.path());
  }
  if (files.empty()) {
    std::cerr << argv[0] << ": no corpus in " << path.string() << '\n';
    return 2;
  }
  std::sort(files.begin(), files.end());
  std::vector<Input> corpus;
  for (const auto& file : files) corpus.push_back(read(file));
  for (std::size_t i = 0; i < corpus.size(); ++i) {
    std::cout << files[i].filename().string() << std::endl;  // the last one printed is the culprit
    run(corpus[i]);
  }
  const std::uint64_t count = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : kMutations;
  const std::uint64_t first = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    if ((seed - first) % 1000 == 0) std::cout << "seeds from " << seed << std::endl;
    kvd::Rng rng(seed);
    Input input = corpus[below(rng, corpus.size())];
    for (std::size_t steps = 1 + below(rng, 4); steps > 0; --steps) mutate(rng, corpus, &input);
    run(input);
  }
  return 0;
}
