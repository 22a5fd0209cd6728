// Allocates results, by the rules of torch's own ops.
#pragma once

#include "target.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <dlfcn.h>
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "host.h"

namespace vt {
namespace {

using torch::stable::Tensor;

// torch's number of a tensor's dtype.
int32_t dtype_code(const Tensor& tensor) {
  int32_t code = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  return code;
}

// The dtype of sums, of lse and of unrounded tokens.
int32_t compute_dtype(int32_t code) {
  return code == aoti_torch_dtype_float64() ? code : aoti_torch_dtype_float32();
}

using Sizes = std::vector<int64_t>;

// Where a tensor is.
struct DeviceId {
  int32_t type = aoti_torch_device_type_cpu(), index = 0;
};

DeviceId device_of(const Tensor& tensor) {
  DeviceId device;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device.type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &device.index));
  return device;
}

// Why the last call of torch failed. torch can say so from 2.13 on; before, it prints it.
std::string torch_error() {
  using What = const char* (*)();
  const auto what = reinterpret_cast<What>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  return what == nullptr ? "see the error above" : what();
}

// Asks for large pages, as NumPy does from this size on. New memory is otherwise given out 4 KB at a time
// when it is first written, and a large map is written in less time than that takes.
constexpr int64_t kLargeBytes = 4 << 20;

void expect_writes([[maybe_unused]] const Tensor& result) {
#ifdef __linux__
  int64_t bytes = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(result.get(), &bytes));
  if (bytes < kLargeBytes) return;
  static const uintptr_t page = sysconf(_SC_PAGESIZE);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(result.mutable_data_ptr());
  const uintptr_t first = (begin + page - 1) / page * page, end = (begin + bytes) / page * page;
  madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);  // a hint, which may be declined
#endif
}

Tensor empty_strided(const Sizes& sizes, const Sizes& strides, int32_t dtype, DeviceId device) {
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                               device.type, device.index, &handle) != TORCH_SUCCESS) {
    // vt_fast/ops/library.py makes torch.OutOfMemoryError of it where torch says so.
    throw std::runtime_error("a tensor cannot be allocated: " + torch_error());
  }
  Tensor result(handle);
  if (device.type == aoti_torch_device_type_cpu()) expect_writes(result);
  return poison ? torch::stable::fill_(result, std::numeric_limits<double>::quiet_NaN()) : result;
}

Tensor empty(const Sizes& sizes, int32_t dtype, DeviceId device) {
  Sizes strides(sizes.size());
  int64_t stride = 1;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    strides[dim] = stride;
    stride *= std::max<int64_t>(sizes[dim], 1);
  }
  return empty_strided(sizes, strides, dtype, device);
}

// Stands for a result that is not wanted: torch.jit.trace rejects optional results.
Tensor nothing(int32_t dtype, DeviceId device) { return empty({0}, dtype, device); }

Sizes sizes_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }

// A dense copy in another dtype.
Tensor converted(const Tensor& tensor, int32_t dtype) {
  Tensor result = empty(sizes_of(tensor), dtype, device_of(tensor));
  torch::stable::copy_(result, tensor);
  return result;
}

Tensor in_dtype(const Tensor& tensor, int32_t dtype) {
  return dtype_code(tensor) == dtype ? tensor : converted(tensor, dtype);
}

Tensor dense_in_dtype(const Tensor& tensor, int32_t dtype) {
  return dtype_code(tensor) == dtype && tensor.is_contiguous() ? tensor : converted(tensor, dtype);
}

// Dense strides in the order of the given ones, as torch's infer_dense_strides has them: a stride of 0 says
// nothing about the order, and of equal strides that of the smaller dimension comes first.
Sizes dense_strides(const Sizes& sizes, const Sizes& strides) {
  const auto after = [&](int64_t one, int64_t other) {
    if (strides[one] == 0 || strides[other] == 0) return 0;
    if (strides[one] != strides[other]) return strides[one] < strides[other] ? -1 : 1;
    return sizes[one] > sizes[other] ? 1 : 0;
  };
  const auto count = static_cast<int64_t>(sizes.size());
  Sizes order(count);  // of the dimensions, the innermost first
  for (int64_t index = 0; index < count; ++index) order[index] = count - 1 - index;
  for (int64_t index = 1; index < count; ++index) {
    for (int64_t place = index, before = index - 1; before >= 0; --before) {
      const int comparison = after(order[before], order[place]);
      if (comparison < 0) break;
      if (comparison == 0) continue;
      std::swap(order[before], order[place]);
      place = before;
    }
  }
  Sizes result(count);
  int64_t stride = 1;
  for (const int64_t dim : order) {
    result[dim] = stride;
    if (sizes[dim] > 1) stride *= sizes[dim];
  }
  return result;
}

// An uninitialised map like x with `channels` channels, strided as torch.empty_like(x) would be: as x is if
// its elements are dense.
Tensor empty_map_like(const Tensor& x, int64_t channels) {
  Sizes sizes = sizes_of(x);
  const size_t channel_dim = sizes.size() == 3 ? 2 : 1;
  bool dense = sizes[channel_dim] == channels;
  sizes[channel_dim] = channels;
  const Sizes strides(x.strides().begin(), x.strides().end());
  // torch keeps any strides of an empty tensor, and gives one of another size contiguous ones.
  if (sizes[0] == 0)
    return dense ? empty_strided(sizes, strides, dtype_code(x), device_of(x))
                 : empty(sizes, dtype_code(x), device_of(x));
  const Sizes inferred = dense_strides(sizes, strides);
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    dense = dense && (sizes[dim] <= 1 || strides[dim] == inferred[dim]);
  }
  return empty_strided(sizes, dense ? strides : inferred, dtype_code(x), device_of(x));
}

// Memory for the gradient of a map, if it is needed and there is one.
std::optional<Tensor> map_like(const std::optional<Tensor>& map, bool needed) {
  if (!needed || !map) return {};
  return empty_map_like(*map, map->size(map->dim() == 3 ? 2 : 1));
}

// What Python sees as None.
Tensor or_undefined(const std::optional<Tensor>& value) { return value ? *value : Tensor(); }

}  // namespace
}  // namespace vt
