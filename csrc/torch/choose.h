// The chooser of a dispatch key: the backend of a call, by the op's last argument.
#pragma once

#include "target.h"

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include <dlfcn.h>

#include "host.h"
#include "schemas.h"

namespace vt {
namespace {

// Why the last call of the dispatcher failed. torch can say so from 2.13 on; before, it prints it.
std::string dispatcher_error() {
  using What = const char* (*)();
  const auto what = reinterpret_cast<What>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  return what == nullptr ? "see the error above" : what();
}

// Another backend's own op takes over the whole call. Those of backends that are not in this library need
// Python. `reason`: why this library's backend does not run it, or nullptr.
void hand_over(const Op& op, const std::string& backend, StableIValue* stack, const char* reason) {
  const std::string before =
      (reason == nullptr ? "" : std::string(reason) + "; ") + "`backend=\"" + backend + "\"`";
  const std::string name = "vt_fast::" + std::string(op.name) + "_" + backend;
  if (torch_call_dispatcher(name.c_str(), "", stack, TORCH_ABI_VERSION) == TORCH_SUCCESS) return;
  const bool python = dlsym(RTLD_DEFAULT, "Py_IsInitialized") != nullptr;
  throw std::runtime_error(before + (python ? " failed: " + dispatcher_error() : " needs Python"));
}

// Defines an op, and the one of the backend of that name.
void define(torch::stable::detail::StableLibrary& library, const Op& op, const char* backend) {
  const std::string name = op.name, arguments = op.arguments,
                    results = ") -> (" + std::string(op.results) + ")";
  library.def((name + "(" + arguments + ", str? backend=None" + results).c_str());
  library.def((name + "_" + backend + "(" + arguments + results).c_str());
}

// `unavailable` says why `own`, this library's backend, cannot run here.
template <const Op& op, const char* (*unavailable)(), const char* own, Boxed kernel>
void choose(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  const auto backend = torch::stable::detail::to<std::optional<std::string>>(stack[inputs - 1]);
  const char* reason = nullptr;
  if (!backend || *backend == own) {
    reason = unavailable();
    if (reason == nullptr) return kernel(stack, inputs - 1, outputs);
    if (backend) throw std::runtime_error("`backend=\"" + *backend + "\"` is not available here: " + reason);
  }
  hand_over(op, backend.value_or("torch"), stack, reason);
}

}  // namespace
}  // namespace vt
