// Memory for numbers: aligned for every instruction set, on large pages where the system has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(_MSC_VER)
#include <malloc.h>
#endif

namespace backgpt {

inline size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// An array of numbers, not initialized. Untouched parts of a large one cost no memory.
template <typename T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(size_t size) : size_(size) {
    constexpr size_t kLine = 64, kLargePage = size_t{1} << 21;
    const size_t bytes = round_up(size * sizeof(T) + kLine, kLine);
    const size_t alignment = bytes >= kLargePage ? kLargePage : kLine;
    const size_t rounded = round_up(bytes, alignment);
#if defined(_MSC_VER)
    data_ = static_cast<T*>(_aligned_malloc(rounded, alignment));
#else
    data_ = static_cast<T*>(std::aligned_alloc(alignment, rounded));
#endif
    if (!data_) throw std::bad_alloc();
#if defined(__linux__)
    // Weights are read from end to end for every token: with small pages that is a miss each 4 kB.
    if (alignment == kLargePage) madvise(data_, rounded, MADV_HUGEPAGE);
#endif
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
#if defined(_MSC_VER)
    _aligned_free(data_);
#else
    std::free(data_);
#endif
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace backgpt
