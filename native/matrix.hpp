// A weight matrix in the order in which the processor reads it.
//
// Rows stand in blocks of 32. A block is a sequence of units; a unit is 32 bits of each of its 32
// rows, side by side: one float32, two bfloat16, four int8 or eight int4 of consecutive columns.
// A product takes one unit of the input, broadcasts it, and multiplies it into 32 running sums, so
// sums are never added across a register, and the weights are one stream from the first byte to
// the last. All sizes are padded with zeros to multiples of 32.
#pragma once

#include <cstdint>
#include <vector>

#include "aligned.hpp"
#include "kernels.hpp"

namespace backgpt {

// One row of weights as Python gives it: floats, or bytes and their scale. Neither: zeros.
struct SourceRow {
  const float* floats = nullptr;
  const int8_t* bytes = nullptr;
  float scale = 0.0f;
};

struct Matrix {
  Dtype dtype = Dtype::float32;
  int rows = 0;     // a multiple of 32
  int columns = 0;  // a multiple of 32
  Buffer<uint8_t> weights;
  Buffer<float> scales;           // int8: (rows)
  Buffer<uint16_t> group_scales;  // int4: (blocks, columns / 32, 32) bfloat16

  Matrix() = default;
  Matrix(Dtype dtype, int rows, int columns);

  int blocks() const { return rows / kBlock; }
  int columns_per_unit() const;
  int units() const { return columns / columns_per_unit(); }
  size_t bytes() const;
  Packed packed() const;

  // Packs the 32 `source` rows of `block`, each of `width` <= columns numbers.
  void pack(int block, const SourceRow* source, int width);

  // Writes row `row` as `columns` floats: how an embedding is looked up.
  void unpack(int row, float* out) const;
};

uint16_t to_bfloat16(float value);
float from_bfloat16(uint16_t bits);

}  // namespace backgpt
