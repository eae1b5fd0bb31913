// SSE4.1 without FMA: x86 processors before 2013, and the smallest ones long after.
#include <smmintrin.h>

#include "kernels_body.hpp"

namespace backgpt {
namespace {

struct Sse4 {
  static constexpr int kWidth = 4, kTileTokens = 4, kTileVectors = 2, kChains = 1;
  static constexpr int kPrefetchBytes = 1024;
  static constexpr int kBiasedInt8 = 0;
  static constexpr bool kBfloat16Input = false;
  using Floats = __m128;
  using Ints = __m128i;
  using Units = __m128i;

  static Floats set(float x) { return _mm_set1_ps(x); }
  static Floats load(const float* p) { return _mm_loadu_ps(p); }
  static void store(float* p, Floats x) { _mm_storeu_ps(p, x); }
  // a * b + c rounded once, computed in double: see `fused` in isa_plain.cpp.
  static Floats fma(Floats a, Floats b, Floats c) {
    const __m128d low = in_double(a, b, c);
    const __m128d high =
        in_double(_mm_movehl_ps(a, a), _mm_movehl_ps(b, b), _mm_movehl_ps(c, c));
    const __m128 lows = _mm_castpd_ps(low), highs = _mm_castpd_ps(high);
    const __m128i last = _mm_castps_si128(_mm_shuffle_ps(lows, highs, 0x88));
    const __m128i first = _mm_castps_si128(_mm_shuffle_ps(lows, highs, 0xdd));
    const __m128i half_way = _mm_cmpeq_epi32(_mm_and_si128(last, _mm_set1_epi32(0x1fffffff)),
                                             _mm_set1_epi32(0x10000000));
    const __m128i size = _mm_and_si128(first, _mm_set1_epi32(0x7fffffff));
    const __m128i subnormal = _mm_and_si128(_mm_cmpgt_epi32(_mm_set1_epi32(0x38100000), size),
                                            _mm_cmpgt_epi32(size, _mm_setzero_si128()));
    if (_mm_movemask_epi8(_mm_or_si128(half_way, subnormal))) return one_by_one(a, b, c);
    return _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(high));
  }
  static Floats add(Floats a, Floats b) { return _mm_add_ps(a, b); }
  static Floats subtract(Floats a, Floats b) { return _mm_sub_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm_mul_ps(a, b); }
  static Floats div(Floats a, Floats b) { return _mm_div_ps(a, b); }
  static Floats min(Floats a, Floats b) { return _mm_min_ps(a, b); }
  static Floats max(Floats a, Floats b) { return _mm_max_ps(a, b); }
  static Floats absolute(Floats a) { return _mm_andnot_ps(set(-0.0f), a); }
  static Floats round(Floats a) {
    return _mm_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Floats times_power_of_two(Floats a, Floats n) {
    const __m128i exponent = _mm_slli_epi32(_mm_cvtps_epi32(n), 23);
    return mul(a, _mm_castsi128_ps(_mm_add_epi32(exponent, _mm_set1_epi32(127 << 23))));
  }
  static float total(Floats a) {
    const __m128 x = _mm_add_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static float largest(Floats a) {
    const __m128 x = _mm_max_ps(a, _mm_movehl_ps(a, a));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }

  static Floats load_bfloat16(const uint16_t* p) {
    const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16));
  }
  static void store_bfloat16(uint16_t* p, Floats x) {
    const __m128i bits = _mm_castps_si128(x);
    const __m128i odd = _mm_and_si128(_mm_srli_epi32(bits, 16), _mm_set1_epi32(1));
    __m128i rounded = _mm_add_epi32(bits, _mm_add_epi32(odd, _mm_set1_epi32(0x7fff)));
    const __m128 nan = _mm_cmpunord_ps(x, x);  // rounding could make it infinite
    rounded = _mm_blendv_epi8(rounded, _mm_set1_epi32(0x7fc00000), _mm_castps_si128(nan));
    rounded = _mm_srli_epi32(rounded, 16);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(rounded, rounded));
  }

  static Ints add(Ints a, Ints b) { return _mm_add_epi32(a, b); }
  static Ints subtract(Ints a, int32_t b) { return _mm_sub_epi32(a, _mm_set1_epi32(b)); }
  static Floats to_floats(Ints a) { return _mm_cvtepi32_ps(a); }

  static Units load_units(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static Units broadcast(const uint8_t* p) {
    int32_t unit;
    memcpy(&unit, p, sizeof unit);
    return _mm_set1_epi32(unit);
  }
  static void prefetch(const uint8_t* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
  }

  // Rounded twice, as in plain C++ and in no other set: `fma` would make this many times slower.
  static Floats dot_float(Units w, const uint8_t* x, Floats sum) {
    return add(sum, mul(_mm_castsi128_ps(w), _mm_castsi128_ps(broadcast(x))));
  }
  static Floats dot_bfloat16(Units w, const uint8_t* x, Floats sum) {
    const __m128i odd = _mm_and_si128(w, _mm_set1_epi32(static_cast<int>(0xffff0000)));
    sum = dot_float(_mm_slli_epi32(w, 16), x, sum);
    return dot_float(odd, x + 4, sum);
  }
  // As with AVX2: two products are added in 16 bits, so |w|, at most 128, by x with w's sign.
  static Ints dot_int8(Units w, Units x, Ints sum) {
    const __m128i signed_w = _mm_xor_si128(w, _mm_set1_epi8(static_cast<char>(0x80)));
    const __m128i pairs = _mm_maddubs_epi16(_mm_abs_epi8(signed_w), _mm_sign_epi8(x, signed_w));
    return add(sum, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
  }
  static Ints dot_int4(Units w, Units x, Ints sum) {
    return add(sum, _mm_madd_epi16(_mm_maddubs_epi16(w, x), _mm_set1_epi16(1)));
  }
  static Units low_halves(Units w) { return _mm_and_si128(w, _mm_set1_epi8(15)); }
  static Units high_halves(Units w) { return low_halves(_mm_srli_epi16(w, 4)); }

  // Rounds 32 floats, returns their sum.
  static int32_t store_int8(int8_t* out, const float* x, float inverse) {
    int32_t all = 0;
    alignas(16) int32_t rounded[kWidth];
    for (int i = 0; i < kGroup; i += kWidth) {
      const __m128i values = _mm_cvtps_epi32(mul(load(x + i), set(inverse)));
      _mm_store_si128(reinterpret_cast<__m128i*>(rounded), values);
      for (int j = 0; j < kWidth; ++j) {
        out[i + j] = static_cast<int8_t>(rounded[j]);
        all += rounded[j];
      }
    }
    return all;
  }

 private:
  // Of the first two lanes.
  static __m128d in_double(Floats a, Floats b, Floats c) {
    return _mm_add_pd(_mm_mul_pd(_mm_cvtps_pd(a), _mm_cvtps_pd(b)), _mm_cvtps_pd(c));
  }
  static Floats one_by_one(Floats a, Floats b, Floats c) {
    float x[kWidth], y[kWidth], z[kWidth];
    store(x, a);
    store(y, b);
    store(z, c);
    for (int i = 0; i < kWidth; ++i) z[i] = std::fma(x[i], y[i], z[i]);
    return load(z);
  }
};

}  // namespace

extern const Kernels kSse4Kernels = kernels_of<Sse4>("sse4");

}  // namespace backgpt
