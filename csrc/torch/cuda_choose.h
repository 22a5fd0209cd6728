// The choice of a backend where tensors are on a CUDA device.
#pragma once

#include "target.h"

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include <dlfcn.h>

#include "choose.h"
#include "cuda_ops.h"
#include "schemas.h"

namespace vt {
namespace cuda_ops {
namespace {

template <class Result>
void put_results(StableIValue* stack, Result&& result) {
  stack[0] = torch::stable::detail::from(std::forward<Result>(result));
}
template <class... Results>
void put_results(StableIValue* stack, std::tuple<Results...>&& results) {
  size_t place = 0;
  std::apply([&](auto&... each) { ((stack[place++] = torch::stable::detail::from(each)), ...); }, results);
}

// An argument for the dispatcher; torch's header has none of std::vector<bool>, which holds no bools.
template <class Argument>
StableIValue argument_of(const Argument& argument) {
  if constexpr (std::is_same_v<Argument, Needs>) {
    StableListHandle list = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(torch_new_list_reserve_size(argument.size(), &list));
    for (const bool each : argument) {
      STABLE_TORCH_ERROR_CODE_CHECK(torch_list_push_back(list, torch::stable::detail::from(each)));
    }
    return torch::stable::detail::from(list);
  } else {
    return torch::stable::detail::from(argument);
  }
}

// What the public op does where tensors are on a CUDA device: these kernels where they take the call.
// Otherwise backend=None leaves the choice to the op in Python that vt_fast/ops/library.py registers.
template <const Op& op, class Result, class... Parameters>
void choose(StableIValue* stack, uint64_t inputs, Result (*function)(Parameters...)) {
  namespace detail = torch::stable::detail;
  const auto backend = detail::to<std::optional<std::string>>(stack[inputs - 1]);
  if (backend && *backend != "cuda") {
    const std::string refused = refusal(backend, "cuda", nullptr);
    if (refused.empty()) return hand_over(op, *backend, stack);
    drop(stack, function);
    throw std::invalid_argument(refused);
  }
  std::tuple<detail::unbox_type_t<Parameters>...> arguments =
      detail::unbox_to_tuple<detail::unbox_type_t<Parameters>...>(stack);
  std::string reason;
  try {
    const Choosing choosing(!backend);
    return put_results(stack, std::apply(function, arguments));
  } catch (const UnsupportedError& error) {
    if (backend) throw;
    reason = error.what();
  }
  size_t place = 0;
  std::apply([&](const auto&... each) { ((stack[place++] = argument_of(each)), ...); }, arguments);
  const std::string name = "vt_fast::" + std::string(op.name) + "_next";
  if (torch_call_dispatcher(name.c_str(), "", stack, TORCH_ABI_VERSION) == TORCH_SUCCESS) return;
  throw std::runtime_error(dlsym(RTLD_DEFAULT, "Py_IsInitialized") == nullptr
                               ? reason + ", and the other backends need Python"
                               : "another backend failed: " + torch_error());
}

template <const Op& op, auto function>
void chosen(StableIValue* stack, uint64_t inputs, uint64_t) {
  choose<op>(stack, inputs, function);
}

}  // namespace
}  // namespace cuda_ops
}  // namespace vt
