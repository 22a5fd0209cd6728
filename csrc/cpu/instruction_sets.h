// The instruction sets that the kernels are compiled for, and the one that runs.
#pragma once

#include "call.h"

namespace vt {

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
  bool (*supported)();  // by this processor and its operating system
};

// The one that runs: the best supported one, or the one that the environment variable VT_FAST_CPU_ISA named
// at the first call. If that is unknown or not supported, the result is nullptr and `error` a message that
// lives as long as the process.
const InstructionSet* chosen_instruction_set(const char** error);

}  // namespace vt
