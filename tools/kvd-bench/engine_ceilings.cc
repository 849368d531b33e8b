#include "kvd-bench/engine_ceilings.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>

#include "common/measure.h"
#include "device/host_buffer.h"
#include "engine/cpu/panels.h"
#include "engine/cpu/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include "engine/cpu/amx_tiles.h"
#endif

namespace kvd::tools {
namespace {

constexpr std::size_t kLargeBytes = MemoryReader::kBytes;
constexpr std::size_t kLine = 64;
constexpr int kRounds = 1 << 20;  // of products: some milliseconds

// Sums are stored here, so that the work has an effect.
std::atomic<std::uint64_t> sink{0};

using Lanes = std::uint64_t __attribute__((vector_size(16)));

// Two lines a round, unrolled so that the sums stay in registers: far faster than any memory, also
// without wider ones. Asks as far ahead as the products do, which else exceed what this reads.
void read_all(const std::byte* from, std::size_t bytes) {
  Lanes sums[8] = {};
  for (std::size_t at = 0; at + 2 * kLine <= bytes; at += 2 * kLine) {
    __builtin_prefetch(from + at + engine::cpu::kAskedAhead, 0, 2);
    __builtin_prefetch(from + at + engine::cpu::kAskedAhead + kLine, 0, 2);
#pragma GCC unroll 8
    for (std::size_t i = 0; i < 8; ++i) {
      Lanes value;
      std::memcpy(&value, from + at + i * sizeof value, sizeof value);
      sums[i] ^= value;
    }
  }
  Lanes all = {};
  for (const Lanes& sum : sums) all ^= sum;
  sink.fetch_xor(all[0] ^ all[1], std::memory_order_relaxed);
}

#if defined(__x86_64__)
// Products in registers: ten independent sums hide the latency of an addition. As assembly, since a
// compiler would take products of constants out of the loop.
template <typename Vector>
[[gnu::always_inline]] inline std::uint64_t folded(const Vector (&sums)[10]) {
  std::uint64_t words[sizeof sums / 8];
  std::memcpy(words, sums, sizeof sums);
  std::uint64_t all = 0;
  for (const std::uint64_t word : words) all ^= word;
  return all;
}

[[gnu::target("avx2")]] void int8_avx2() {
  __m256i sums[10] = {};
  __m256i w = _mm256_set1_epi8(3), x = _mm256_set1_epi8(1);
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 10
    for (__m256i& sum : sums) {
      __m256i product;
      asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
          : "+x"(sum), "=&x"(product)
          : "x"(w), "x"(x));
    }
  }
  sink.fetch_xor(folded(sums), std::memory_order_relaxed);
}

[[gnu::target("avx2,fma")]] void fp32_avx2() {
  __m256 sums[10] = {};
  __m256 w = _mm256_set1_ps(0.5F), x = _mm256_set1_ps(0.25F);
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 10
    for (__m256& sum : sums) asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(w), "x"(x));
  }
  sink.fetch_xor(folded(sums), std::memory_order_relaxed);
}

[[gnu::target("avx512f,avx512vnni")]] void int8_avx512() {
  __m512i sums[10] = {};
  __m512i w = _mm512_set1_epi32(0x03030303), x = _mm512_set1_epi32(0x01010101);
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 10
    for (__m512i& sum : sums) asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
  }
  sink.fetch_xor(folded(sums), std::memory_order_relaxed);
}

[[gnu::target("avx512f")]] void fp32_avx512() {
  __m512 sums[10] = {};
  __m512 w = _mm512_set1_ps(0.5F), x = _mm512_set1_ps(0.25F);
  for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 10
    for (__m512& sum : sums) asm("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
  }
  sink.fetch_xor(folded(sums), std::memory_order_relaxed);
}

// Four sums of 16 x 16, operands of 16 x 32: what a thread's eight tiles hold.
void bf16_amx() {
  engine::cpu::amx::TileConfig config;
  for (int t = 0; t < 8; ++t) config.row_bytes[t] = 64, config.rows[t] = 16;
  engine::cpu::amx::HardwareTiles tiles;
  tiles.configure(config);
  for (int i = 0; i < kRounds / 16; ++i) {
    tiles.multiply_add<0, 4, 6>();
    tiles.multiply_add<1, 4, 7>();
    tiles.multiply_add<2, 5, 6>();
    tiles.multiply_add<3, 5, 7>();
  }
  tiles.release();
}
#endif

// A rate by the fastest sample: a ceiling is what nothing else may exceed.
class Meter {
 public:
  Meter(std::uint32_t threads, const std::vector<int>& pin, const std::function<bool()>& stop)
      : pool_(threads, pin) {
    pool_.pin_caller();
    limits_.wanted = 3;
    limits_.tries_each = 3;
    limits_.sample = Duration(100'000'000);
    limits_.most = Duration(1'000'000'000);
    limits_.stop = stop;
  }
  std::uint32_t threads() const { return pool_.size(); }
  bool disturbed() const { return disturbed_; }
  // `amount`: of all threads together, in one call of `work` on each.
  double rate(double amount, const std::function<void(std::uint32_t)>& work) {
    const Samples samples = sample(limits_, nullptr, [&] { pool_.run(work); });
    if (samples.seconds.empty()) return 0;
    disturbed_ = disturbed_ || samples.disturbed;
    return amount / *std::min_element(samples.seconds.begin(), samples.seconds.end());
  }
  double products(double each, int rounds, void (*work)()) {
    return rate(each * rounds * threads(), [work](std::uint32_t) { work(); });
  }

 private:
  engine::cpu::ThreadPool pool_;
  SampleLimits limits_;
  bool disturbed_ = false;
};

// What each thread reads of `bytes`: whole rounds of read_all().
std::size_t each_of(std::size_t bytes, std::uint32_t threads) {
  return bytes / threads / (2 * kLine) * (2 * kLine);
}

double read_rate(Meter& meter, const std::byte* buffer, std::size_t bytes) {
  const std::size_t each = each_of(bytes, meter.threads());
  return meter.rate(static_cast<double>(each) * meter.threads(),
                    [&](std::uint32_t thread) { read_all(buffer + thread * each, each); });
}

// Zero pages that were never written would all be the same one.
Result<device::HostBuffer> large_buffer() {
  Result<device::HostBuffer> buffer = device::HostBuffer::allocate(kLargeBytes);
  if (buffer.ok()) std::memset(buffer->data(), 1, kLargeBytes);
  return buffer;
}

}  // namespace

struct MemoryReader::Impl {
  device::HostBuffer buffer;
  engine::cpu::ThreadPool pool;
};

MemoryReader::MemoryReader(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MemoryReader::~MemoryReader() = default;

Result<std::unique_ptr<MemoryReader>> MemoryReader::open(std::uint32_t threads,
                                                         const std::vector<int>& pin) {
  Result<device::HostBuffer> buffer = large_buffer();
  if (!buffer.ok()) return buffer.status();
  return std::unique_ptr<MemoryReader>(
      new MemoryReader(std::unique_ptr<Impl>(new Impl{std::move(*buffer), {threads, pin}})));
}

double MemoryReader::bytes_per_s() {
  const std::size_t each = each_of(kLargeBytes, impl_->pool.size());
  const SteadyClock clock;
  const TimePoint begin = clock.now();
  impl_->pool.run([&](std::uint32_t i) { read_all(impl_->buffer.data() + i * each, each); });
  const double took = static_cast<double>((clock.now() - begin).count()) * 1e-9;
  return static_cast<double>(each) * impl_->pool.size() / took;
}

Result<Ceilings> measure_ceilings(const std::string& kernels, std::uint32_t threads,
                                  const std::vector<int>& pin, std::uint64_t weight_bytes,
                                  const std::function<bool()>& stop) {
  Result<device::HostBuffer> buffer = large_buffer();
  if (!buffer.ok()) return buffer.status();
  Meter meter(threads, pin, stop);
  Ceilings ceilings;
  ceilings.memory_bytes_per_s = read_rate(meter, buffer->data(), kLargeBytes);
  ceilings.weights_bytes_per_s =
      read_rate(meter, buffer->data(), std::min<std::size_t>(kLargeBytes, weight_bytes));
#if defined(__x86_64__)
  constexpr int kSums = 10;
  if (kernels == "avx2") {
    ceilings.int8_macs_per_s = meter.products(32 * kSums, kRounds, int8_avx2);
    ceilings.fp32_macs_per_s = meter.products(8 * kSums, kRounds, fp32_avx2);
  }
  if (kernels == "avx512" || kernels == "amx") {
    ceilings.int8_macs_per_s = meter.products(64 * kSums, kRounds, int8_avx512);
    ceilings.fp32_macs_per_s = meter.products(16 * kSums, kRounds, fp32_avx512);
  }
  if (kernels == "amx") {
    ceilings.bf16_macs_per_s = meter.products(4 * 16 * 16 * 32, kRounds / 16, bf16_amx);
  }
#endif
  ceilings.disturbed = meter.disturbed();
  return ceilings;
}

}  // namespace kvd::tools
