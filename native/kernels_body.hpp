// All kernels over a vector type V that each `isa_*.cpp` brings (see vectors.hpp), and their table.
#pragma once

#include "attention.hpp"
#include "products.hpp"

namespace backgpt {
namespace {

template <class V>
void rms_norm(const float* x, const float* weight, int width, float eps, float* out) {
  using F = typename V::Floats;
  const int count = static_cast<int>(padded(width));
  Sums<V> squares;
  for (int i = 0; i < count; i += kSums) {
    for (int n = 0; n < squares.kParts; ++n) {
      const F v = V::load(x + i + n * V::kWidth);
      squares.part[n] = V::fma(v, v, squares.part[n]);
    }
  }
  const float mean = squares.total() / static_cast<float>(width);
  const F factor = V::set(1.0f / std::sqrt(mean + eps));
  for (int i = 0; i < count; i += V::kWidth)
    V::store(out + i, V::mul(V::mul(V::load(x + i), factor), V::load(weight + i)));
}

template <class V>
void rotate(float* x, const float* cos, const float* sin, int half) {
  float* y = x + half;
  for (int i = 0; i < half; ++i) {
    const float first = x[i], second = y[i];
    x[i] = first * cos[i] - second * sin[i];
    y[i] = second * cos[i] + first * sin[i];
  }
}

template <class V>
void swiglu(const float* gate_up, int first_block, int last_block, float* out) {
  using F = typename V::Floats;
  constexpr int kHalf = kBlock / 2;
  for (int block = first_block; block < last_block; ++block) {
    for (int i = 0; i < kHalf; i += V::kWidth) {
      const F gate = V::load(gate_up + block * kBlock + i);
      const F up = V::load(gate_up + block * kBlock + kHalf + i);
      const F grown = V::add(exponential<V>(V::subtract(V::set(0.0f), gate)), V::set(1.0f));
      V::store(out + block * kHalf + i, V::mul(V::div(gate, grown), up));
    }
  }
}

template <class V>
float log_sum_exp(float* x, int count) {
  const Exponentials found = exponentials<V>(x, count);
  return found.largest + static_cast<float>(std::log(static_cast<double>(found.sum)));
}

template <class V>
constexpr Kernels kernels_of(const char* name) {
  return {name,      prepare<V>, multiply<V>, rms_norm<V>,   rotate<V>,
          swiglu<V>, remember<V>, attend<V>,  log_sum_exp<V>};
}

}  // namespace
}  // namespace backgpt
