// vt_fast._native.build_facts: how the kernel library was built, and which of its kernels can run here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../torch/torch_facts.h"

namespace {

std::vector<std::string> instruction_sets(bool supported_only) {
  std::vector<std::string> names;
  for (int index = 0; index < vt::instruction_set_count; ++index) {
    const vt::InstructionSet& set = vt::instruction_sets[index];
    if (!supported_only || set.supported()) names.emplace_back(set.name);
  }
  return names;
}

std::string chosen() {
  const char* error = nullptr;
  const vt::InstructionSet* set = vt::chosen_instruction_set(&error);
  if (set == nullptr) throw std::runtime_error(error);
  return set->name;
}

bool choose(const std::optional<std::string>& name) {
  return vt::choose_instruction_set(name ? name->c_str() : nullptr);
}

std::string compiler() {
#if defined(__clang__)
  return std::string("Clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("GCC ") + __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(build_facts, module) {
  module.doc() = "How the kernel library was built, and which of its kernels can run here.";
  module.def(
      "compiled", [] { return instruction_sets(false); },
      "The instruction sets that the kernels are compiled for, the plainest first.");
  module.def(
      "supported", [] { return instruction_sets(true); },
      "Those that this processor and its operating system support.");
  module.def("chosen", &chosen, "The one that runs. RuntimeError if VT_FAST_CPU_ISA names one that cannot.");
  module.def("choose", &choose, pybind11::arg("name"),
             "Run another one from now on; None restores the default. False if it cannot run here.");
  module.def("compiler", &compiler, "The compiler and its version.");
  module.def("threads", [] { return "torch's pool"; }, "The threads that the kernels run on.");
  module.def(
      "torch_of_headers", [] { return vt::torch_of_headers; },
      "The version of torch that the library was compiled with.");
  module.def(
      "oldest_torch", [] { return vt::oldest_torch; },
      "The oldest version of torch that can load the library.");
}
