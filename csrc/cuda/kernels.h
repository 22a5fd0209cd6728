// The kernels of one op in one dtype, on a launcher: what nvcc compiles once for each.
#pragma once

#include "launch.h"
#include "plan.h"

namespace vt {
namespace cuda {

using Fp32 = float;

template <class T, Op OP>
bool fits(const Call& call, Layout layout, const Device& device) {
  return with_kernel<T, OP>(call, layout, device, [](auto, const Plan&) {});
}

template <class T, Op OP, class Launcher>
const char* run(const Call& call, Layout layout, const Host& host) {
  Launcher launcher{host};
  return execute<T, OP>(call, layout, launcher);
}

}  // namespace cuda
}  // namespace vt

// The object that is compiled with VT_OP and VT_TYPE defines kernels_<op>_<type>.
#define VT_NAME_OF(op, type) kernels_##op##_##type
#define VT_NAME(op, type) VT_NAME_OF(op, type)
#define VT_DEFINE_KERNELS(Launcher)                                                                       \
  namespace vt {                                                                                          \
  namespace cuda {                                                                                        \
  Kernels VT_NAME(VT_OP, VT_TYPE)() { return {run<VT_TYPE, Op::VT_OP, Launcher>, fits<VT_TYPE, Op::VT_OP>}; } \
  }                                                                                                       \
  }
