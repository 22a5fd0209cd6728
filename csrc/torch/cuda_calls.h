// Calls of the CUDA kernels: from an op's arguments, described as for the CPU kernels, to what they take.
#pragma once

#include "target.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/launch.h"
#include "../cuda/settings.h"
#include "calls.h"
#include "checks.h"
#include "results.h"

namespace vt {
namespace {

// What calls run on: torch's number of the type, facts about a device, its current stream, and how it becomes
// the current device.
struct CudaDevice {
  int32_t (*type)();
  const char* (*find)(int index, cuda::Device& device);
  void* (*stream)(int index);
  void* (*enter)(int index);
  void (*leave)(void* guard);
};

// ---- which calls ----

constexpr int64_t most_rows = 64, most_channels = 2048, most_extra_columns = 64;

cuda::Dtype cuda_dtype(Dtype dtype) {
  return dtype == Dtype::bfloat16  ? cuda::Dtype::bfloat16
         : dtype == Dtype::float16 ? cuda::Dtype::float16
                                   : cuda::Dtype::float32;
}

int64_t numbers_in_16_bytes(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 8; }

// Why no kernel does such a call on any device, or null.
const char* refusal_anywhere(cuda::Op op, const Call& call) {
  const bool tokenizes = op != cuda::Op::project && op != cuda::Op::project_backward;
  const bool projects = op != cuda::Op::tokenize && op != cuda::Op::tokenize_backward;
  const int64_t each = numbers_in_16_bytes(call.dtype);
  if (call.dtype == Dtype::float64) return "it computes in float32, bfloat16 and float16, not in float64";
  if (call.channels > most_channels || call.out_channels > most_channels)
    return "it takes at most 2048 channels";
  if (tokenizes && call.queries_per_head > most_rows) return "it takes at most 64 queries for each head";
  if (projects && call.key_rows > most_rows) return "it takes at most 64 num_heads * tokens";
  if (call.extra_columns > most_extra_columns) return "it takes at most 64 columns of extra_values";
  const int64_t heads = projects ? call.num_heads : call.query_heads;
  const int64_t blocks = projects ? call.value_blocks : call.query_heads;
  if ((call.channels / call.key_blocks) % each != 0 || (call.out_channels / blocks) % each != 0) {
    return call.dtype == Dtype::float32 ? "the channels of a head must be a multiple of 4"
                                        : "the channels of a head must be a multiple of 8";
  }
  if (call.pixels > INT32_MAX - 64 || call.batch * heads > INT32_MAX / 2)
    return "it takes fewer than 2^31 - 64 pixels, and fewer than 2^30 for samples times num_heads";
  return nullptr;
}

// Whether the calls on this thread come with backend=None.
thread_local bool is_choice = false;

class Choosing {
 public:
  explicit Choosing(bool choice) : before_(is_choice) { is_choice = choice; }
  ~Choosing() { is_choice = before_; }
  Choosing(const Choosing&) = delete;
  Choosing& operator=(const Choosing&) = delete;

 private:
  bool before_;
};

// ---- operands ----

bool aligned(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }

// A dense copy, or the tensor itself if it is dense and its address a multiple of 16.
Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() && aligned(tensor) ? tensor : converted(tensor, dtype_code(tensor));
}

Optional dense(const Optional& tensor) { return tensor ? Optional(dense(*tensor)) : Optional(); }

cuda::Rows cuda_rows(const Tensor& dense_rows) {
  const bool shared = dense_rows.dim() == 2;
  return {read(dense_rows), shared ? 0 : dense_rows.size(1) * dense_rows.size(2)};
}

cuda::Biases cuda_biases(const Optional& dense_biases, bool shared) {
  if (!dense_biases) return {};
  const bool is_float = dtype_code(*dense_biases) == aoti_torch_dtype_float32();
  return {read(*dense_biases), shared ? 0 : dense_biases->numel() / dense_biases->size(0), is_float};
}

// ---- maps ----

// How a call's maps lie.
struct MapLayout {
  Layout layout;
  int64_t pixels, each;  // numbers in 16 bytes

  static MapLayout of(const Tensor& x, const Call& call) {
    const Map map = map_of(x, nullptr);
    const bool last =
        call.channels == 1 || (map.channel <= map.column && call.pixels > 1) || map.channel == 1;
    const Layout planes =
        call.dtype == Dtype::float32 || call.pixels % 4 != 0 ? Layout::shifted : Layout::first;
    return {last ? Layout::last : planes, call.pixels, numbers_in_16_bytes(call.dtype)};
  }

  // The map as the kernels take it, or nothing if it lies in another way.
  std::optional<cuda::Map> fits(const Tensor& tensor) const {
    const Map map = map_of(tensor, const_cast<void*>(tensor.const_data_ptr()));
    const auto sizes = tensor.sizes();
    const bool flat = sizes.size() == 3;
    const int64_t batch = sizes[0], height = flat ? 1 : sizes[2], width = flat ? sizes[1] : sizes[3];
    const int64_t channels = sizes[flat ? 2 : 1];
    if (!aligned(tensor) || (batch > 1 && map.batch % each != 0)) return {};
    if (layout == Layout::last) {
      const int64_t row = width > 1 ? map.column : height > 1 ? map.row : channels;
      const bool even = height == 1 || width == 1 || map.row == width * map.column;
      if ((channels > 1 && map.channel != 1) || !even || row % each != 0 || row < channels) return {};
      return cuda::Map{map.data, map.batch, row};
    }
    const bool even = (width == 1 || map.column == 1) && (height == 1 || map.row == width);
    // Rows aligned to 16 bytes are copied in such pieces, which must not reach behind their pixels.
    const bool whole = map.channel % 8 != 0 ? map.channel % 4 == 0 : pixels % 8 == 0;
    const bool close = layout == Layout::first ? whole && map.channel >= pixels : map.channel == pixels;
    if (!even || !(channels == 1 || close)) return {};
    return cuda::Map{map.data, map.batch, channels == 1 ? pixels : map.channel};
  }

  // Strides of a dense map of that layout.
  Sizes strides(const Sizes& sizes) const {
    const bool flat = sizes.size() == 3;
    const int64_t channels = sizes[flat ? 2 : 1];
    const int64_t pixel = layout == Layout::last ? channels : 1,
                  channel = layout == Layout::last ? 1 : pixels;
    if (flat) return {channels * pixels, pixel, channel};
    return {channels * pixels, channel, sizes[3] * pixel, pixel};
  }

  // The map as the kernels get it: itself, or a dense copy, which has no address yet.
  cuda::Map as_kernels_get(const Tensor& tensor) const {
    if (const auto found = fits(tensor)) return *found;
    const int64_t channels = tensor.size(tensor.dim() == 3 ? 2 : 1);
    return {nullptr, channels * pixels, layout == Layout::last ? channels : pixels};
  }

  Tensor empty(const Tensor& like) const {
    const Sizes sizes = sizes_of(like);
    return empty_strided(sizes, strides(sizes), dtype_code(like), device_of(like));
  }
};

// A map that is read: itself, or a dense copy.
class Input {
 public:
  Input(const Optional& tensor, const MapLayout& layout) {
    if (!tensor) return;
    if (const auto found = layout.fits(*tensor)) {
      map_ = *found;
      return;
    }
    copy_ = layout.empty(*tensor);
    torch::stable::copy_(*copy_, *tensor);
    map_ = *layout.fits(*copy_);
  }
  const cuda::Map& map() const { return map_; }

 private:
  Optional copy_;
  cuda::Map map_;
};

// A map that is written, perhaps by way of a dense one.
class Output {
 public:
  Output(const Optional& tensor, const MapLayout& layout) : tensor_(tensor) {
    if (!tensor) return;
    if (const auto found = layout.fits(*tensor)) {
      map_ = *found;
      return;
    }
    copy_ = layout.empty(*tensor);
    map_ = *layout.fits(*copy_);
  }
  const cuda::Map& map() const { return map_; }
  void finish() {
    if (copy_) torch::stable::copy_(*tensor_, *copy_);
  }

 private:
  Optional tensor_, copy_;
  cuda::Map map_;
};

// ---- calls ----

cuda::Call sizes_of_call(const Call& call) {
  cuda::Call sizes;
  sizes.batch = static_cast<int32_t>(call.batch);
  sizes.pixels = static_cast<int32_t>(call.pixels);
  const bool tokenize = call.key_rows == 0;
  sizes.query_heads = static_cast<int32_t>(call.query_heads);
  sizes.channels = static_cast<int32_t>(tokenize ? call.channels / call.query_heads : call.channels);
  sizes.out_channels = static_cast<int32_t>(tokenize ? call.channels / call.query_heads : call.out_channels);
  sizes.queries_count = static_cast<int32_t>(call.queries_per_head);
  sizes.num_heads = static_cast<int32_t>(call.num_heads);
  sizes.keys_count = static_cast<int32_t>(call.key_rows);
  sizes.key_blocks = static_cast<int32_t>(call.key_blocks);
  sizes.value_blocks = static_cast<int32_t>(call.value_blocks);
  const auto weights_of = [](Normalize normalize) {
    return normalize == Normalize::exp    ? cuda::Weights::exp
           : normalize == Normalize::none ? cuda::Weights::logits
                                          : cuda::Weights::softmax;
  };
  sizes.weights = weights_of(call.spreading);
  if (call.pooling != Normalize::pixels) {
    sizes.plain_sums = 1;
    sizes.weights = weights_of(call.pooling);
    sizes.keys_count = sizes.queries_count;
    sizes.num_heads = static_cast<int32_t>(call.queries_per_head / call.softmax_rows);
  }
  sizes.extra_columns = static_cast<int32_t>(call.extra_columns);
  sizes.residual_is_input = call.residual_is_input;
  return sizes;
}

// Throws UnsupportedError for calls that no kernel supports or, with backend=None, that a setting gives to
// another backend. Called before results and copies are allocated; whether shared memory suffices is known
// only in `run`.
void check_taken(cuda::Op op, const Call& call, const Tensor& x) {
  if (const char* reason = refusal_anywhere(op, call)) throw UnsupportedError("cuda", reason);
  if (!is_choice || call.batch == 0) return;
  const MapLayout layout = MapLayout::of(x, call);
  const cuda::Call sizes = sizes_of_call(call);
  const cuda::Setting* setting =
      cuda::find_setting(op, cuda_dtype(call.dtype), cuda::maps_like(layout.layout, layout.as_kernels_get(x)),
                         cuda::room_for_rows(sizes), std::max(sizes.channels, sizes.out_channels));
  if (setting != nullptr && setting->other != 0) throw UnsupportedError("cuda", "another backend is faster");
}

struct Workspace {
  DeviceId device;
  std::optional<Tensor> memory;

  static float* allocate(void* self, int64_t floats) {
    auto* workspace = static_cast<Workspace*>(self);
    workspace->memory = empty({floats}, aoti_torch_dtype_float32(), workspace->device);
    return static_cast<float*>(workspace->memory->mutable_data_ptr());
  }
};

void run(const CudaDevice& devices, cuda::Op op, Dtype dtype, const cuda::Call& call, Layout layout,
         const Tensor& x) {
  Workspace workspace{device_of(x), {}};
  const std::unique_ptr<void, void (*)(void*)> guard(devices.enter(workspace.device.index), devices.leave);
  cuda::Host host;
  const char* error = devices.find(workspace.device.index, host.device);
  if (error == nullptr) {
    host.self = &workspace;
    host.allocate = Workspace::allocate;
    host.stream = devices.stream(workspace.device.index);
    error = cuda::kernels(op, cuda_dtype(dtype))(call, layout, host);
    if (error == cuda::does_not_fit || error == cuda::not_compiled) throw UnsupportedError("cuda", error);
  }
  if (error != nullptr) throw std::runtime_error(std::string("a CUDA kernel failed: ") + error);
}

}  // namespace
}  // namespace vt
