// The numeric core, one table of functions per instruction set.
//
// Everything here is plain data and pointers on purpose: an inline function of a class would be
// compiled once for every instruction set, and the linker would keep just one of the copies,
// perhaps one that the processor at hand cannot run.
//
// All widths are padded to multiples of 32, and padding holds zeros unless said otherwise.
#pragma once

#include <cstddef>
#include <cstdint>

namespace backgpt {

enum class Dtype { float32, bfloat16, int8, int4 };

constexpr int kBlock = 32;          // rows of a block of weights
constexpr int kGroup = 32;          // columns of an int4 row that share a scale
constexpr int kInt8Bias = 128;      // int8 weights are stored as w + 128: VNNI wants them unsigned
constexpr int kInt4Bias = 8;
constexpr int kPage = 64;           // positions in a page of the cache
constexpr int kQueries = 4;         // of a text, that read its keys and values together

// A packed matrix, as `Matrix` lays it out.
struct Packed {
  Dtype dtype;
  int units;   // 32-bit units in a row
  int groups;  // groups of 32 columns in a row
  const uint8_t* weights;
  const float* scales;
  const uint16_t* group_scales;
};

// The input of a product, one row for each token, in the form that this instruction set reads. For
// more than one token there is room for a multiple of 16.
struct Input {
  uint8_t* data;
  size_t stride;   // bytes from one token to the next
  float* scales;   // int8 and int4: (tokens) what a step of the rounded input is worth
  int32_t* sums;   // int8 and int4: (tokens, groups + 1) sums of rounded input; the last: of all
  int sum_stride;
};

// Keys and values of one head of one layer in the pages of one row. In a page, keys are
// (head_dim, kPage) and values (kPage, padded_dim), in bfloat16 or float32.
struct Memory {
  const uint8_t* const* pages;
  size_t keys, values;  // bytes from the beginning of a page
  bool half;
  int head_dim, padded_dim;
};

struct Kernels {
  const char* name;

  // Rounds `columns` floats to what products with weights of `dtype` take, as row `token`.
  void (*prepare)(Dtype dtype, const float* x, int columns, const Input& input, int token);

  // out[token][row] (+)= sum over columns of weights[row] * input[token], for whole blocks.
  // `out` points to row 0 of token 0.
  void (*multiply)(const Packed& weights, int first_block, int last_block, const Input& input,
                   int tokens, float* out, size_t stride, bool add);

  // out = x / sqrt(mean(x^2) + eps) * weight; the mean is over `width`, the rest is padding.
  void (*rms_norm)(const float* x, const float* weight, int width, float eps, float* out);

  // Turns the pairs (x[i], x[half + i]) of one head by the angles of its position.
  void (*rotate)(float* x, const float* cos, const float* sin, int half);

  // Of blocks of 16 gates and 16 ups: out[16 * block + i] = silu(gate[i]) * up[i].
  void (*swiglu)(const float* gate_up, int first_block, int last_block, float* out);

  // Writes one position's key and value, (head_dim) and (padded_dim), into its page.
  void (*remember)(const float* key, const float* value, int position, const Memory& memory);

  // What `count` queries find, 1 or kQueries, of positions that follow each other: of query q, in
  // positions [0, length + q), out[q] (padded_dim) = softmax(q k * scale) v. `scores` has room for
  // `count` times their number rounded up to whole pages.
  void (*attend)(const float* queries, size_t stride, int count, int length, float scale,
                 const Memory& memory, float* scores, float* out);

  // log(sum(exp(x))) of `count` numbers; overwrites them and their padding up to a multiple of 32.
  float (*log_sum_exp)(float* x, int count);
};

// Those that were compiled; `cpu.cpp` knows which can run here.
extern const Kernels kPlainKernels, kSse4Kernels, kAvx2Kernels, kAvx512Kernels, kAvx512Bf16Kernels,
    kAmxKernels, kNeonKernels, kNeonDotKernels;

}  // namespace backgpt
