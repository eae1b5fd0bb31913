// NEON as every 64-bit ARM processor has it: Raspberry Pi 3 and 4, Graviton 1.
#include "isa_neon.hpp"

namespace backgpt {
namespace {

struct NeonBase : Neon {
  static Ints dot_int8(Units w, Units x, Ints sum) { return dot_int4(without_bias(w), x, sum); }
  static Ints dot_int4(Units w, Units x, Ints sum) {
    const int8x16_t a = vreinterpretq_s8_u8(w), b = vreinterpretq_s8_u8(x);
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(a, b));
    return add(sum, vpaddq_s32(low, high));
  }
};

}  // namespace

extern const Kernels kNeonKernels = kernels_of<NeonBase>("neon");

}  // namespace backgpt
