// The kernels for AVX-512 with the dot products of bfloat16.
#define VT_BYTES 64
#define VT_NAMESPACE avx512_bf16
#include "../kernels.h"

namespace vt {
extern const Kernels kernels_avx512_bf16;
const Kernels kernels_avx512_bf16 = avx512_bf16::kernels;
}  // namespace vt
