// The numeric core, written once over a vector type V that each `isa_*.cpp` brings.
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

// ---- products ----------------------------------------------------------------------------------

// How many bytes of input belong to one unit of weights.
template <class V>
constexpr size_t input_unit(Dtype dtype) {
  if (dtype == Dtype::bfloat16) return V::kBfloat16Input ? 4 : 8;
  return dtype == Dtype::int4 ? 8 : 4;
}

// One block's rows [lane0, lane0 + N vectors) for T tokens. Whole numbers of one token are summed in
// C chains side by side, as one sum alone would wait for its own last step.
template <class V, Dtype D, int T, int N, int C>
inline void tile(const Packed& weights, int block, int lane0, const Input& input, int token,
                 float* out, size_t stride, bool add) {
  using Sum = std::conditional_t<D == Dtype::int8, typename V::Ints, typename V::Floats>;
  const uint8_t* w =
      weights.weights + static_cast<size_t>(block) * weights.units * kUnitRow + lane0 * 4;
  const uint8_t* x = input.data + token * input.stride;
  Sum sums[C][T][N] = {};
  for (int unit = 0; unit < weights.units; unit += C) {
    for (int c = 0; c < C; ++c, w += kUnitRow, x += input_unit<V>(D)) {
      typename V::Units rows[N];
      for (int n = 0; n < N; ++n) {
        rows[n] = V::load_units(w + n * V::kWidth * 4);
        if (T == 1 || token == 0) V::prefetch(w + n * V::kWidth * 4 + V::kPrefetchBytes);
      }
      for (int t = 0; t < T; ++t) {
        const uint8_t* values = x + t * input.stride;
        for (int n = 0; n < N; ++n) {
          if constexpr (D == Dtype::float32)
            sums[c][t][n] = V::dot_float(rows[n], values, sums[c][t][n]);
          else if constexpr (D == Dtype::bfloat16)
            sums[c][t][n] = V::dot_bfloat16(rows[n], values, sums[c][t][n]);
          else
            sums[c][t][n] = V::dot_int8(rows[n], V::broadcast(values), sums[c][t][n]);
        }
      }
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int n = 0; n < N; ++n) {
      const int lane = lane0 + n * V::kWidth;
      Sum sum = sums[0][t][n];
      for (int c = 1; c < C; ++c) sum = V::add(sum, sums[c][t][n]);
      typename V::Floats y;
      if constexpr (D == Dtype::int8) {
        const int32_t bias = V::kBiasedInt8 * input.sums[(token + t + 1) * input.sum_stride - 1];
        y = V::mul(V::to_floats(V::subtract(sum, bias)), V::set(input.scales[token + t]));
        y = V::mul(y, V::load(weights.scales + block * kBlock + lane));
      } else {
        y = sum;
      }
      float* target = out + (token + t) * stride + block * kBlock + lane;
      V::store(target, add ? V::add(y, V::load(target)) : y);
    }
  }
}

// The same for int4, where sums are scaled after every group of 32 columns.
template <class V, int T, int N>
inline void tile_int4(const Packed& weights, int block, int lane0, const Input& input, int token,
                      float* out, size_t stride, bool add) {
  constexpr int kUnits = kGroup / 8;
  const uint8_t* w =
      weights.weights + static_cast<size_t>(block) * weights.units * kUnitRow + lane0 * 4;
  const uint16_t* scales =
      weights.group_scales + static_cast<size_t>(block) * weights.groups * kBlock + lane0;
  const uint8_t* x = input.data + token * input.stride;
  typename V::Floats sums[T][N] = {};
  for (int group = 0; group < weights.groups; ++group, scales += kBlock) {
    typename V::Ints parts[T][N] = {};
    for (int unit = 0; unit < kUnits; ++unit, w += kUnitRow, x += 8) {
      for (int n = 0; n < N; ++n) {
        const typename V::Units rows = V::load_units(w + n * V::kWidth * 4);
        if (T == 1 || token == 0) V::prefetch(w + n * V::kWidth * 4 + V::kPrefetchBytes);
        const typename V::Units low = V::low_halves(rows), high = V::high_halves(rows);
        for (int t = 0; t < T; ++t) {
          const uint8_t* values = x + t * input.stride;
          parts[t][n] = V::dot_int4(low, V::broadcast(values), parts[t][n]);
          parts[t][n] = V::dot_int4(high, V::broadcast(values + 4), parts[t][n]);
        }
      }
    }
    for (int t = 0; t < T; ++t) {
      const int32_t bias = kInt4Bias * input.sums[(token + t) * input.sum_stride + group];
      for (int n = 0; n < N; ++n)
        sums[t][n] = V::fma(V::to_floats(V::subtract(parts[t][n], bias)),
                            V::load_bfloat16(scales + n * V::kWidth), sums[t][n]);
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int n = 0; n < N; ++n) {
      float* target = out + (token + t) * stride + block * kBlock + lane0 + n * V::kWidth;
      const typename V::Floats y = V::mul(sums[t][n], V::set(input.scales[token + t]));
      V::store(target, add ? V::add(y, V::load(target)) : y);
    }
  }
}

// T tokens of one block: for one token all rows at once, for several as many as registers hold.
template <class V, Dtype D, int T>
inline void some_tokens(const Packed& weights, int block, const Input& input, int token, float* out,
                        size_t stride, bool add) {
  constexpr int kAll = kBlock / V::kWidth;
  constexpr int kVectors = T == 1 ? kAll : V::kTileVectors;
  for (int lane = 0; lane < kBlock; lane += kVectors * V::kWidth) {
    if constexpr (D == Dtype::int4 && T > 4) {  // more sums do not fit into registers
      tile_int4<V, 4, kVectors>(weights, block, lane, input, token, out, stride, add);
      tile_int4<V, T - 4, kVectors>(weights, block, lane, input, token + 4, out, stride, add);
    } else if constexpr (D == Dtype::int4)
      tile_int4<V, T, kVectors>(weights, block, lane, input, token, out, stride, add);
    else
      tile<V, D, T, kVectors, T == 1 && D == Dtype::int8 ? V::kChains : 1>(
          weights, block, lane, input, token, out, stride, add);
  }
}

// The last tokens of a batch, fewer than a full tile.
template <class V, Dtype D, int T>
inline void last_tokens(int count, const Packed& weights, int block, const Input& input, int token,
                        float* out, size_t stride, bool add) {
  if constexpr (T > 0) {
    if (count == T)
      some_tokens<V, D, T>(weights, block, input, token, out, stride, add);
    else
      last_tokens<V, D, T - 1>(count, weights, block, input, token, out, stride, add);
  }
}

template <class V, Dtype D>
void multiply_as(const Packed& weights, int first, int last, const Input& input, int tokens,
                 float* out, size_t stride, bool add) {
  for (int block = first; block < last; ++block) {
    int token = 0;
    for (; token + V::kTileTokens <= tokens; token += V::kTileTokens)
      some_tokens<V, D, V::kTileTokens>(weights, block, input, token, out, stride, add);
    last_tokens<V, D, V::kTileTokens - 1>(tokens - token, weights, block, input, token, out, stride,
                                          add);
  }
}

template <class V>
void multiply(const Packed& weights, int first, int last, const Input& input, int tokens,
              float* out, size_t stride, bool add) {
  switch (weights.dtype) {
    case Dtype::float32:
      return multiply_as<V, Dtype::float32>(weights, first, last, input, tokens, out, stride, add);
    case Dtype::bfloat16:
      return multiply_as<V, Dtype::bfloat16>(weights, first, last, input, tokens, out, stride, add);
    case Dtype::int8:
      return multiply_as<V, Dtype::int8>(weights, first, last, input, tokens, out, stride, add);
    case Dtype::int4:
      return multiply_as<V, Dtype::int4>(weights, first, last, input, tokens, out, stride, add);
  }
}

// Symmetric per token: x = q * scale with q in [-127, 127].
template <class V>
void round_to_int8(const float* x, int columns, const Input& input, int token) {
  using F = typename V::Floats;
  F most = V::set(0.0f);
  for (int i = 0; i < columns; i += V::kWidth)
    most = V::max(V::absolute(V::load(x + i)), most);
  F none = V::set(0.0f);  // is NaN if a number is, or is infinite: a maximum may leave those out
  for (int i = 0; i < columns; i += V::kWidth) none = V::fma(V::load(x + i), V::set(0.0f), none);
  const float limit = V::largest(most) + V::total(none);
  const float inverse = limit > 1e-36f ? 127.0f / limit : 0.0f;  // which is finite
  int8_t* out = reinterpret_cast<int8_t*>(input.data + token * input.stride);
  int32_t* sums = input.sums + token * input.sum_stride;
  int32_t all = 0;
  for (int i = 0, group = 0; i < columns; i += kGroup, ++group) {
    sums[group] = V::store_int8(out + i, x + i, inverse);
    all += sums[group];
  }
  sums[input.sum_stride - 1] = all;
  input.scales[token] = limit / 127.0f;
}

template <class V>
void prepare(Dtype dtype, const float* x, int columns, const Input& input, int token) {
  uint8_t* out = input.data + token * input.stride;
  if (dtype == Dtype::int8 || dtype == Dtype::int4) {
    round_to_int8<V>(x, columns, input, token);
  } else if (dtype == Dtype::bfloat16 && V::kBfloat16Input) {
    for (int i = 0; i < columns; i += V::kWidth)
      V::store_bfloat16(reinterpret_cast<uint16_t*>(out) + i, V::load(x + i));
  } else {
    memcpy(out, x, columns * sizeof(float));
  }
}

// ---- what lies between products ----------------------------------------------------------------

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

template <class V>
float log_sum_exp(float* x, int count) {
  const Exponentials found = exponentials<V>(x, count);
  return found.largest + static_cast<float>(std::log(static_cast<double>(found.sum)));
}

// ---- attention ---------------------------------------------------------------------------------

template <class V>
inline typename V::Floats load_as(const float* x) { return V::load(x); }
template <class V>
inline typename V::Floats load_as(const uint16_t* x) { return V::load_bfloat16(x); }

template <class V>
void remember(const float* key, const float* value, int position, const Memory& memory) {
  uint8_t* page = const_cast<uint8_t*>(memory.pages[position / kPage]);
  const int slot = position % kPage;
  if (memory.half) {
    uint16_t* keys = reinterpret_cast<uint16_t*>(page + memory.keys) + slot;
    uint16_t* values = reinterpret_cast<uint16_t*>(page + memory.values) + slot * memory.padded_dim;
    alignas(64) uint16_t rounded[kBlock];
    for (int i = 0; i < memory.padded_dim; i += kBlock) {
      for (int j = 0; j < kBlock; j += V::kWidth) {
        V::store_bfloat16(rounded + j, V::load(key + i + j));
        V::store_bfloat16(values + i + j, V::load(value + i + j));
      }
      for (int j = 0; j < kBlock && i + j < memory.head_dim; ++j)
        keys[(i + j) * kPage] = rounded[j];
    }
  } else {
    float* keys = reinterpret_cast<float*>(page + memory.keys) + slot;
    float* values = reinterpret_cast<float*>(page + memory.values) + slot * memory.padded_dim;
    for (int i = 0; i < memory.head_dim; ++i) keys[i * kPage] = key[i];
    memcpy(values, value, memory.padded_dim * sizeof(float));
  }
}

// The page behind that of position `start`, or that one if it is the last.
inline const uint8_t* following_page(const Memory& memory, int start, int length) {
  return memory.pages[start / kPage + (start + kPage < length ? 1 : 0)];
}

// Pages lie anywhere, so that the processor does not foresee the next one.
template <class V>
inline void prefetch_bytes(const uint8_t* p, size_t count) {
  for (size_t line = 0; line < count; line += 64) V::prefetch(p + line);
}

// How many vectors of sums each of Q queries has: of several, as many as registers hold.
template <class V, int Q>
constexpr int kQueryVectors = Q == 1 ? 4 : V::kTileTokens * V::kTileVectors / Q;

// scores[q] = query[q] k * scale for all positions of the steps that `length` reaches.
template <class V, class Number, int Q>
inline void score_keys(const float* queries, size_t query_stride, int length, float scale,
                       const Memory& memory, float* scores, size_t score_stride) {
  constexpr int kVectors = kQueryVectors<V, Q>, kStep = kVectors * V::kWidth;
  static_assert(kPage % kStep == 0, "a page is whole steps");
  for (int start = 0; start < length; start += kStep, scores += kStep) {
    const uint8_t* page = memory.pages[start / kPage] + memory.keys;
    const Number* keys = reinterpret_cast<const Number*>(page) + start % kPage;
    typename V::Floats sums[Q][kVectors] = {};
    const uint8_t* next = following_page(memory, start, length) + memory.keys;
    for (int d = 0; d < memory.head_dim; ++d, keys += kPage, next += kPage * sizeof(Number)) {
      prefetch_bytes<V>(next, kPage * sizeof(Number));
      typename V::Floats row[kVectors];
      for (int n = 0; n < kVectors; ++n) row[n] = load_as<V>(keys + n * V::kWidth);
      for (int q = 0; q < Q; ++q)
        for (int n = 0; n < kVectors; ++n)
          sums[q][n] = V::fma(V::set(queries[q * query_stride + d]), row[n], sums[q][n]);
    }
    for (int q = 0; q < Q; ++q)
      for (int n = 0; n < kVectors; ++n)
        V::store(scores + q * score_stride + n * V::kWidth, V::mul(sums[q][n], V::set(scale)));
  }
}

// out[q][0 .. N vectors) = factor[q] * sum over positions [0, length + q) of weight * value. Two
// chains of sums, for even and odd positions.
template <class V, class Number, int Q, int N>
inline void mix_values(const float* weights, size_t weight_stride, int length, const float* factors,
                       const Memory& memory, int offset, float* out) {
  using F = typename V::Floats;
  F sums[Q][2][N] = {};
  const auto values_of = [&](int position) {
    const uint8_t* page = memory.pages[position / kPage] + memory.values;
    return reinterpret_cast<const Number*>(page) + position % kPage * memory.padded_dim + offset;
  };
  const int shared = length - length % 2;  // pairs of positions that all queries find
  for (int start = 0; start < shared; start += kPage) {
    const Number* values = values_of(start);
    const int end = shared - start < kPage ? shared : start + kPage;
    const uint8_t* next = following_page(memory, start, length) + memory.values;
    next += offset * sizeof(Number);
    for (int t = start; t < end; t += 2) {
      for (int odd = 0; odd < 2; ++odd, values += memory.padded_dim) {
        prefetch_bytes<V>(next, N * V::kWidth * sizeof(Number));
        next += memory.padded_dim * sizeof(Number);
        F row[N];
        for (int n = 0; n < N; ++n) row[n] = load_as<V>(values + n * V::kWidth);
        for (int q = 0; q < Q; ++q) {
          const F weight = V::set(weights[q * weight_stride + t + odd]);
          for (int n = 0; n < N; ++n) sums[q][odd][n] = V::fma(weight, row[n], sums[q][odd][n]);
        }
      }
    }
  }
  for (int q = 0; q < Q; ++q, weights += weight_stride, out += memory.padded_dim) {
    for (int i = 0; i < Q && shared + i < length + q; ++i)  // those that are left, at most Q
      for (int n = 0; n < N; ++n)
        sums[q][i % 2][n] =
            V::fma(V::set(weights[shared + i]), load_as<V>(values_of(shared + i) + n * V::kWidth),
                   sums[q][i % 2][n]);
    for (int n = 0; n < N; ++n)
      V::store(out + n * V::kWidth,
               V::mul(V::add(sums[q][0][n], sums[q][1][n]), V::set(factors[q])));
  }
}

template <class V, class Number, int Q>
inline void attend_as(const float* queries, size_t stride, int length, float scale,
                      const Memory& memory, float* scores, float* out) {
  const size_t room = static_cast<size_t>(length + Q - 1 + kPage - 1) / kPage * kPage;
  score_keys<V, Number, Q>(queries, stride, length + Q - 1, scale, memory, scores, room);
  float factors[Q];
  for (int q = 0; q < Q; ++q)
    factors[q] = 1.0f / exponentials<V>(scores + q * room, length + q).sum;
  constexpr int kVectors = Q == 1 ? 4 : kQueryVectors<V, Q> / 2, kStep = kVectors * V::kWidth;
  int offset = 0;
  for (; offset + kStep <= memory.padded_dim; offset += kStep)
    mix_values<V, Number, Q, kVectors>(scores, room, length, factors, memory, offset, out + offset);
  if constexpr (kStep > kBlock)  // then half a step may be left
    if (offset < memory.padded_dim)
      mix_values<V, Number, Q, kVectors / 2>(scores, room, length, factors, memory, offset,
                                             out + offset);
}

template <class V, class Number>
inline void attend_some(const float* queries, size_t stride, int count, int length, float scale,
                        const Memory& memory, float* scores, float* out) {
  if (count == kQueries)
    attend_as<V, Number, kQueries>(queries, stride, length, scale, memory, scores, out);
  else
    attend_as<V, Number, 1>(queries, stride, length, scale, memory, scores, out);
}

template <class V>
void attend(const float* queries, size_t stride, int count, int length, float scale,
            const Memory& memory, float* scores, float* out) {
  if (memory.half)
    attend_some<V, uint16_t>(queries, stride, count, length, scale, memory, scores, out);
  else
    attend_some<V, float>(queries, stride, count, length, scale, memory, scores, out);
}

template <class V>
constexpr Kernels kernels_of(const char* name) {
  return {name,      prepare<V>, multiply<V>, rms_norm<V>,   rotate<V>,
          swiglu<V>, remember<V>, attend<V>,  log_sum_exp<V>};
}

}  // namespace
}  // namespace backgpt
