// Which instruction sets the kernels were compiled for, and which one runs.
#pragma once

#include "call.h"

// What build_facts may link against; all else stays inside the library (see ../exports.map).
#define VT_EXPORT __attribute__((visibility("default")))

namespace vt {

struct InstructionSet {
  const char* name;
  const Kernels* kernels;
  bool (*supported)();  // by this processor and its operating system
};

// Ordered from the plainest to the best; the plainest always runs.
VT_EXPORT extern const InstructionSet instruction_sets[];
VT_EXPORT extern const int instruction_set_count;

// The one that runs: the best supported, or the one that the environment variable VT_FAST_CPU_ISA names
// when it is first asked for. Where that names none that is compiled in and supported, `error` is set to
// a text that says so and lives as long as the process, and the result is nullptr.
VT_EXPORT const InstructionSet* chosen_instruction_set(const char** error);

// Lets tests walk through all of them in one process. nullptr: back to what the environment said, or the
// best. Returns false, and changes nothing, if `name` is unknown or not supported here.
VT_EXPORT bool choose_instruction_set(const char* name);

}  // namespace vt
