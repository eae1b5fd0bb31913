// AVX2 with FMA: nearly every x86 processor since 2013.
#include <immintrin.h>

#include "kernels_body.hpp"

namespace backgpt {
namespace {

struct Avx2 {
  static constexpr int kWidth = 8, kTileTokens = 4, kTileVectors = 2, kChains = 2;
  static constexpr int kPrefetchBytes = 1024;
  static constexpr int kBiasedInt8 = 0;
  static constexpr bool kBfloat16Input = false;
  using Floats = __m256;
  using Ints = __m256i;
  using Units = __m256i;

  static Floats set(float x) { return _mm256_set1_ps(x); }
  static Floats load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Floats x) { _mm256_storeu_ps(p, x); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats div(Floats a, Floats b) { return _mm256_div_ps(a, b); }
  static Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
  static Floats absolute(Floats a) { return _mm256_andnot_ps(set(-0.0f), a); }
  static Floats round(Floats a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Floats times_power_of_two(Floats a, Floats n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return mul(a, _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23))));
  }
  static float total(Floats a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static float largest(Floats a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }

  static Floats load_bfloat16(const uint16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static void store_bfloat16(uint16_t* p, Floats x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);  // rounding could make it infinite
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), _mm256_castps_si256(nan));
    rounded = _mm256_srli_epi32(rounded, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }

  static Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints subtract(Ints a, int32_t b) { return _mm256_sub_epi32(a, _mm256_set1_epi32(b)); }
  static Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }

  static Units load_units(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Units broadcast(const uint8_t* p) {
    int32_t unit;
    memcpy(&unit, p, sizeof unit);
    return _mm256_set1_epi32(unit);
  }
  static void prefetch(const uint8_t* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
  }

  static Floats dot_float(Units w, const uint8_t* x, Floats sum) {
    return fma(_mm256_castsi256_ps(w), _mm256_castsi256_ps(broadcast(x)), sum);
  }
  static Floats dot_bfloat16(Units w, const uint8_t* x, Floats sum) {
    const Floats even = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
    const Floats odd = _mm256_castsi256_ps(
        _mm256_and_si256(w, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
    sum = fma(even, _mm256_castsi256_ps(broadcast(x)), sum);
    return fma(odd, _mm256_castsi256_ps(broadcast(x + 4)), sum);
  }
  // Without VNNI two products are added in 16 bits, which 255 * 127 * 2 would overflow: multiply
  // |w|, at most 128, by x with w's sign.
  static Ints dot_int8(Units w, Units x, Ints sum) {
    const __m256i signed_w = _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80)));
    const __m256i pairs =
        _mm256_maddubs_epi16(_mm256_abs_epi8(signed_w), _mm256_sign_epi8(x, signed_w));
    return add(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static Ints dot_int4(Units w, Units x, Ints sum) {
    return add(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
  }
  static Units low_halves(Units w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
  static Units high_halves(Units w) { return low_halves(_mm256_srli_epi16(w, 4)); }

  // Rounds 32 floats, returns their sum.
  static int32_t store_int8(int8_t* out, const float* x, float inverse) {
    int32_t all = 0;
    alignas(32) int32_t rounded[kWidth];
    for (int i = 0; i < kGroup; i += kWidth) {
      const __m256i values = _mm256_cvtps_epi32(mul(load(x + i), set(inverse)));
      _mm256_store_si256(reinterpret_cast<__m256i*>(rounded), values);
      for (int j = 0; j < kWidth; ++j) {
        out[i + j] = static_cast<int8_t>(rounded[j]);
        all += rounded[j];
      }
    }
    return all;
  }
};

}  // namespace

extern const Kernels kAvx2Kernels = kernels_of<Avx2>("avx2");

}  // namespace backgpt
