// The table of the objects that kernels.h describes, and the settings in use.
#include <atomic>
#include <memory>
#include <vector>

#include "launch.h"
#include "settings.h"

namespace vt {
namespace cuda {

#define VT_FOR_EACH_KERNEL(do, type)                                                            \
  do                                                                                            \
  (tokenize, type) do(project, type) do(project_tokenize, type) do(tokenize_backward, type) do( \
      project_backward, type) do(project_tokenize_backward, type)
#define VT_DECLARE(op, type) const char* run_##op##_##type(const Call&, Layout, const Host&);
VT_FOR_EACH_KERNEL(VT_DECLARE, Fp32)
VT_FOR_EACH_KERNEL(VT_DECLARE, Bf16)
VT_FOR_EACH_KERNEL(VT_DECLARE, Fp16)

const char* const does_not_fit = "the kernel for so many tokens and channels does not fit on this GPU";
const char* const not_compiled = "the library has no code for this GPU; build it with VT_FAST_CUDA_ARCH";

namespace {

// Kept until the process ends: a call on another thread may look at any of them.
std::atomic<const std::vector<Setting>*> in_use{nullptr};

}  // namespace

void use_settings(const Setting* settings, int count) {
  in_use.store(new std::vector<Setting>(settings, settings + count), std::memory_order_release);
}

const Setting* find_setting(Op op, Dtype dtype, Maps maps, int rows, int channels) {
  const std::vector<Setting>* settings = in_use.load(std::memory_order_acquire);
  const Setting* best = nullptr;
  if (settings == nullptr) return best;
  for (const Setting& each : *settings) {
    if (each.op == op && each.dtype == dtype && each.maps == maps && each.rows == rows &&
        each.channels >= channels && each.channels < 2 * channels &&
        (best == nullptr || each.channels < best->channels)) {
      best = &each;
    }
  }
  return best;
}

Run kernels(Op op, Dtype dtype) {
#define VT_CASE(op, type) \
  case Op::op:            \
    return run_##op##_##type;
  if (dtype == Dtype::float32) {
    switch (op) { VT_FOR_EACH_KERNEL(VT_CASE, Fp32) }
  } else if (dtype == Dtype::bfloat16) {
    switch (op) { VT_FOR_EACH_KERNEL(VT_CASE, Bf16) }
  } else if (dtype == Dtype::float16) {
    switch (op) { VT_FOR_EACH_KERNEL(VT_CASE, Fp16) }
  }
  return nullptr;
}

}  // namespace cuda
}  // namespace vt
