#include "cpu.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace backgpt {
namespace {

#if defined(__x86_64__) || defined(_M_X64)

struct Registers {
  unsigned eax, ebx, ecx, edx;
};

Registers cpuid(unsigned leaf, unsigned part) {
  Registers r{};
#if defined(_MSC_VER)
  int values[4];
  __cpuidex(values, static_cast<int>(leaf), static_cast<int>(part));
  r = {static_cast<unsigned>(values[0]), static_cast<unsigned>(values[1]),
       static_cast<unsigned>(values[2]), static_cast<unsigned>(values[3])};
#else
  __cpuid_count(leaf, part, r.eax, r.ebx, r.ecx, r.edx);
#endif
  return r;
}

// Which registers the operating system saves when it switches threads (XCR0).
unsigned saved_state() {
#if defined(_MSC_VER)
  return static_cast<unsigned>(_xgetbv(0));
#else
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
#endif
}

bool bit(unsigned word, int number) { return word >> number & 1; }

// The kernel of Linux lets a program use tile registers only when asked.
[[maybe_unused]] bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#endif

}  // namespace

std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> usable;
#if defined(__x86_64__) || defined(_M_X64)
  const Registers basic = cpuid(1, 0);
  const bool saves = bit(basic.ecx, 27);  // OSXSAVE: XCR0 can be read
  const unsigned state = saves ? saved_state() : 0;
  if (cpuid(0, 0).eax >= 7 && (state & 0x06) == 0x06) {
    const Registers extended = cpuid(7, 0);
    const bool avx2 = bit(basic.ecx, 12) && bit(extended.ebx, 5);  // with FMA
    const bool avx512 = avx2 && (state & 0xe6) == 0xe6 && bit(extended.ebx, 16) &&
                        bit(extended.ebx, 17) && bit(extended.ebx, 30) && bit(extended.ebx, 31) &&
                        bit(extended.ecx, 11);  // F, DQ, BW, VL; VNNI
    [[maybe_unused]] const bool bf16 = avx512 && extended.eax >= 1 && bit(cpuid(7, 1).eax, 5);
#if defined(BACKGPT_AMX)
    const bool tiles = bit(extended.edx, 22) && bit(extended.edx, 24) && bit(extended.edx, 25);
    if (bf16 && tiles && may_use_tiles()) usable.push_back(&kAmxKernels);
#endif
#if defined(BACKGPT_AVX512_BF16)
    if (bf16) usable.push_back(&kAvx512Bf16Kernels);
#endif
#if defined(BACKGPT_AVX512)
    if (avx512) usable.push_back(&kAvx512Kernels);
#endif
#if defined(BACKGPT_AVX2)
    if (avx2) usable.push_back(&kAvx2Kernels);
#endif
  }
#if defined(BACKGPT_SSE4)
  if (bit(basic.ecx, 9) && bit(basic.ecx, 19)) usable.push_back(&kSse4Kernels);  // SSSE3, SSE4.1
#endif
#endif
#if defined(BACKGPT_NEON_DOT) && defined(__linux__)
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) usable.push_back(&kNeonDotKernels);
#elif defined(BACKGPT_NEON_DOT) && defined(__APPLE__)
  usable.push_back(&kNeonDotKernels);  // every Apple processor that runs a Mac has it
#endif
#if defined(BACKGPT_NEON)
  usable.push_back(&kNeonKernels);
#endif
  usable.push_back(&kPlainKernels);
  return usable;
}

}  // namespace backgpt
