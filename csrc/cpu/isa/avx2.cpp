// The kernels for AVX2 with FMA and F16C.
#define VT_BYTES 32
#define VT_NAMESPACE avx2
#include "../kernels.h"

namespace vt {
extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = avx2::kernels;
}  // namespace vt
