// NEON with the dot product of ARMv8.2: Apple's processors, Graviton 2, Raspberry Pi 5 and later.
#include "isa_neon.hpp"

namespace backgpt {
namespace {

struct NeonDot : Neon {
  static Ints dot_int8(Units w, Units x, Ints sum) {
    return vdotq_s32(sum, vreinterpretq_s8_u8(without_bias(w)), vreinterpretq_s8_u8(x));
  }
  static Ints dot_int4(Units w, Units x, Ints sum) {
    return vdotq_s32(sum, vreinterpretq_s8_u8(w), vreinterpretq_s8_u8(x));
  }
};

}  // namespace

extern const Kernels kNeonDotKernels = kernels_of<NeonDot>("neon_dot");

}  // namespace backgpt
