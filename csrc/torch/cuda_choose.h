// The choice of a backend where tensors are on a CUDA device.
#pragma once

#include "target.h"

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include <dlfcn.h>

#include "choose.h"
#include "cuda_ops.h"
#include "schemas.h"

namespace vt {
namespace cuda_ops {
namespace {

// What the public op does where tensors are on a CUDA device: these kernels where they take the call.
// Otherwise backend=None leaves the choice to the op in Python that vt_fast/ops/library.py registers.
template <const Op& op, class Result, class... Parameters>
void choose(StableIValue* stack, uint64_t inputs, Result (*function)(Parameters...)) {
  const auto backend = torch::stable::detail::to<std::optional<std::string>>(stack[inputs - 1]);
  if (backend && *backend != "cuda") {
    const std::string message = refusal(backend, "cuda", nullptr);
    if (message.empty()) return hand_over(op, *backend, stack);
    drop(stack, function);
    throw std::invalid_argument(message);
  }
  std::optional<std::string> reason;
  {
    const Choosing choosing(!backend);
    reason = refused(stack, function, backend.has_value());
  }
  if (!reason) return;
  const std::string name = "vt_fast::" + std::string(op.name) + "_next";
  if (torch_call_dispatcher(name.c_str(), "", stack, TORCH_ABI_VERSION) == TORCH_SUCCESS) return;
  throw std::runtime_error(dlsym(RTLD_DEFAULT, "Py_IsInitialized") == nullptr
                               ? *reason + ", and the other backends need Python"
                               : "another backend failed: " + torch_error());
}

template <const Op& op, auto function>
void chosen(StableIValue* stack, uint64_t inputs, uint64_t) {
  choose<op>(stack, inputs, function);
}

}  // namespace
}  // namespace cuda_ops
}  // namespace vt
