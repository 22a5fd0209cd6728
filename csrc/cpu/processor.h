// The instruction sets that this x86-64 processor has and its operating system supports.
//
// __builtin_cpu_supports is not used: it needs a part of the compiler's run-time library that `zig c++`
// lacks.
#pragma once

#include <cpuid.h>

#include <cstdint>

namespace vt {

class Processor {
 public:
  Processor() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return;
    const bool saved_by_system = bit(ecx, 27);  // OSXSAVE: XCR0 can be read
    const uint64_t saved = saved_by_system ? extended_control_register() : 0;
    const bool wide = (saved & 0x06) == 0x06;    // task switches save 256 bits of each register
    const bool widest = (saved & 0xe6) == 0xe6;  // and 512 bits, registers 16 to 31 and the masks
    const bool fma = bit(ecx, 12), avx = bit(ecx, 28), f16c = bit(ecx, 29);
    unsigned last = 0;
    if (!__get_cpuid_count(7, 0, &last, &ebx, &ecx, &edx)) return;
    avx2 = wide && avx && fma && f16c && bit(ebx, 5);
    const bool foundation = bit(ebx, 16), dq = bit(ebx, 17), bw = bit(ebx, 30), vl = bit(ebx, 31);
    avx512 = avx2 && widest && foundation && dq && bw && vl;
    if (last == 0 || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) return;
    avx512_bf16 = avx512 && bit(eax, 5);
  }

  bool avx2 = false;         // with FMA and F16C
  bool avx512 = false;       // F, BW, VL and DQ, with the above
  bool avx512_bf16 = false;  // with the above

 private:
  static bool bit(unsigned value, int index) { return (value >> index) & 1u; }

  static uint64_t extended_control_register() {
    uint32_t low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
  }
};

}  // namespace vt
