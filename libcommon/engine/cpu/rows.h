// What a step's numbers are kept in from step to step: memory that grows to the largest one.
//
// Calling thread: reserve() when no other uses the same; each owns its memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "engine/cpu/kernels.h"

namespace kvd::engine::cpu {

// Grow-only memory of one kind of value, 64-byte aligned; contents are lost when it grows.
template <typename T>
class Buffer {
 public:
  T* reserve(std::size_t count) {
    if (count > capacity_) {
      memory_.reset(static_cast<T*>(::operator new(count * sizeof(T), kAlign)));
      capacity_ = count;
    }
    return memory_.get();
  }
  T* get() const { return memory_.get(); }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlign); }
  };
  std::unique_ptr<T, Free> memory_;
  std::size_t capacity_ = 0;
};

// Rows of float activations and, where kernels want them, the same quantized.
struct Rows {
  Buffer<float> floats;
  Buffer<std::byte> quantized;
  std::uint32_t columns = 0;
  std::size_t quantized_stride = 0;

  void reserve(std::uint32_t width, std::size_t rows, const Kernels& kernels) {
    columns = width;
    floats.reserve(rows * width);
    if (kernels.quantized_row_bytes == nullptr) return;
    quantized_stride = kernels.quantized_row_bytes(width);
    quantized.reserve(rows * quantized_stride);
  }
  float* row(std::size_t i) const { return floats.get() + i * columns; }
  std::byte* quantized_row(std::size_t i) const { return quantized.get() + i * quantized_stride; }
  Activations activations(bool offsets = false) const {
    return {floats.get(), columns, quantized.get(), quantized_stride, offsets};
  }
};

}  // namespace kvd::engine::cpu
