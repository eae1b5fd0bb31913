// AVX-512 with VNNI, and the one place where BF16 makes a difference.
#pragma once

#include <immintrin.h>

#include "kernels_body.hpp"

namespace backgpt {
namespace {

struct Avx512 {
  static constexpr int kWidth = 16, kTileTokens = 8, kTileVectors = 2, kChains = 4;
  static constexpr int kPrefetchBytes = 2048;
  static constexpr int kBiasedInt8 = kInt8Bias;
  using Floats = __m512;
#if defined(__GNUC__)
  // Sums are copied at every step by GCC if they are an __m512i, whose elements have 64 bits.
  typedef int Ints __attribute__((vector_size(64)));
#else
  using Ints = __m512i;
#endif
  using Units = __m512i;

  static Floats set(float x) { return _mm512_set1_ps(x); }
  static Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Floats x) { _mm512_storeu_ps(p, x); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
  static Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Floats absolute(Floats a) { return _mm512_abs_ps(a); }
  static Floats round(Floats a) { return _mm512_roundscale_ps(a, 8); }
  static Floats times_power_of_two(Floats a, Floats n) { return _mm512_scalef_ps(a, n); }
  static float total(Floats a) {
    const __m256 x = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }
  static float largest(Floats a) { return _mm512_reduce_max_ps(a); }

  static Floats load_bfloat16(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }

  static void store_bfloat16(uint16_t* p, Floats x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);  // not to infinity
    const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
  }

  static Ints add(Ints a, Ints b) { return (Ints)_mm512_add_epi32((Units)a, (Units)b); }
  static Ints subtract(Ints a, int32_t b) {
    return (Ints)_mm512_sub_epi32((Units)a, _mm512_set1_epi32(b));
  }
  static Floats to_floats(Ints a) { return _mm512_cvtepi32_ps((Units)a); }

  static Units load_units(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Units broadcast(const uint8_t* p) {
    int32_t unit;
    memcpy(&unit, p, sizeof unit);
    return _mm512_set1_epi32(unit);
  }
  static void prefetch(const uint8_t* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
  }

  static Floats dot_float(Units w, const uint8_t* x, Floats sum) {
    return fma(_mm512_castsi512_ps(w), _mm512_castsi512_ps(broadcast(x)), sum);
  }
  static Ints dot_int8(Units w, Units x, Ints sum) {
    return (Ints)_mm512_dpbusd_epi32((Units)sum, w, x);
  }
  static Ints dot_int4(Units w, Units x, Ints sum) { return dot_int8(w, x, sum); }
  static Units low_halves(Units w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
  static Units high_halves(Units w) { return low_halves(_mm512_srli_epi16(w, 4)); }

  // Rounds 32 floats, returns their sum.
  static int32_t store_int8(int8_t* out, const float* x, float inverse) {
    const Floats factor = set(inverse);
    const __m512i first = _mm512_cvtps_epi32(mul(load(x), factor));
    const __m512i second = _mm512_cvtps_epi32(mul(load(x + 16), factor));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtsepi32_epi8(first));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm512_cvtsepi32_epi8(second));
    return _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
  }
};

}  // namespace
}  // namespace backgpt
