// What this host can do at most, measured with all threads: what a step's bytes and products are
// set against.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace kvd::tools {

// 0 where the instruction set in use has no such instruction.
struct Ceilings {
  double memory_bytes_per_s = 0;   // reading 512 MiB on huge pages
  double weights_bytes_per_s = 0;  // reading as much as a decode step's weights, again and again:
                                   // more, where part of it stays in a cache
  double int8_macs_per_s = 0;      // the products that the int8 kernels are made of
  double fp32_macs_per_s = 0;
  double bf16_macs_per_s = 0;  // AMX tiles
  bool disturbed = false;      // other processes worked meanwhile: too low
};

// Reads 512 MiB with all threads when it is asked to: what memory gives at this moment, which on a
// shared host is not what it gave a minute ago.
class MemoryReader {
 public:
  static constexpr std::size_t kBytes = std::size_t{512} << 20;  // that it holds
  // kResourceExhausted: no memory for the buffer.
  static Result<std::unique_ptr<MemoryReader>> open(std::uint32_t threads,
                                                    const std::vector<int>& pin);
  ~MemoryReader();
  double bytes_per_s();

 private:
  struct Impl;
  explicit MemoryReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// `kernels`: the name of the path in use, whose instructions are timed. `stop`: true ends it early,
// with zeros for the rest. kResourceExhausted: no memory for the buffer.
Result<Ceilings> measure_ceilings(const std::string& kernels, std::uint32_t threads,
                                  const std::vector<int>& pin, std::uint64_t weight_bytes,
                                  const std::function<bool()>& stop);

}  // namespace kvd::tools
