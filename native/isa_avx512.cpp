// AVX-512 F, BW, DQ, VL and VNNI: Cascade Lake, Ice Lake and later.
#include "isa_avx512.hpp"

namespace backgpt {
namespace {

struct Avx512Base : Avx512 {
  static constexpr bool kBfloat16Input = false;

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
  static Floats dot_bfloat16(Units w, const uint8_t* x, Floats sum) {
    const Floats even = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
    const Floats odd =
        _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
    sum = fma(even, _mm512_castsi512_ps(broadcast(x)), sum);
    return fma(odd, _mm512_castsi512_ps(broadcast(x + 4)), sum);
  }
};

}  // namespace

extern const Kernels kAvx512Kernels = kernels_of<Avx512Base>("avx512");

}  // namespace backgpt
