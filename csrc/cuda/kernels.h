// The kernels of one op in one dtype, on a launcher: what nvcc compiles once for each.
#pragma once

#include "launch.h"
#include "plan.h"

namespace vt {
namespace cuda {

using Fp32 = float;

}  // namespace cuda
}  // namespace vt

// Defines run_<op>_<type>, with VT_OP and VT_TYPE.
#define VT_NAME_OF(op, type) run_##op##_##type
#define VT_NAME(op, type) VT_NAME_OF(op, type)
#define VT_DEFINE_RUN(Launcher)                                                            \
  namespace vt {                                                                           \
  namespace cuda {                                                                         \
  const char* VT_NAME(VT_OP, VT_TYPE)(const Call& call, Layout layout, const Host& host) { \
    Launcher launcher(host);                                                               \
    return execute<VT_TYPE, Op::VT_OP>(call, layout, launcher);                            \
  }                                                                                        \
  }                                                                                        \
  }
