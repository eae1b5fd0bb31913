// AVX-512 with VNNI and BF16, for the files that build on it.
#pragma once

#include "isa_avx512.hpp"

namespace backgpt {
namespace {

struct Avx512Bf16 : Avx512 {
  static constexpr bool kBfloat16Input = true;

  static __m512bh as_bfloat16(__m512i bits) {
    __m512bh pairs;
    memcpy(&pairs, &bits, sizeof pairs);
    return pairs;
  }
  static Floats dot_bfloat16(Units w, const uint8_t* x, Floats sum) {
    return _mm512_dpbf16_ps(sum, as_bfloat16(w), as_bfloat16(broadcast(x)));
  }
};

}  // namespace
}  // namespace backgpt
