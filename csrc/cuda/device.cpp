// Facts about GPUs.
#include <cuda_runtime.h>

#include <mutex>

#include "launch.h"

namespace vt {
namespace cuda {

const char* find_device(int index, Device& device) {
  constexpr int most = 64;
  static std::once_flag once[most];
  static Device known[most];
  static const char* wrong[most];
  if (index < 0 || index >= most) return "more devices than this library knows";
  std::call_once(once[index], [index] {
    int processors = 0, shared = 0, major = 0;
    cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index);
    if (error == cudaSuccess)
      error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
    if (error == cudaSuccess)
      error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
    if (error != cudaSuccess) wrong[index] = cudaGetErrorString(error);
    // Any GPU with clusters has those of 8 blocks; data-centre GPUs have those of 16.
    known[index] = {index, processors, shared, major < 9 ? 1 : major <= 10 ? 16 : 8};
  });
  device = known[index];
  return wrong[index];
}

}  // namespace cuda
}  // namespace vt
