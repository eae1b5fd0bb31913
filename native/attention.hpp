// What queries find in keys and values, over a vector type V (see vectors.hpp).
#pragma once

#include "vectors.hpp"

namespace backgpt {
namespace {

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

}  // namespace
}  // namespace backgpt
