// Calls of the CUDA kernels on a stream. Neither torch nor CUDA.
#pragma once

#include "call.h"

namespace vt {
namespace cuda {

// Of a GPU.
struct Device {
  int32_t index = 0;
  int32_t processors = 1;
  int32_t shared_bytes = 0;    // that a block may have
  int32_t max_ranks = 1;       // blocks of a cluster
  bool always_splits = false;  // samples among clusters, even if that costs time: for tests
};

// Memory and the stream for a call, provided by the caller.
struct Host {
  Device device;
  void* self = nullptr;
  // Workspace, until the call has been made. Called at most once.
  float* (*allocate)(void* self, int64_t floats) = nullptr;
  void* stream = nullptr;  // a cudaStream_t
};

// Runs the kernels of an op in a dtype. Returns null, or what is wrong, in static storage.
using Run = const char* (*)(const Call&, Layout, const Host&);

Run kernels(Op op, Dtype dtype);

// The errors for a kernel that does not fit on the device, and for one that was not compiled for it.
extern const char* const does_not_fit;
extern const char* const not_compiled;

// Facts about a GPU; asked for once for each.
const char* find_device(int index, Device& device);

}  // namespace cuda
}  // namespace vt
