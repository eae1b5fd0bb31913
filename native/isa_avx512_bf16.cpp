// AVX-512 with VNNI and BF16: Zen 4 and later, Cooper Lake.
#include "isa_avx512_bf16.hpp"

namespace backgpt {

extern const Kernels kAvx512Bf16Kernels = kernels_of<Avx512Bf16>("avx512_bf16");

}  // namespace backgpt
