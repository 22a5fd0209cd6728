// From tensors to a kernel's arguments. Shapes and devices are not checked here.
#pragma once

#include "target.h"

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../cpu/call.h"

namespace vt {
namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// Arguments and results of ops.
using One = Tensor;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Eight = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Text = std::optional<std::string>;
using Real = std::optional<double>;
using Needs = std::vector<bool>;

Dtype dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case torch::headeronly::ScalarType::Float:
      return Dtype::float32;
    case torch::headeronly::ScalarType::Double:
      return Dtype::float64;
    case torch::headeronly::ScalarType::BFloat16:
      return Dtype::bfloat16;
    case torch::headeronly::ScalarType::Half:
      return Dtype::float16;
    default:
      throw std::invalid_argument("`" + std::string(name) +
                                  "` must be float16, bfloat16, float32 or float64");
  }
}

// Kernels do not write to operands; Call has one kind of pointer for operands and results.
void* read(const Tensor& tensor) {
  const void* data = tensor.const_data_ptr();
  if (data == nullptr && tensor.numel() > 0) throw std::invalid_argument("a tensor has lost its memory");
  return const_cast<void*>(data);
}

// (B, N, C), which is one row of N pixels, (B, C, H, W), or bags (total, C).
Map map_of(const Tensor& map, void* data) {
  const auto strides = map.strides();
  if (strides.size() == 2) return {data, 0, 0, strides[0], strides[1]};
  if (strides.size() == 3) return {data, strides[0], 0, strides[1], strides[2]};
  return {data, strides[0], strides[2], strides[3], strides[1]};
}

Map operand(const Tensor& map) { return map_of(map, read(map)); }

int64_t row_count(const Tensor& value) { return value.size(value.dim() - 2); }

int64_t column_count(const Tensor& value) { return value.size(value.dim() - 1); }

Call call_on(const Tensor& x, const Optional& offsets = {}) {
  Call call;
  call.dtype = dtype_of(x, "x");
  const auto sizes = x.sizes();
  if (offsets) {
    call.batch = offsets->size(0) - 1;
    call.height = 1;
    call.width = call.pixels = sizes[0];
    call.channels = call.out_channels = sizes[1];
    call.x = operand(x);
    call.offsets = read(*offsets);
    call.offsets_stride = offsets->stride(0);
    call.offsets_are_wide = offsets->scalar_type() == torch::headeronly::ScalarType::Long;
    return call;
  }
  const bool flat = sizes.size() == 3;
  call.batch = sizes[0];
  call.height = flat ? 1 : sizes[2];
  call.width = flat ? sizes[1] : sizes[3];
  if (__builtin_mul_overflow(call.height, call.width, &call.pixels)) {
    throw std::invalid_argument("`x` has too many pixels");
  }
  call.channels = flat ? sizes[2] : sizes[1];
  call.out_channels = call.channels;
  call.x = operand(x);
  return call;
}

// R of rows and of scores, which are (B, R, ...), or (R, total) of bags.
int64_t row_count(const Optional& rows, const Optional& scores, const Optional& offsets) {
  return rows ? row_count(*rows) : scores->size(offsets ? 0 : 1);
}

// Blocks of a map's channels that rows see: one for each head where they are narrower than the map, else 1.
// The rule of sees_block in vt_fast/backends/contract.py.
int64_t blocks_seen(const Optional& rows, int64_t channels, int64_t num_heads) {
  return rows && column_count(*rows) != channels ? num_heads : 1;
}

void add_project_sizes(Call& call, const Optional& keys, const Tensor& values, bool residual_is_input,
                       int64_t num_heads, int64_t rows) {
  call.num_heads = num_heads;
  call.key_rows = rows;
  call.keys_per_head = call.key_rows / num_heads;
  call.key_blocks = blocks_seen(keys, call.channels, num_heads);
  call.value_blocks = call.key_rows / row_count(values);
  call.out_channels = column_count(values);
  call.residual_is_input = residual_is_input;
}

// `query_heads`: blocks of channels that queries see.
void add_tokenize_sizes(Call& call, int64_t rows, const Optional& extra_values, int64_t query_heads) {
  call.query_heads = query_heads;
  call.queries_per_head = rows / query_heads;
  if (extra_values) call.extra_columns = column_count(*extra_values);
}

Normalize normalize_of(const Text& text) {
  if (!text) return Normalize::none;
  if (*text == "pixels") return Normalize::pixels;
  return *text == "tokens" ? Normalize::tokens : Normalize::exp;
}

}  // namespace
}  // namespace vt
