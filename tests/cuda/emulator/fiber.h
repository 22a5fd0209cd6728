// Fibers: each has a stack, and runs until it switches to another one.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#ifndef __x86_64__
#error "the emulator switches stacks on x86-64 only"
#endif

// Saves the running fiber's registers and stack pointer, and continues another fiber. It is written outside
// of any function, because a compiler that sees a function's body may keep values in registers across a call
// of it.
extern "C" __attribute__((visibility("hidden"))) void emulator_switch_stack(void** save, void* load);
asm(R"(
  .pushsection .text
  .weak emulator_switch_stack
  .hidden emulator_switch_stack
  .type emulator_switch_stack, @function
emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size emulator_switch_stack, . - emulator_switch_stack
  .popsection
)");

namespace emulator {

struct Fiber {
  static constexpr size_t kStackBytes = 256 * 1024, kGuardBytes = 4096;
  // Stacks are apart by a multiple of a cache's size. Different offsets keep them from using the same few
  // sets.
  static constexpr size_t kOffsets = 32, kOffsetBytes = 17 * 64;

  void* stack_pointer = nullptr;
  char* stack = nullptr;  // kept for the next launch, until the process ends

  // `entry` runs at the first switch to this fiber, and must not return.
  void start(void (*entry)(), size_t offset) {
    if (stack == nullptr) {
      void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
      if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) std::abort();
      stack = static_cast<char*>(memory);
    }
    auto* top = reinterpret_cast<uintptr_t*>(stack + kStackBytes - offset % kOffsets * kOffsetBytes);
    *--top = 0;  // a return address that ends backtraces
    *--top = reinterpret_cast<uintptr_t>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = 0;
    stack_pointer = top;
  }
};

}  // namespace emulator
