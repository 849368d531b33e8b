// Measures how far logits are from those of double precision (oracle.h):
//   kvd_numerics --model FILE [--cpu NAME]... [--tokens N] [--text FILE] [--cache DIR]
//                [--logits NAME=DIR]... [--threads N]
// Two inputs of N tokens (128): natural text, and random tokens. Each path of the engine in this
// build is measured, or those named by --cpu: `decode`, token after token, and `prefill`, a prompt
// as a whole, at every eighth length.
//
// --cache DIR gets text.tokens and random.tokens (ids, one a line) and the oracle's logits, which
// are not computed again. --logits NAME=DIR reads another engine's: DIR/text.f32 and
// DIR/random.f32, raw little-endian floats, a row of the vocabulary after each token of the ids.
//
// For each: the relative L2 error of a row of logits (median, 95th percentile, worst), the mean
// Kullback-Leibler divergence, the rows whose largest logit is another one, and the widest margin
// (between the oracle's largest two) among those. Exit: 0 measured, 2 usage or an unreadable file.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "device/host_buffer.h"
#include "engine/cpu/dispatch.h"
#include "engine/cpu/llama_model.h"
#include "engine/tokenizer.h"
#include "oracle.h"

namespace {

namespace engine = kvd::engine;
using kvd::PageIndex;
using kvd::TokenId;

constexpr std::size_t kPrefillStep = 8;

struct Options {
  std::string model, text, cache;
  std::vector<std::string> kernels;
  std::vector<std::pair<std::string, std::string>> others;  // name, directory
  std::size_t tokens = 128;
  unsigned threads = std::max(1U, std::thread::hardware_concurrency());
};

struct Input {
  std::string name;
  std::vector<TokenId> tokens;
  std::vector<float> oracle;  // a row after each token
};

// Errors of some rows, each against the oracle's.
class Errors {
 public:
  void add(const float* ours, const float* oracle, std::size_t vocab) {
    double difference = 0, size = 0;
    std::size_t best = 0, mine = 0;
    for (std::size_t i = 0; i < vocab; ++i) {
      const double d = double{ours[i]} - double{oracle[i]};
      difference += d * d;
      size += double{oracle[i]} * double{oracle[i]};
      if (oracle[i] > oracle[best]) best = i;
      if (ours[i] > ours[mine]) mine = i;
    }
    relative_.push_back(std::sqrt(difference / size));
    divergence_ += divergence(ours, oracle, vocab, ours[mine], oracle[best]);
    if (mine == best) return;
    ++different_;
    margin_ = std::max(margin_, double{oracle[best]} - double{oracle[mine]});
  }
  void print(const std::string& input, const std::string& name) {
    std::sort(relative_.begin(), relative_.end());
    const auto at = [this](double part) {
      return relative_[static_cast<std::size_t>(part * static_cast<double>(relative_.size() - 1))];
    };
    std::printf("%-7s %-20s %5zu %9.2e %9.2e %9.2e %9.2e %6zu %8.3f\n", input.c_str(), name.c_str(),
                relative_.size(), at(0.5), at(0.95), relative_.back(),
                divergence_ / static_cast<double>(relative_.size()), different_, margin_);
    std::fflush(stdout);
  }

 private:
  // KL of the oracle's distribution from ours.
  static double divergence(const float* ours, const float* oracle, std::size_t vocab,
                           float our_most, float most) {
    double sum = 0, our_sum = 0;
    for (std::size_t i = 0; i < vocab; ++i) {
      sum += std::exp(double{oracle[i]} - double{most});
      our_sum += std::exp(double{ours[i]} - double{our_most});
    }
    const double shift = double{most} + std::log(sum),
                 our_shift = double{our_most} + std::log(our_sum);
    double total = 0;
    for (std::size_t i = 0; i < vocab; ++i) {
      const double p = double{oracle[i]} - shift, q = double{ours[i]} - our_shift;
      total += std::exp(p) * (p - q);
    }
    return total;
  }

  std::vector<double> relative_;
  double divergence_ = 0, margin_ = 0;
  std::size_t different_ = 0;
};

std::vector<float> read_floats(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return {};
  std::vector<float> out(static_cast<std::size_t>(file.tellg()) / sizeof(float));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(out.data()),
            static_cast<std::streamsize>(out.size() * sizeof(float)));
  return out;
}

void fill_oracle(const engine::Gguf& file, const Options& options, Input& input) {
  const auto config = engine::cpu::read_llama_config(file).value();
  const std::string path = options.cache + "/" + input.name + ".oracle.f32";
  const std::size_t wanted = input.tokens.size() * config.vocab;
  if (!options.cache.empty()) {
    std::ofstream ids(options.cache + "/" + input.name + ".tokens");
    for (const TokenId token : input.tokens) ids << token << "\n";
    input.oracle = read_floats(path);
    if (input.oracle.size() == wanted) return;
  }
  std::cerr << "numerics: the oracle computes " << input.name << "\n";
  input.oracle = kvd::test::oracle_logits(file, config, input.tokens, options.threads);
  if (options.cache.empty()) return;
  std::ofstream out(path, std::ios::binary);
  out.write(reinterpret_cast<const char*>(input.oracle.data()),
            static_cast<std::streamsize>(input.oracle.size() * sizeof(float)));
}

// One path of the engine over one input.
void measure(engine::cpu::CpuModel& model, const Input& input, const std::string& name) {
  const auto& layout = model.layout();
  const std::uint32_t count = layout.pages_for(input.tokens.size());
  auto pool = kvd::device::HostBuffer::allocate(count * layout.page_bytes());
  if (!pool.ok()) {
    std::cerr << pool.status().message() << "\n";
    std::exit(2);
  }
  model.attach_pool(pool->data(), count);
  std::vector<PageIndex> pages;
  for (std::uint32_t p = 0; p < count; ++p) pages.push_back((p * 7 + 3) % count);
  if (count % 7 == 0) {
    for (std::uint32_t p = 0; p < count; ++p) pages[p] = p;
  }
  const std::size_t vocab = model.vocab();
  const auto step = [&](std::size_t begin, std::size_t end, Errors& errors) {
    const engine::Segment segment{{input.tokens.data() + begin, end - begin},
                                  static_cast<std::uint32_t>(begin),
                                  pages,
                                  true,
                                  1,
                                  {}};
    std::span<const float> logits;
    model.forward({&segment, 1}, nullptr, &logits);
    errors.add(logits.data(), input.oracle.data() + (end - 1) * vocab, vocab);
  };
  Errors decode, prefill;
  for (std::size_t i = 0; i < input.tokens.size(); ++i) step(i, i + 1, decode);
  for (std::size_t n = kPrefillStep; n <= input.tokens.size(); n += kPrefillStep) {
    step(0, n, prefill);
  }
  decode.print(input.name, name + " decode");
  prefill.print(input.name, name + " prefill");
}

bool parse(int argc, char** argv, Options* options) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view key = argv[i];
    const std::string value = argv[i + 1];
    const std::size_t equals = value.find('=');
    if (key == "--model")
      options->model = value;
    else if (key == "--text")
      options->text = value;
    else if (key == "--cache")
      options->cache = value;
    else if (key == "--cpu")
      options->kernels.push_back(value);
    else if (key == "--tokens")
      options->tokens = std::strtoul(value.c_str(), nullptr, 10);
    else if (key == "--threads")
      options->threads = static_cast<unsigned>(std::stoul(value));
    else if (key == "--logits" && equals != std::string::npos)
      options->others.emplace_back(value.substr(0, equals), value.substr(equals + 1));
    else
      return false;
  }
  return argc % 2 == 1 && !options->model.empty() && !options->text.empty() &&
         options->tokens >= kPrefillStep;
}

std::vector<Input> make_inputs(const engine::Gguf& file, const Options& options) {
  std::vector<Input> inputs;
  auto tokenizer = engine::make_bpe_tokenizer(file);
  std::ifstream text(options.text);
  const std::string all(std::istreambuf_iterator<char>(text), {});
  if (!tokenizer.ok() || all.empty()) return inputs;
  Input natural{"text", (*tokenizer)->encode(all), {}};
  if (natural.tokens.size() < options.tokens) return inputs;
  natural.tokens.resize(options.tokens);
  inputs.push_back(std::move(natural));
  Input random{"random", {}, {}};
  for (std::size_t i = 0; i < options.tokens; ++i) {
    random.tokens.push_back(static_cast<TokenId>((i * 7919 + 13) % (*tokenizer)->vocab_size()));
  }
  inputs.push_back(std::move(random));
  return inputs;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, &options)) {
    std::cerr << "usage: kvd_numerics --model FILE --text FILE [--cpu NAME]... [--tokens N]\n"
                 "                    [--cache DIR] [--logits NAME=DIR]... [--threads N]\n";
    return 2;
  }
  auto file = engine::Gguf::open(options.model);
  if (!file.ok()) return std::cerr << file.status().message() << "\n", 2;
  std::vector<Input> inputs = make_inputs(*file, options);
  if (inputs.empty()) return std::cerr << options.text << ": not enough text\n", 2;
  for (Input& input : inputs) fill_oracle(*file, options, input);
  std::printf("%-7s %-20s %5s %9s %9s %9s %9s %6s %8s\n", "input", "path", "rows", "L2 p50", "p95",
              "worst", "KL mean", "argmax", "margin");
  const std::size_t vocab = inputs[0].oracle.size() / options.tokens;
  for (const auto& [name, folder] : options.others) {
    for (const Input& input : inputs) {
      const std::vector<float> rows = read_floats(folder + "/" + input.name + ".f32");
      if (rows.size() != input.oracle.size()) {
        std::cerr << folder << "/" << input.name << ".f32: not " << options.tokens << " rows of "
                  << vocab << " floats\n";
        return 2;
      }
      Errors errors;
      for (std::size_t i = 0; i < options.tokens; ++i) {
        errors.add(rows.data() + i * vocab, input.oracle.data() + i * vocab, vocab);
      }
      errors.print(input.name, name);
    }
  }
  if (options.kernels.empty()) options.kernels = engine::cpu::available_kernels();
  for (const std::string& kernels : options.kernels) {
    engine::cpu::CpuOptions cpu;
    cpu.kernels = kernels;
    cpu.threads = options.threads;
    auto model = engine::cpu::make_llama_model(*file, cpu);
    if (!model.ok()) return std::cerr << model.status().message() << "\n", 2;
    for (const Input& input : inputs) measure(**model, input, kernels);
  }
  return 0;
}
