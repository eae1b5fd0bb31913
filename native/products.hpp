// Products of packed matrices and some tokens, over a vector type V (see vectors.hpp).
#pragma once

#include "vectors.hpp"

namespace backgpt {
namespace {

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

}  // namespace
}  // namespace backgpt
