// Memory and threads for the kernels, from torch; and the kernels' exceptions, as torch's errors.
#pragma once

#include "target.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>

#include "../cpu/call.h"

namespace vt {

// Whether results and workspaces start as NaN, so that tests notice what a kernel does not write.
inline bool poison = false;

namespace {

// The kernels' host. Memory comes from torch's allocator, so that torch's memory statistics include it.
class TorchHost {
 public:
  Host host() { return {this, allocate, static_cast<int64_t>(torch::stable::get_num_threads()), parallel}; }

 private:
  static constexpr size_t alignment = 64;

  static void* allocate(void* self, size_t bytes) {
    // torch aligns to 64 bytes, but its allocator can be replaced.
    const int64_t size = static_cast<int64_t>(bytes + alignment - 1), stride = 1;
    AtenTensorHandle handle = nullptr;
    if (aoti_torch_empty_strided(1, &size, &stride, aoti_torch_dtype_uint8(), aoti_torch_device_type_cpu(), 0,
                                 &handle) != TORCH_SUCCESS) {
      throw std::runtime_error("out of memory: a kernel needs " + std::to_string(bytes) +
                               " bytes of workspace");
    }
    std::optional<torch::stable::Tensor>& memory = static_cast<TorchHost*>(self)->memory_;
    memory.emplace(handle);
    const auto address = reinterpret_cast<uintptr_t>(memory->mutable_data_ptr());
    const auto begin = reinterpret_cast<void*>((address + alignment - 1) / alignment * alignment);
    if (poison) std::memset(begin, 0xFF, bytes);  // NaN in every dtype
    return begin;
  }

  static void parallel(void*, int64_t count, void (*body)(void*, int64_t), void* argument) {
    torch::stable::parallel_for(0, count, 1, [body, argument](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) body(argument, index);
    });
  }

  std::optional<torch::stable::Tensor> memory_;
};

using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);

thread_local char failure[1024];

// Keeps the message of an error, cut where it is too long, but not within a character of UTF-8.
void keep(const char* message) noexcept {
  const size_t length = std::strlen(message);
  size_t kept = length < sizeof(failure) ? length : sizeof(failure) - 1;
  if (kept < length) {
    while (kept > 0 && (static_cast<unsigned char>(message[kept]) & 0xC0) == 0x80) --kept;
  }
  std::memcpy(failure, message, kept);
  failure[kept] = '\0';
}

// Not inlined, so that `guarded` itself contains no exception handler.
template <Boxed op>
__attribute__((noinline)) bool succeeds(StableIValue* stack, uint64_t inputs, uint64_t outputs) noexcept {
  try {
    op(stack, inputs, outputs);
    return true;
  } catch (const std::exception& error) {
    keep(error.what());
  } catch (...) {
    keep("an exception of an unknown type");
  }
  return false;
}

// What torch calls. torch cannot catch exceptions of another C++ library, and `zig c++` links its own into
// this one, so torch itself is asked to throw.
template <Boxed op>
void guarded(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
  if (!succeeds<op>(stack, inputs, outputs)) {
    aoti_torch_check(false, "vt_fast_cpu", __FILE__, __LINE__, failure);
  }
}

}  // namespace
}  // namespace vt
