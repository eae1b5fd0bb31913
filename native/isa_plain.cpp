// Plain C++: runs everywhere, and says in the clearest words what the other files compute.
#include <cfloat>
#include <cmath>

#include "kernels_body.hpp"

namespace backgpt {
namespace {

// a * b + c rounded once, as the instructions of the other sets do. In double the product is exact;
// that the sum is rounded to double before it is rounded to float matters only where the double lies
// half-way between two floats, or where floats are subnormal.
inline float fused(float a, float b, float c) {
#if !defined(FP_FAST_FMAF)
  const double sum = static_cast<double>(a) * b + c;
  uint64_t bits;
  memcpy(&bits, &sum, sizeof bits);
  const bool half_way = (bits & 0x1fffffff) == 0x10000000;
  const bool subnormal = sum != 0 && std::fabs(sum) < FLT_MIN;
  if (!half_way && !subnormal) return static_cast<float>(sum);
#endif
  return std::fma(a, b, c);
}

struct Plain {
  static constexpr int kWidth = 4, kTileTokens = 2, kTileVectors = 4, kChains = 1;
  static constexpr int kPrefetchBytes = 0;
  static constexpr int kBiasedInt8 = 0;
  static constexpr bool kBfloat16Input = false;
  struct Floats {
    float lane[kWidth];
  };
  struct Ints {
    int32_t lane[kWidth];
  };
  struct Units {
    uint8_t byte[kWidth * 4];
  };

  template <class Function>
  static Floats each(Function function) {
    Floats result;
    for (int i = 0; i < kWidth; ++i) result.lane[i] = function(i);
    return result;
  }

  static Floats set(float x) { return each([&](int) { return x; }); }
  static Floats load(const float* p) { return each([&](int i) { return p[i]; }); }
  static void store(float* p, Floats x) { memcpy(p, x.lane, sizeof x.lane); }
  static Floats fma(Floats a, Floats b, Floats c) {
    return each([&](int i) { return fused(a.lane[i], b.lane[i], c.lane[i]); });
  }
  static Floats add(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Floats subtract(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static Floats mul(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static Floats div(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static Floats min(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static Floats max(Floats a, Floats b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static Floats absolute(Floats a) {
    return each([&](int i) { return std::fabs(a.lane[i]); });
  }
  static Floats round(Floats a) {
    return each([&](int i) { return std::nearbyint(a.lane[i]); });
  }
  static Floats times_power_of_two(Floats a, Floats n) {
    return each([&](int i) { return a.lane[i] * std::exp2(n.lane[i]); });
  }
  static float total(Floats a) {
    return (a.lane[0] + a.lane[2]) + (a.lane[1] + a.lane[3]);
  }
  static float largest(Floats a) {
    float found = a.lane[0];
    for (float x : a.lane) found = found > x ? found : x;
    return found;
  }

  static Floats load_bfloat16(const uint16_t* p) {
    return each([&](int i) { return as_float(static_cast<uint32_t>(p[i]) << 16); });
  }
  static void store_bfloat16(uint16_t* p, Floats x) {
    for (int i = 0; i < kWidth; ++i) {
      uint32_t bits;
      memcpy(&bits, &x.lane[i], sizeof bits);
      p[i] = std::isnan(x.lane[i])
                 ? uint16_t{0x7fc0}
                 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
  }

  static Ints add(Ints a, Ints b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] += b.lane[i];
    return a;
  }
  static Ints subtract(Ints a, int32_t b) {
    for (int32_t& x : a.lane) x -= b;
    return a;
  }
  static Floats to_floats(Ints a) {
    return each([&](int i) { return static_cast<float>(a.lane[i]); });
  }

  static Units load_units(const uint8_t* p) {
    Units units;
    memcpy(units.byte, p, sizeof units.byte);
    return units;
  }
  static Units broadcast(const uint8_t* p) {
    Units units;
    for (int i = 0; i < kWidth; ++i) memcpy(units.byte + 4 * i, p, 4);
    return units;
  }
  static void prefetch(const uint8_t*) {}

  // Rounded twice, as with SSE4.1 and in no other set: `fused` would make this many times slower.
  static Floats dot_float(Units w, const uint8_t* x, Floats sum) {
    return each([&](int i) { return sum.lane[i] + number(w.byte + 4 * i) * number(x); });
  }
  static Floats dot_bfloat16(Units w, const uint8_t* x, Floats sum) {
    return each([&](int i) {
      uint32_t pair;
      memcpy(&pair, w.byte + 4 * i, sizeof pair);
      return sum.lane[i] + as_float(pair << 16) * number(x) +
             as_float(pair & 0xffff0000u) * number(x + 4);
    });
  }
  static Ints dot_int8(Units w, Units x, Ints sum) { return dot(w, x, sum, kInt8Bias); }
  static Ints dot_int4(Units w, Units x, Ints sum) { return dot(w, x, sum, 0); }
  static Units low_halves(Units w) {
    for (uint8_t& byte : w.byte) byte &= 15;
    return w;
  }
  static Units high_halves(Units w) {
    for (uint8_t& byte : w.byte) byte >>= 4;
    return w;
  }

  // Rounds 32 floats, returns their sum.
  static int32_t store_int8(int8_t* out, const float* x, float inverse) {
    int32_t all = 0;
    for (int i = 0; i < kGroup; ++i) {
      out[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
      all += out[i];
    }
    return all;
  }

 private:
  static float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
  }
  static float number(const uint8_t* p) {
    float value;
    memcpy(&value, p, sizeof value);
    return value;
  }
  static Ints dot(const Units& w, const Units& x, Ints sum, int bias) {
    for (int i = 0; i < kWidth * 4; ++i)
      sum.lane[i / 4] += (w.byte[i] - bias) * static_cast<int8_t>(x.byte[i]);
    return sum;
  }
};

}  // namespace

extern const Kernels kPlainKernels = kernels_of<Plain>("plain");

}  // namespace backgpt
