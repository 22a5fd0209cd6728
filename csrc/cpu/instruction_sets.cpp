// The table of instruction sets, and the choice among them.
#include "instruction_sets.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include "processor.h"
#endif

namespace vt {

// Each is defined by kernels.cpp, compiled with the flags of its instruction set.
namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512_bf16 {
extern const Kernels kernels;
}
#endif

namespace {

bool always() { return true; }

#if defined(__x86_64__)
const Processor& processor() {
  static const Processor found;
  return found;
}

bool has_avx2() { return processor().avx2; }
bool has_avx512() { return processor().avx512; }
bool has_avx512_bf16() { return processor().avx512_bf16; }
#endif

// From the plainest to the best; the plainest runs on any processor.
const InstructionSet instruction_sets[] = {
    {"baseline", &baseline::kernels, always},
#if defined(__x86_64__)
    {"avx2", &avx2::kernels, has_avx2},
    {"avx512", &avx512::kernels, has_avx512},
    {"avx512_bf16", &avx512_bf16::kernels, has_avx512_bf16},
#endif
};

constexpr char variable[] = "VT_FAST_CPU_ISA";

const InstructionSet* find(const char* name) {
  for (const InstructionSet& set : instruction_sets) {
    if (std::strcmp(set.name, name) == 0) return &set;
  }
  return nullptr;
}

std::string names(bool supported_only, const char* separator = ", ") {
  std::string text;
  for (const InstructionSet& set : instruction_sets) {
    if (supported_only && !set.supported()) continue;
    text += (text.empty() ? "" : separator) + std::string(set.name);
  }
  return text;
}

// The best that is supported, or the one that the environment names.
struct Default {
  Default() {
    const char* name = std::getenv(variable);
    if (name == nullptr || *name == '\0') {
      for (const InstructionSet& candidate : instruction_sets) {
        if (candidate.supported()) set = &candidate;
      }
      return;
    }
    set = find(name);
    const std::string given = std::string(variable) + "=" + name;
    if (set == nullptr) {
      error = given + " names no instruction set that the kernels are compiled for (" + names(false) +
              "); leave it unset to run the best one that this processor supports";
    } else if (!set->supported()) {
      set = nullptr;
      error = given + " is not supported by this processor and its operating system (" + names(true) +
              " are); leave it unset to run the best of these";
    }
  }

  const InstructionSet* set = nullptr;
  std::string error;
};

const Default& standard() {
  static const Default chosen;
  return chosen;
}

// A test's choice, or nullptr.
std::atomic<const InstructionSet*> overruling{nullptr};

}  // namespace

const InstructionSet* chosen_instruction_set(const char** error) {
  const InstructionSet* set = overruling.load(std::memory_order_acquire);
  if (set == nullptr) set = standard().set;
  if (set == nullptr) *error = standard().error.c_str();
  return set;
}

}  // namespace vt

// What Python asks. Texts live as long as the process.
extern "C" {

#define VT_EXPORT __attribute__((visibility("default")))

// Names between spaces, the plainest first: all that the kernels are compiled for, or those that run here.
VT_EXPORT const char* vt_fast_cpu_instruction_sets(int supported_only) {
  static const std::string compiled = vt::names(false, " "), supported = vt::names(true, " ");
  return (supported_only ? supported : compiled).c_str();
}

// The one that runs, or nullptr and a message, as chosen_instruction_set.
VT_EXPORT const char* vt_fast_cpu_chosen(const char** error) {
  const vt::InstructionSet* set = vt::chosen_instruction_set(error);
  return set == nullptr ? nullptr : set->name;
}

// For tests: runs another one from now on; nullptr restores the default. Returns false, and changes nothing,
// if `name` is unknown or not supported.
VT_EXPORT bool vt_fast_cpu_choose(const char* name) {
  const vt::InstructionSet* set = name == nullptr ? nullptr : vt::find(name);
  if (name != nullptr && (set == nullptr || !set->supported())) return false;
  vt::overruling.store(set, std::memory_order_release);
  return true;
}
}
