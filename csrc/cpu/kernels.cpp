// The entry points, compiled once for each instruction set.
#include "project.h"
#include "project_tokenize.h"
#include "tokenize.h"

namespace vt::VT_NAMESPACE {
namespace {

// Products walk along channels or along pixels, whichever are closer together in memory.
bool pixels_lie_innermost(const Call& call) {
  int64_t distance;
  even_pixels(call.height, call.width, call.x.row, call.x.column, distance);
  if (call.channels == 1) return distance == 1;
  return call.x.channel != 1 && call.pixels > 1 && distance <= call.x.channel;
}

// bfloat16 is computed as it is where there are dot products for it, otherwise as float.
#if defined(__AVX512BF16__)
#define VT_BFLOAT16(op) \
  if (call.dtype == Dtype::bfloat16) return op##_in<Bfloat16Pairs>(call, host);
#else
#define VT_BFLOAT16(op)
#endif
#define VT_ENTRY(op)                                                                 \
  template <class N>                                                                 \
  void op##_in(const Call& call, const Host& host) {                                 \
    pixels_lie_innermost(call) ? op<N, true>(call, host) : op<N, false>(call, host); \
  }                                                                                  \
  void op##_entry(const Call& call, const Host& host) {                              \
    if (call.dtype == Dtype::float64) return op##_in<Float64>(call, host);           \
    VT_BFLOAT16(op)                                                                  \
    op##_in<Float32>(call, host);                                                    \
  }

VT_ENTRY(tokenize)
VT_ENTRY(tokenize_backward)
VT_ENTRY(project)
VT_ENTRY(project_backward)
VT_ENTRY(project_tokenize)
VT_ENTRY(project_tokenize_backward)

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {tokenize_entry,         tokenize_backward_entry, project_entry,
                         project_backward_entry, project_tokenize_entry,  project_tokenize_backward_entry};

}  // namespace vt::VT_NAMESPACE
