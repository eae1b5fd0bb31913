// What the numeric core is written over: a vector type V that each `isa_*.cpp` brings.
//
// V has kWidth lanes of 32 bits: `Floats`, `Ints` (running sums) and `Units` (packed weights). Its
// functions are the few instructions in which the sets differ. Everything is in an unnamed
// namespace, so that each file keeps its own copy (see kernels.hpp).
//
// Except with bfloat16, all sets compute the same bits of finite numbers, so that a seed writes the
// same text on every processor: `fma` rounds once, nothing else is fused, and what is summed is
// summed in the same order. A product adds its columns from the first to the last; sums of whole
// numbers may be made in any order; for other sums there is `Sums`.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels.hpp"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#endif

namespace backgpt {
namespace {

constexpr size_t kUnitRow = kBlock * 4;  // bytes of one unit of a whole block
constexpr int kSums = 16;                // running sums of `Sums`

inline size_t padded(int width) { return (static_cast<size_t>(width) + 31) / 32 * 32; }

// Number i of 16 running sums holds elements i, i + 16, ...; these are added by halves: 0 to 7 and 8
// to 15, then 0 to 3 and 4 to 7, and so on, which `V::total` ends.
template <class V>
struct Sums {
  static constexpr int kParts = kSums / V::kWidth;
  typename V::Floats part[kParts] = {};

  float total() {
    for (int half = kParts / 2; half > 0; half /= 2)
      for (int n = 0; n < half; ++n) part[n] = V::add(part[n], part[n + half]);
    return V::total(part[0]);
  }
};

// exp in float32 to about one unit in the last place (the polynomial of Cephes' expf).
template <class V>
inline typename V::Floats exponential(typename V::Floats x) {
  using F = typename V::Floats;
  x = V::min(V::set(88.0f), V::max(V::set(-87.3f), x));  // in this order NaN stays NaN
  const F n = V::round(V::mul(x, V::set(1.44269504f)));
  F r = V::fma(n, V::set(-0.693359375f), x);
  r = V::fma(n, V::set(2.12194440e-4f), r);
  F p = V::set(1.9875691500e-4f);
  p = V::fma(p, r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  p = V::fma(V::mul(p, r), r, V::add(r, V::set(1.0f)));
  return V::times_power_of_two(p, n);
}

struct Exponentials {
  float largest, sum;
};

// Turns `count` numbers and their padding into exp(x - largest), in place; returns the largest, and
// the sum of what they are now.
template <class V>
inline Exponentials exponentials(float* x, int count) {
  using F = typename V::Floats;
  const int all = static_cast<int>(padded(count));
  for (int i = count; i < all; ++i) x[i] = -INFINITY;
  F most = V::load(x);
  for (int i = V::kWidth; i < all; i += V::kWidth) most = V::max(V::load(x + i), most);
  const float largest = V::largest(most);
  Sums<V> sums;
  for (int i = 0; i < all; i += kSums) {
    for (int n = 0; n < sums.kParts; ++n) {
      float* place = x + i + n * V::kWidth;
      const F e = exponential<V>(V::subtract(V::load(place), V::set(largest)));
      V::store(place, e);
      sums.part[n] = V::add(sums.part[n], e);
    }
  }
  return {largest, sums.total()};
}

}  // namespace
}  // namespace backgpt
