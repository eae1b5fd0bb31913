// NEON, and the one place where the dot product of ARMv8.2 makes a difference.
#pragma once

#include <arm_neon.h>

#include "kernels_body.hpp"

namespace backgpt {
namespace {

struct Neon {
  static constexpr int kWidth = 4, kTileTokens = 4, kTileVectors = 4, kChains = 1;
  static constexpr int kPrefetchBytes = 1024;
  static constexpr int kBiasedInt8 = 0;
  static constexpr bool kBfloat16Input = false;
  using Floats = float32x4_t;
  using Ints = int32x4_t;
  using Units = uint8x16_t;

  static Floats set(float x) { return vdupq_n_f32(x); }
  static Floats load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Floats x) { vst1q_f32(p, x); }
  static Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
  static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
  static Floats subtract(Floats a, Floats b) { return vsubq_f32(a, b); }
  static Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
  static Floats div(Floats a, Floats b) { return vdivq_f32(a, b); }
  static Floats min(Floats a, Floats b) { return vminq_f32(a, b); }
  static Floats max(Floats a, Floats b) { return vmaxq_f32(a, b); }
  static Floats absolute(Floats a) { return vabsq_f32(a); }
  static Floats round(Floats a) { return vrndnq_f32(a); }
  static Floats times_power_of_two(Floats a, Floats n) {
    const int32x4_t exponent = vshlq_n_s32(vcvtq_s32_f32(n), 23);
    return mul(a, vreinterpretq_f32_s32(vaddq_s32(exponent, vdupq_n_s32(127 << 23))));
  }
  static float total(Floats a) {
    const float32x2_t halves = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(halves, 0) + vget_lane_f32(halves, 1);
  }
  static float largest(Floats a) { return vmaxvq_f32(a); }

  static Floats load_bfloat16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
  }
  static void store_bfloat16(uint16_t* p, Floats x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t number = vceqq_f32(x, x);  // rounding NaN could make it infinite
    vst1_u16(p, vshrn_n_u32(vbslq_u32(number, rounded, vdupq_n_u32(0x7fc00000)), 16));
  }

  static Ints add(Ints a, Ints b) { return vaddq_s32(a, b); }
  static Ints subtract(Ints a, int32_t b) { return vsubq_s32(a, vdupq_n_s32(b)); }
  static Floats to_floats(Ints a) { return vcvtq_f32_s32(a); }

  static Units load_units(const uint8_t* p) { return vld1q_u8(p); }
  static Units broadcast(const uint8_t* p) {
    uint32_t unit;
    memcpy(&unit, p, sizeof unit);
    return vreinterpretq_u8_u32(vdupq_n_u32(unit));
  }
  static void prefetch(const uint8_t* p) { __builtin_prefetch(p); }

  static Floats dot_float(Units w, const uint8_t* x, Floats sum) {
    return fma(vreinterpretq_f32_u8(w), vreinterpretq_f32_u8(broadcast(x)), sum);
  }
  static Floats dot_bfloat16(Units w, const uint8_t* x, Floats sum) {
    const uint32x4_t pairs = vreinterpretq_u32_u8(w);
    const Floats even = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
    const Floats odd = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
    sum = fma(even, vreinterpretq_f32_u8(broadcast(x)), sum);
    return fma(odd, vreinterpretq_f32_u8(broadcast(x + 4)), sum);
  }
  // int8 weights as they were, without `kInt8Bias`.
  static Units without_bias(Units w) { return veorq_u8(w, vdupq_n_u8(0x80)); }
  static Units low_halves(Units w) { return vandq_u8(w, vdupq_n_u8(15)); }
  static Units high_halves(Units w) { return vshrq_n_u8(w, 4); }

  // Rounds 32 floats, returns their sum.
  static int32_t store_int8(int8_t* out, const float* x, float inverse) {
    int32_t all = 0;
    for (int i = 0; i < kGroup; i += kWidth) {
      const int32x4_t rounded = vcvtnq_s32_f32(mul(load(x + i), set(inverse)));
      alignas(16) int32_t lanes[kWidth];
      vst1q_s32(lanes, rounded);
      for (int j = 0; j < kWidth; ++j) out[i + j] = static_cast<int8_t>(lanes[j]);
      all += vaddvq_s32(rounded);
    }
    return all;
  }
};

}  // namespace
}  // namespace backgpt
