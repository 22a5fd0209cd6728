// The ops on CUDA devices, on torch's stable ABI: the backend "cuda" as torch.ops.vt_fast.*_cuda, and the
// choice among backends where tensors are on such a device. The library loads where torch has no CUDA, and
// needs no driver until the first call.
#include "cuda_ops.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <stdexcept>

#include <dlfcn.h>

#include "cuda_choose.h"
#include "host.h"
#include "schemas.h"

namespace vt {
namespace cuda_ops {
namespace {

// The current stream. libtorch_cuda has the function; it is looked up at the first call, because a library
// that needs it when it is loaded could not be loaded where torch is without CUDA.
void* current_stream(int device) {
  using Get = AOTITorchError (*)(int32_t, void**);
  static const Get get = [] {
    const char* const name = "aoti_torch_get_current_cuda_stream";
    void* found = dlsym(RTLD_DEFAULT, name);
    if (found == nullptr) {
      if (void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) found = dlsym(library, name);
    }
    return reinterpret_cast<Get>(found);
  }();
  void* stream = nullptr;
  if (get == nullptr || get(device, &stream) != TORCH_SUCCESS) {
    throw std::runtime_error("torch does not say which CUDA stream is the current one");
  }
  return stream;
}

class Guard {
 public:
  explicit Guard(int device) : guard_(device) {}

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

const CudaDevice devices = {aoti_torch_device_type_cuda, cuda::find_device, current_stream,
                            [](int device) -> void* { return new Guard(device); },
                            [](void* guard) { delete static_cast<Guard*>(guard); }};

}  // namespace
}  // namespace cuda_ops
}  // namespace vt

extern "C" {

// For vt_fast/backends/cuda/library.py.
__attribute__((visibility("default"))) void vt_fast_cuda_use_settings(const vt::cuda::Setting* settings,
                                                                      int count) {
  vt::cuda::use_settings(settings, count);
}

}  // extern "C"

STABLE_TORCH_LIBRARY_IMPL(vt_fast, CUDA, library) {
#define VT_IMPLEMENT(op)                                                                \
  library.impl(#op, vt::guarded<vt::cuda_ops::chosen<vt::ops::op, &vt::cuda_ops::op>>); \
  library.impl(#op "_cuda", vt::guarded<TORCH_BOX(&vt::cuda_ops::op)>);
  VT_FOR_EACH_OP(VT_IMPLEMENT)
}
