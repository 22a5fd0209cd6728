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
#include "results.h"
#include "schemas.h"

namespace vt {
namespace {

// Another backend's own op takes over the whole call, the references on the stack included. Backends that are
// not in this library need Python.
inline void hand_over(const Op& op, const std::string& backend, StableIValue* stack) {
  const std::string name = "vt_fast::" + std::string(op.name) + "_" + backend;
  if (torch_call_dispatcher(name.c_str(), "", stack, TORCH_ABI_VERSION) == TORCH_SUCCESS) return;
  const bool python = dlsym(RTLD_DEFAULT, "Py_IsInitialized") != nullptr;
  const std::string reason = python ? "failed: " + torch_error() : "needs Python";
  throw std::runtime_error("`backend=\"" + backend + "\"` " + reason);
}

// Drops the references on the stack of a call of `function` that no kernel takes.
template <class Result, class... Parameters>
void drop(StableIValue* stack, Result (*)(Parameters...)) {
  using namespace torch::stable::detail;
  unbox_to_tuple<unbox_type_t<Parameters>...>(stack);
}

// Defines an op, and the own op of each backend. The latter exist without Python, too, since a failed call of
// an op that does not exist would leak its arguments.
inline void define(torch::stable::detail::StableLibrary& library, const Op& op) {
  const std::string name = op.name, arguments = op.arguments,
                    results = ") -> (" + std::string(op.results) + ")";
  library.def((name + "(" + arguments + ", *, str? backend=None" + results).c_str());
  for (const char* backend : backends) {
    library.def((name + "_" + backend + "(" + arguments + results).c_str());
  }
  library.def((name + "_next(" + arguments + results).c_str());  // see cuda_choose.h
}

// Why a call with this backend cannot be made: its name is unknown, or it is this library's, which cannot
// run.
std::string refusal(const std::optional<std::string>& backend, const char* own, const char* unavailable) {
  if (!backend) return "";
  if (*backend == own) {
    return unavailable == nullptr ? ""
                                  : "`backend=\"" + *backend + "\"` is not available here: " + unavailable;
  }
  std::string known;
  for (const char* name : backends) {
    if (*backend == name) return "";
    known += std::string(known.empty() ? "" : ", ") + "\"" + name + "\"";
  }
  return "`backend` must be None or one of " + known + ", got \"" + *backend + "\"";
}

// `unavailable` says why `own`, this library's backend, cannot run here. `function` implements it. Where it
// cannot run, backend=None takes "torch", the one other backend that runs on any CPU.
template <const Op& op, const char* (*unavailable)(), const char* own, auto function, Boxed kernel>
void choose(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  const auto backend = torch::stable::detail::to<std::optional<std::string>>(stack[inputs - 1]);
  const bool mine = !backend || *backend == own;
  const char* reason = mine ? unavailable() : nullptr;
  if (mine && reason == nullptr) return kernel(stack, inputs - 1, outputs);
  const std::string refused = refusal(backend, own, reason);
  if (!refused.empty()) {
    drop(stack, function);
    throw std::invalid_argument(refused);
  }
  hand_over(op, backend.value_or("torch"), stack);
}

}  // namespace
}  // namespace vt
