// The chooser of a dispatch key: the backend of a call, by the op's last argument.
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

#include "calls.h"
#include "checks.h"
#include "host.h"
#include "results.h"
#include "schemas.h"

namespace vt {
namespace {

// Another backend's own op takes over the whole call, the references on the stack included. Backends that are
// not in this library need Python. `refused`: why this library does not take the call.
inline void hand_over(const Op& op, const std::string& backend, StableIValue* stack,
                      const std::string& refused = "") {
  const std::string name = "vt_fast::" + std::string(op.name) + "_" + backend;
  if (torch_call_dispatcher(name.c_str(), "", stack, TORCH_ABI_VERSION) == TORCH_SUCCESS) return;
  const bool python = dlsym(RTLD_DEFAULT, "Py_IsInitialized") != nullptr;
  if (!python && !refused.empty()) throw std::runtime_error(refused + ", and the other backends need Python");
  const std::string reason = python ? "failed: " + torch_error() : "needs Python";
  throw std::runtime_error("`backend=\"" + backend + "\"` " + reason);
}

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

// Calls the function of a backend in this library. Where it does not take the call and another backend may,
// returns why, with the arguments on the stack again.
template <class Result, class... Parameters>
std::optional<std::string> refused(StableIValue* stack, Result (*function)(Parameters...), bool named) {
  namespace detail = torch::stable::detail;
  std::tuple<detail::unbox_type_t<Parameters>...> arguments =
      detail::unbox_to_tuple<detail::unbox_type_t<Parameters>...>(stack);
  std::string reason;
  try {
    put_results(stack, std::apply(function, arguments));
    return {};
  } catch (const UnsupportedError& error) {
    if (named) throw;
    reason = error.what();
  }
  size_t place = 0;
  std::apply([&](const auto&... each) { ((stack[place++] = argument_of(each)), ...); }, arguments);
  return reason;
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
// cannot run or does not take a call, backend=None takes "torch", the one other backend that runs on any CPU.
template <const Op& op, const char* (*unavailable)(), const char* own, auto function>
void choose(StableIValue* stack, uint64_t inputs, uint64_t) {
  const auto backend = torch::stable::detail::to<std::optional<std::string>>(stack[inputs - 1]);
  const bool mine = !backend || *backend == own;
  const char* reason = mine ? unavailable() : nullptr;
  if (mine && reason == nullptr) {
    const std::optional<std::string> unsupported = refused(stack, function, backend.has_value());
    if (unsupported) hand_over(op, "torch", stack, *unsupported);
    return;
  }
  const std::string message = refusal(backend, own, reason);
  if (!message.empty()) {
    drop(stack, function);
    throw std::invalid_argument(message);
  }
  hand_over(op, backend.value_or("torch"), stack);
}

}  // namespace
}  // namespace vt
