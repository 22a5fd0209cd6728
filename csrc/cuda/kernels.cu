// The CUDA kernels of one op in one dtype, and how they are launched.
#include <cuda_runtime.h>

#include <atomic>

#include "kernels.h"

namespace vt {
namespace cuda {
namespace {

template <class K>
__global__ void __launch_bounds__(32 * K::kMostWarps, 1) start_kernel(const __grid_constant__ Call call) {
  let_next_start();
  K::run(call);
}

template <class K>
__global__ void __launch_bounds__(K::kThreads) start_small_kernel(const __grid_constant__ Call call) {
  wait_for_kernel_before();
  K::run(call);
}

const char* said(cudaError_t error) {
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction)
    return not_compiled;
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

constexpr int kDevices = 64;

// Code for an older architecture, which the driver compiled for this GPU, knows neither clusters nor early
// launches.
Device with_clusters_of_the_code(Device device) {
  static std::atomic<int> known[kDevices];  // the code's architecture
  std::atomic<int>& memo = known[device.index % kDevices];
  int architecture = memo.load(std::memory_order_relaxed);
  if (architecture == 0) {
    cudaFuncAttributes attributes{};
    const void* kernel = reinterpret_cast<const void*>(&start_small_kernel<SumPixels<VT_TYPE>>);
    if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) return device;  // launching says why
    architecture = attributes.ptxVersion;
    memo.store(architecture, std::memory_order_relaxed);
  }
  if (architecture < 90) device.max_ranks = 1;
  return device;
}

class Launcher {
 public:
  explicit Launcher(const Host& host) : device(with_clusters_of_the_code(host.device)), host_(host) {}

  const Device device;

  // How many clusters of a kernel run at a time.
  template <class K>
  const char* clusters(const Plan& plan, int& count) {
    // For each shape of a launch on each device: asking takes longer than launching.
    static std::atomic<int64_t> known[kDevices];
    const int64_t shape = (static_cast<int64_t>(plan.places.bytes) * 16 + plan.warps) * 16 + plan.ranks;
    std::atomic<int64_t>& memo = known[device.index % kDevices];
    const int64_t found = memo.load(std::memory_order_relaxed);
    if (found >> 20 == shape) {
      count = static_cast<int>(found & 0xfffff);
      return nullptr;
    }
    const void* kernel = reinterpret_cast<const void*>(&start_kernel<K>);
    const char* error =
        said(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_bytes));
    if (error == nullptr && plan.ranks > 8) {
      error = said(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    }
    if (error != nullptr) return error;
    if (plan.ranks == 1) {
      int each = 0;
      error = said(
          cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, 32 * plan.warps, plan.places.bytes));
      count = each * device.processors;
    } else {
      cudaLaunchAttribute attribute;
      const cudaLaunchConfig_t config = configuration(attribute, plan, plan.ranks);
      error = said(cudaOccupancyMaxActiveClusters(&count, kernel, &config));
    }
    if (error != nullptr) return error;
    if (count == 0) return does_not_fit;
    memo.store(shape << 20 | count, std::memory_order_relaxed);
    return nullptr;
  }

  const char* floats(int64_t count, float*& workspace) {
    workspace = host_.allocate(host_.self, count);
    return workspace == nullptr ? "out of memory for workspace" : nullptr;
  }

  template <class K>
  const char* start(const Call& call, const Plan& plan) {
    cudaLaunchAttribute attribute;
    const cudaLaunchConfig_t config = configuration(attribute, plan, call.clusters * plan.ranks);
    return said(cudaLaunchKernelEx(&config, start_kernel<K>, call));
  }

  template <class K>
  const char* start_small(const Call& call, int64_t x, int64_t elements) {
    cudaLaunchConfig_t config{};
    config.gridDim =
        dim3(static_cast<unsigned>(x), static_cast<unsigned>((elements + K::kThreads - 1) / K::kThreads));
    config.blockDim = dim3(K::kThreads);
    config.stream = static_cast<cudaStream_t>(host_.stream);
    // It is launched while the kernel before still runs, and waits for it on the GPU.
    cudaLaunchAttribute early{};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &early;
    config.numAttrs = device.max_ranks > 1 ? 1 : 0;  // from compute capability 9.0 on
    return said(cudaLaunchKernelEx(&config, start_small_kernel<K>, call));
  }

 private:
  cudaLaunchConfig_t configuration(cudaLaunchAttribute& attribute, const Plan& plan, int blocks) const {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(32 * plan.warps);
    config.dynamicSmemBytes = plan.places.bytes;
    config.stream = static_cast<cudaStream_t>(host_.stream);
    if (plan.ranks > 1) {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = plan.ranks;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
      config.attrs = &attribute;
      config.numAttrs = 1;
    }
    return config;
  }

  const Host& host_;
};

}  // namespace
}  // namespace cuda
}  // namespace vt

VT_DEFINE_RUN(Launcher)
