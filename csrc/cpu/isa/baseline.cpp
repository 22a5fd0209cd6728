// The kernels for any processor that the compiler targets by default: SSE2 on x86-64, NEON on ARM.
#define VT_BYTES 16
#define VT_NAMESPACE baseline
#include "../kernels.h"

namespace vt {
extern const Kernels kernels_baseline;
const Kernels kernels_baseline = baseline::kernels;
}  // namespace vt
