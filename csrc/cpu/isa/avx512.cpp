// The kernels for AVX-512 F, BW, VL, DQ.
#define VT_BYTES 64
#define VT_NAMESPACE avx512
#include "../kernels.h"

namespace vt {
extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = avx512::kernels;
}  // namespace vt
