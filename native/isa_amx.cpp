// AMX: Sapphire Rapids and later. Products with many tokens go through its matrix unit, all else
// through AVX-512.
//
// A tile of weights is 16 units of 16 rows: just how a block lies in memory, half a block wide. A
// tile of input is 16 units of 16 tokens. Their product is added into a tile of 16 x 16 sums.
#include "isa_avx512_bf16.hpp"

namespace backgpt {
namespace {

constexpr int kTile = 16;
constexpr int kFewestTokens = 12;  // below that, most of a tile would be empty

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};

void shape_tiles() {
  TileShapes shapes;
  for (int i = 0; i < 8; ++i) {
    shapes.bytes_per_row[i] = 64;
    shapes.rows[i] = kTile;
  }
  _tile_loadconfig(&shapes);
}

// The sums of one tile become output: scaled, added or stored, for the tokens there are.
template <Dtype D>
inline void finish(const void* tile, const Packed& weights, int row, const Input& input, int token,
                   int tokens, float* out, size_t stride, bool add) {
  using V = Avx512Bf16;
  for (int t = 0; t < kTile && token + t < tokens; ++t) {
    const uint8_t* sums = static_cast<const uint8_t*>(tile) + t * 64;
    __m512 y;
    if constexpr (D == Dtype::int8) {
      const int32_t bias = kInt8Bias * input.sums[(token + t + 1) * input.sum_stride - 1];
      y = V::mul(V::to_floats(V::subtract((V::Ints)V::load_units(sums), bias)),
                 V::set(input.scales[token + t]));
      y = V::mul(y, V::load(weights.scales + row));
    } else {
      y = _mm512_castsi512_ps(V::load_units(sums));
    }
    float* target = out + (token + t) * stride + row;
    V::store(target, add ? V::add(y, V::load(target)) : y);
  }
}

// One block for tokens [token, token + 32), or 16 if `both` is false. Tiles 0 to 3 are sums, 4 and
// 5 the input of two times 16 tokens, 6 and 7 the halves of the block.
template <Dtype D>
inline void tiles(const Packed& weights, int block, const Input& input, int token, bool both,
                  int tokens, float* out, size_t stride, bool add) {
  const uint8_t* w = weights.weights + static_cast<size_t>(block) * weights.units * kUnitRow;
  const uint8_t* x = input.data + token * input.stride;
  const uint8_t* y = x + kTile * input.stride;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int unit = 0; unit < weights.units; unit += kTile) {
    _tile_loadd(6, w + unit * kUnitRow, kUnitRow);
    _tile_loadd(7, w + unit * kUnitRow + 64, kUnitRow);
    _tile_loadd(4, x + unit * 4, input.stride);
    if constexpr (D == Dtype::int8) {
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (!both) continue;
    _tile_loadd(5, y + unit * 4, input.stride);
    if constexpr (D == Dtype::int8) {
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    } else {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  alignas(64) uint8_t sums[4][kTile * 64];
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  const int row = block * kBlock;
  finish<D>(sums[0], weights, row, input, token, tokens, out, stride, add);
  finish<D>(sums[1], weights, row + kTile, input, token, tokens, out, stride, add);
  if (!both) return;
  finish<D>(sums[2], weights, row, input, token + kTile, tokens, out, stride, add);
  finish<D>(sums[3], weights, row + kTile, input, token + kTile, tokens, out, stride, add);
}

// The input has room for whole tiles of tokens; what lies there beyond the last is not stored.
template <Dtype D>
void multiply_tiles(const Packed& weights, int first, int last, const Input& input, int tokens,
                    float* out, size_t stride, bool add) {
  shape_tiles();
  for (int block = first; block < last; ++block)
    for (int token = 0; token < tokens; token += 2 * kTile)
      tiles<D>(weights, block, input, token, token + kTile < tokens, tokens, out, stride, add);
  _tile_release();
}

void multiply_amx(const Packed& weights, int first, int last, const Input& input, int tokens,
                  float* out, size_t stride, bool add) {
  const bool fits = tokens >= kFewestTokens && weights.units % kTile == 0;
  if (fits && weights.dtype == Dtype::int8)
    multiply_tiles<Dtype::int8>(weights, first, last, input, tokens, out, stride, add);
  else if (fits && weights.dtype == Dtype::bfloat16)
    multiply_tiles<Dtype::bfloat16>(weights, first, last, input, tokens, out, stride, add);
  else
    multiply<Avx512Bf16>(weights, first, last, input, tokens, out, stride, add);
}

constexpr Kernels amx_kernels() {
  Kernels kernels = kernels_of<Avx512Bf16>("amx");
  kernels.multiply = multiply_amx;
  return kernels;
}

}  // namespace

extern const Kernels kAmxKernels = amx_kernels();

}  // namespace backgpt
