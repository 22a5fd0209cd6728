// The instruction sets that the kernels are compiled for, and the one that runs.
#pragma once

#include "call.h"

namespace vt {

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
  bool (*supported)();  // by this processor and its operating system
};

// From the plainest to the best; the plainest runs on any processor.
extern const InstructionSet instruction_sets[];
extern const int instruction_set_count;

// The one that runs: the best supported one, or the one that the environment variable VT_FAST_CPU_ISA named
// at the first call. If that is unknown or not supported, the result is nullptr and `error` a message that
// lives as long as the process.
const InstructionSet* chosen_instruction_set(const char** error);

// For tests: runs another one from now on; nullptr restores the default. Returns false, and changes nothing,
// if `name` is unknown or not supported.
bool choose_instruction_set(const char* name);

}  // namespace vt
