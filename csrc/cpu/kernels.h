// The entry points of one instruction set: which numbers and which orientation a call is computed in.
// Included once per instruction set, with VT_BYTES (a vector's) and VT_NAMESPACE defined.

#include <type_traits>
#include <utility>

#include "call.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace vt {
namespace VT_NAMESPACE {
namespace {

#include "simd.h"
#include "numbers.h"
#include "products.h"
#include "expand.h"
#include "memory.h"
#include "tiles.h"
#include "operands.h"
#include "softmax.h"
#include "run.h"
#include "tokenize.h"
#include "tokenize_backward.h"
#include "project.h"
#include "project_backward.h"
#include "project_tokenize.h"
#include "project_tokenize_backward.h"

// Products walk along channels or along pixels, whichever lie closer together in memory.
bool pixels_lie_innermost(const Call& call) {
  int64_t distance;
  even_pixels(call.height, call.width, call.x.row, call.x.column, distance);
  if (call.channels == 1) return distance == 1;
  return call.x.channel != 1 && call.height * call.width > 1 && distance <= call.x.channel;
}

#define VT_ENTRY(op)                                                                 \
  template <class N>                                                                 \
  void op##_in(const Call& call, const Host& host) {                                 \
    pixels_lie_innermost(call) ? op<N, true>(call, host) : op<N, false>(call, host); \
  }                                                                                  \
  void op##_entry(const Call& call, const Host& host) {                              \
    if (call.dtype == Dtype::float64) return op##_in<Double>(call, host);            \
    VT_BRAIN(op)                                                                     \
    op##_in<Single>(call, host);                                                     \
  }
#if defined(__AVX512BF16__)
#define VT_BRAIN(op) \
  if (call.dtype == Dtype::bfloat16) return op##_in<Brain>(call, host);
#else
#define VT_BRAIN(op)
#endif

VT_ENTRY(tokenize)
VT_ENTRY(tokenize_backward)
VT_ENTRY(project)
VT_ENTRY(project_backward)
VT_ENTRY(project_tokenize)
VT_ENTRY(project_tokenize_backward)

constexpr Kernels kernels = {tokenize_entry,         tokenize_backward_entry,
                             project_entry,          project_backward_entry,
                             project_tokenize_entry, project_tokenize_backward_entry};

}  // namespace
}  // namespace VT_NAMESPACE
}  // namespace vt
