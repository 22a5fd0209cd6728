// The table of the objects that kernels.h describes.
#include "launch.h"

namespace vt {
namespace cuda {

#define VT_FOR_EACH_OP(do, type)                                                                          \
  do(tokenize, type) do(project, type) do(project_tokenize, type) do(tokenize_backward, type)             \
      do(project_backward, type) do(project_tokenize_backward, type)
#define VT_DECLARE(op, type) const char* run_##op##_##type(const Call&, Layout, const Host&);
VT_FOR_EACH_OP(VT_DECLARE, Fp32)
VT_FOR_EACH_OP(VT_DECLARE, Bf16)
VT_FOR_EACH_OP(VT_DECLARE, Fp16)

const char* const does_not_fit = "the kernel for so many tokens and channels does not fit on this GPU";

Run kernels(Op op, Dtype dtype) {
#define VT_CASE(op, type) \
  case Op::op:            \
    return run_##op##_##type;
  if (dtype == Dtype::float32) {
    switch (op) { VT_FOR_EACH_OP(VT_CASE, Fp32) }
  } else if (dtype == Dtype::bfloat16) {
    switch (op) { VT_FOR_EACH_OP(VT_CASE, Bf16) }
  } else if (dtype == Dtype::float16) {
    switch (op) { VT_FOR_EACH_OP(VT_CASE, Fp16) }
  }
  return nullptr;
}

}  // namespace cuda
}  // namespace vt
