// torch.ops.vt_fast_emulated.*: the ops as on a CUDA device, from the same sources, with kernels on the
// emulator.
#include "torch/cuda_choose.h"

#include <torch/csrc/stable/library.h>

#include "emulated.h"
#include "torch/host.h"
#include "torch/schemas.h"

namespace vt {

namespace cuda {

const char* find_device(int index, Device& device) {
  device = {index, 4, emulated::conditions.shared_bytes, emulated::conditions.max_ranks,
            emulated::conditions.split != 0};
  return nullptr;
}

}  // namespace cuda

namespace cuda_ops {
namespace {

const CudaDevice devices = {aoti_torch_device_type_cpu, cuda::find_device,
                            [](int) -> void* { return nullptr; }, [](int) -> void* { return nullptr; },
                            [](void*) {}};

void poison_results(bool on) { poison = on; }

}  // namespace
}  // namespace cuda_ops
}  // namespace vt

extern "C" {

__attribute__((visibility("default"))) void set_conditions(const vt::emulated::Conditions* conditions) {
  vt::emulated::conditions = *conditions;
}
__attribute__((visibility("default"))) void last_report(vt::emulated::Report* report) {
  *report = vt::emulated::report;
}

__attribute__((visibility("default"))) void vt_fast_cuda_use_settings(const vt::cuda::Setting* settings,
                                                                      int count) {
  vt::cuda::use_settings(settings, count);
}

// What decides about a call's kernel.
struct Sizes {
  int32_t op, dtype, layout;
  int32_t channels, out_channels, keys, queries, extra_columns;
  int32_t has_residual, has_grad_map;
};

// Whether a call of such sizes has a kernel on a GPU as in `conditions`; then `report` is about its plan.
__attribute__((visibility("default"))) int planned(const Sizes* sizes,
                                                   const vt::emulated::Conditions* conditions,
                                                   vt::emulated::Report* report) {
  namespace cuda = vt::cuda;
  static char somewhere[2];
  cuda::Call call;
  call.batch = call.pixels = 1;
  call.channels = sizes->channels, call.out_channels = sizes->out_channels;
  call.keys_count = sizes->keys, call.queries_count = sizes->queries,
  call.extra_columns = sizes->extra_columns;
  call.residual.data = sizes->has_residual ? &somewhere[0] : nullptr;
  call.grad_map.data = sizes->has_grad_map ? &somewhere[1] : nullptr;
  cuda::Host host;
  host.device = {0, 1, conditions->shared_bytes, conditions->max_ranks};
  const vt::emulated::Conditions before = vt::emulated::conditions;
  vt::emulated::conditions.dry = 1;
  const char* found = cuda::kernels(static_cast<cuda::Op>(sizes->op), static_cast<cuda::Dtype>(sizes->dtype))(
      call, static_cast<vt::Layout>(sizes->layout), host);
  vt::emulated::conditions = before;
  *report = vt::emulated::report;
  return found == vt::emulated::only_planned;
}

}  // extern "C"

STABLE_TORCH_LIBRARY(vt_fast_emulated, library) {
#define VT_DEFINE(op)                                                                                      \
  library.def(                                                                                             \
      (std::string(vt::ops::op.name) + "(" + vt::ops::op.arguments + ") -> (" + vt::ops::op.results + ")") \
          .c_str());
  VT_FOR_EACH_OP(VT_DEFINE)
#define VT_DEFINE_PUBLIC(op)                                                        \
  library.def((std::string(vt::ops::op.name) + "_public(" + vt::ops::op.arguments + \
               ", *, str? backend=None) -> (" + vt::ops::op.results + ")")          \
                  .c_str());
  VT_FOR_EACH_OP(VT_DEFINE_PUBLIC)
  library.def("poison_results(bool on) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(vt_fast_emulated, CPU, library) {
#define VT_IMPLEMENT(op)                                        \
  library.impl(#op, vt::guarded<TORCH_BOX(&vt::cuda_ops::op)>); \
  library.impl(#op "_public", vt::guarded<vt::cuda_ops::chosen<vt::ops::op, &vt::cuda_ops::op>>);
  VT_FOR_EACH_OP(VT_IMPLEMENT)
}

// Tensors on a CPU beside these are as such beside a GPU's.
STABLE_TORCH_LIBRARY_IMPL(vt_fast_emulated, Meta, library) {
#define VT_IMPLEMENT_MIXED(op) library.impl(#op, vt::guarded<TORCH_BOX(&vt::cuda_ops::op)>);
  VT_FOR_EACH_OP(VT_IMPLEMENT_MIXED)
}

STABLE_TORCH_LIBRARY_IMPL(vt_fast_emulated, CompositeExplicitAutograd, library) {
  library.impl("poison_results", TORCH_BOX(&vt::cuda_ops::poison_results));
}
