// AVX-512 F, BW, DQ, VL and VNNI: Cascade Lake, Ice Lake and later.
#include "isa_avx512.hpp"

namespace backgpt {
namespace {

struct Avx512Base : Avx512 {
  static constexpr bool kBfloat16Input = false;

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
