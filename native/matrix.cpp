#include "matrix.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace backgpt {
namespace {

constexpr float kInt8Max = 127.0f;
constexpr float kInt4Max = 8.0f;

void to_floats(const SourceRow& source, int width, float* out) {
  if (source.floats) std::copy_n(source.floats, width, out);
  for (int i = 0; source.bytes && i < width; ++i) out[i] = source.scale * source.bytes[i];
}

float largest(const float* values, int count) {
  float found = 0.0f;
  for (int i = 0; i < count; ++i) found = std::max(found, std::fabs(values[i]));
  return found;
}

// Symmetric per row: w = q * scale with q in [-127, 127]. Returns the scale.
float quantize_int8(const float* values, int count, uint8_t* out) {
  const float scale = largest(values, count) / kInt8Max;
  const float inverse = scale > 0 ? 1 / scale : 0.0f;
  for (int i = 0; i < count; ++i) {
    const int q = static_cast<int>(std::nearbyint(values[i] * inverse));
    out[i] = static_cast<uint8_t>(std::clamp(q, -127, 127) + kInt8Bias);
  }
  return scale;
}

struct Int4Group {
  float scale;
  float error;
  uint8_t values[kGroup];
};

Int4Group round_int4(const float* values, float scale) {
  Int4Group group{scale, 0.0f, {}};
  const float inverse = scale != 0 ? 1 / scale : 0.0f;
  for (int i = 0; i < kGroup; ++i) {
    const int q = std::clamp(static_cast<int>(std::nearbyint(values[i] * inverse)), -8, 7);
    group.values[i] = static_cast<uint8_t>(q + kInt4Bias);
    const float miss = values[i] - scale * static_cast<float>(q);
    group.error += miss * miss;
  }
  return group;
}

// The range of 4 bits is [-8, 7]: the value that is largest by size becomes -8, so the scale bears
// the opposite sign. Slightly smaller scales cut that value but serve the others: take the best.
Int4Group quantize_int4(const float* values) {
  float extreme = 0.0f;
  for (int i = 0; i < kGroup; ++i)
    if (std::fabs(values[i]) > std::fabs(extreme)) extreme = values[i];
  Int4Group best = round_int4(values, from_bfloat16(to_bfloat16(extreme / -kInt4Max)));
  for (float divisor = kInt4Max - 1.2f; divisor < kInt4Max + 1.5f; divisor += 0.3f) {
    for (float sign : {-1.0f, 1.0f}) {
      const float scale = from_bfloat16(to_bfloat16(sign * extreme / divisor));
      const Int4Group group = round_int4(values, scale);
      if (group.error < best.error) best = group;
    }
  }
  return best;
}

// Puts 32 rows, each of `units` 32-bit units, side by side unit by unit.
void interleave(const uint32_t* rows, int units, uint32_t* out) {
  constexpr int kTile = 16;  // units at a time: one cache line of every row
  for (int start = 0; start < units; start += kTile) {
    const int end = std::min(start + kTile, units);
    for (int row = 0; row < kBlock; ++row)
      for (int unit = start; unit < end; ++unit)
        out[static_cast<size_t>(unit) * kBlock + row] =
            rows[static_cast<size_t>(row) * units + unit];
  }
}

}  // namespace

uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to nearest even
}

float from_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

Matrix::Matrix(Dtype dtype, int rows, int columns)
    : dtype(dtype),
      rows(static_cast<int>(round_up(rows, kBlock))),
      columns(static_cast<int>(round_up(columns, kGroup))) {
  weights = Buffer<uint8_t>(static_cast<size_t>(this->rows) * units() * 4);
  if (dtype == Dtype::int8) scales = Buffer<float>(this->rows);
  if (dtype == Dtype::int4)
    group_scales = Buffer<uint16_t>(static_cast<size_t>(this->rows) * (this->columns / kGroup));
}

int Matrix::columns_per_unit() const {
  switch (dtype) {
    case Dtype::float32: return 1;
    case Dtype::bfloat16: return 2;
    case Dtype::int8: return 4;
    default: return 8;
  }
}

size_t Matrix::bytes() const {
  return weights.size() + scales.size() * sizeof(float) + group_scales.size() * sizeof(uint16_t);
}

Packed Matrix::packed() const {
  return {dtype, units(), columns / kGroup, weights.data(), scales.data(), group_scales.data()};
}

void Matrix::pack(int block, const SourceRow* source, int width) {
  const int row_units = units(), groups = columns / kGroup;
  std::vector<uint32_t> staged(static_cast<size_t>(kBlock) * row_units);
  std::vector<float> floats(columns);
  for (int row = 0; row < kBlock; ++row) {
    uint32_t* out = staged.data() + static_cast<size_t>(row) * row_units;
    uint8_t* bytes = reinterpret_cast<uint8_t*>(out);
    if (dtype == Dtype::int8 && source[row].bytes) {  // taken as they are, never rounded twice
      std::fill_n(bytes, columns, kInt8Bias);
      for (int i = 0; i < width; ++i) bytes[i] = static_cast<uint8_t>(source[row].bytes[i] ^ 0x80);
      scales.data()[block * kBlock + row] = source[row].scale;
      continue;
    }
    std::fill(floats.begin(), floats.end(), 0.0f);
    to_floats(source[row], width, floats.data());
    if (dtype == Dtype::float32) {
      std::memcpy(out, floats.data(), columns * sizeof(float));
    } else if (dtype == Dtype::bfloat16) {
      std::vector<uint16_t> rounded(columns);
      std::transform(floats.begin(), floats.end(), rounded.begin(), to_bfloat16);
      std::memcpy(out, rounded.data(), columns * sizeof(uint16_t));
    } else if (dtype == Dtype::int8) {
      scales.data()[block * kBlock + row] = quantize_int8(floats.data(), columns, bytes);
    } else {
      for (int group = 0; group < groups; ++group) {
        const Int4Group packed = quantize_int4(floats.data() + group * kGroup);
        group_scales.data()[(static_cast<size_t>(block) * groups + group) * kBlock + row] =
            to_bfloat16(packed.scale);
        for (int i = 0; i < kGroup; ++i) {  // of 8 columns, the low halves hold the first four
          uint8_t& byte = bytes[group * (kGroup / 2) + i / 8 * 4 + i % 4];
          byte = i % 8 < 4 ? packed.values[i] : static_cast<uint8_t>(byte | packed.values[i] << 4);
        }
      }
    }
  }
  interleave(staged.data(), row_units, reinterpret_cast<uint32_t*>(weights.data()) +
                                           static_cast<size_t>(block) * row_units * kBlock);
}

void Matrix::unpack(int row, float* out) const {
  const int per_unit = columns_per_unit(), groups = columns / kGroup;
  const uint8_t* block = weights.data() + static_cast<size_t>(row / kBlock) * units() * kBlock * 4;
  const uint8_t* units_of_row = block + static_cast<size_t>(row % kBlock) * 4;
  for (int unit = 0; unit < units(); ++unit, out += per_unit) {
    const uint8_t* bytes = units_of_row + static_cast<size_t>(unit) * kBlock * 4;
    if (dtype == Dtype::float32) {
      std::memcpy(out, bytes, sizeof(float));
    } else if (dtype == Dtype::bfloat16) {
      uint16_t pair[2];
      std::memcpy(pair, bytes, sizeof pair);
      for (int i = 0; i < 2; ++i) out[i] = from_bfloat16(pair[i]);
    } else if (dtype == Dtype::int8) {
      for (int i = 0; i < 4; ++i)
        out[i] = scales.data()[row] * static_cast<float>(bytes[i] - kInt8Bias);
    } else {
      const size_t group = static_cast<size_t>(row / kBlock) * groups + unit * 8 / kGroup;
      const float scale = from_bfloat16(group_scales.data()[group * kBlock + row % kBlock]);
      for (int i = 0; i < 4; ++i) {
        out[i] = scale * static_cast<float>((bytes[i] & 15) - kInt4Bias);
        out[i + 4] = scale * static_cast<float>((bytes[i] >> 4) - kInt4Bias);
      }
    }
  }
}

}  // namespace backgpt
