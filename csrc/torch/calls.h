// From tensors to a kernel's arguments. Shapes and devices are not checked here.
#pragma once

#include "target.h"

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "../cpu/call.h"

namespace vt {
namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

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

// Of a bias: x's dtype, or the one that x is summed in.
Dtype bias_dtype(const Optional& bias, Dtype x, const char* name) {
  const Dtype sums = x == Dtype::float64 ? Dtype::float64 : Dtype::float32;
  if (!bias) return sums;
  const Dtype dtype = dtype_of(*bias, name);
  if (dtype != x && dtype != sums) {
    throw std::invalid_argument("`" + std::string(name) + "` must have the dtype of `x`, or " +
                                (sums == Dtype::float64 ? "float64" : "float32"));
  }
  return dtype;
}

// Kernels do not write to operands; Call has one kind of pointer for operands and results.
void* read(const Tensor& tensor) {
  const void* data = tensor.const_data_ptr();
  if (data == nullptr && tensor.numel() > 0) throw std::invalid_argument("a tensor has lost its memory");
  return const_cast<void*>(data);
}

void* write(const Tensor& tensor) { return tensor.mutable_data_ptr(); }

void* write(const Optional& tensor) { return tensor ? tensor->mutable_data_ptr() : nullptr; }

// (B, N, C), which is one row of N pixels, or (B, C, H, W).
Map map_of(const Tensor& map, void* data) {
  const auto strides = map.strides();
  if (strides.size() == 3) return {data, strides[0], 0, strides[1], strides[2]};
  return {data, strides[0], strides[2], strides[3], strides[1]};
}

Map operand(const Tensor& map) { return map_of(map, read(map)); }

Map operand(const Optional& map) { return map ? operand(*map) : Map{}; }

Map result(const Optional& map) { return map ? map_of(*map, write(*map)) : Map{}; }

// (B, N) or (B, H, W), for a map whose rows have `width` pixels.
Pixels pixels(const Optional& value, int64_t width) {
  if (!value) return {};
  const auto strides = value->strides();
  if (strides.size() == 3) return {read(*value), strides[0], strides[1], strides[2]};
  return {read(*value), strides[0], width * strides[1], strides[1]};
}

// (R, C), shared by the batch, or (B, R, C).
Rows rows(const Tensor& value) {
  const auto strides = value.strides();
  if (strides.size() == 2) return {read(value), 0, strides[0], strides[1], true};
  return {read(value), strides[0], strides[1], strides[2], false};
}

// (R,), shared by the batch, or (B, R).
Rows row(const Optional& value) {
  if (!value) return {};
  const auto strides = value->strides();
  if (strides.size() == 1) return {read(*value), 0, 0, strides[0], true};
  return {read(*value), strides[0], 0, strides[1], false};
}

int64_t row_count(const Tensor& value) { return value.size(value.dim() - 2); }

int64_t column_count(const Tensor& value) { return value.size(value.dim() - 1); }

Call call_on(const Tensor& x) {
  Call call;
  call.dtype = dtype_of(x, "x");
  const auto sizes = x.sizes();
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

void add_project_sizes(Call& call, const Tensor& values, bool residual_is_input, int64_t num_heads) {
  call.num_heads = num_heads;
  call.keys_per_head = row_count(values);
  call.key_rows = num_heads * call.keys_per_head;
  call.out_channels = column_count(values);
  call.residual_is_input = residual_is_input;
}

void add_tokenize_sizes(Call& call, const Tensor& queries, const Optional& extra_values, int64_t query_heads) {
  call.query_heads = query_heads;
  call.queries_per_head = row_count(queries) / query_heads;
  if (extra_values) call.extra_columns = column_count(*extra_values);
}

// The operands of project, and of that half of project_tokenize. Before those of tokenize.
void add_project_operands(Call& call, const Tensor& keys, const Tensor& values, const Optional& token_bias,
                          bool residual_is_input, int64_t num_heads) {
  add_project_sizes(call, values, residual_is_input, num_heads);
  call.keys = rows(keys);
  call.values = rows(values);
  call.token_bias = row(token_bias);
  call.token_bias_dtype = bias_dtype(token_bias, call.dtype, "token_bias");
}

void add_tokenize_operands(Call& call, const Tensor& queries, const Optional& mask,
                           const Optional& pixel_bias, const Optional& extra_values, int64_t query_heads) {
  add_tokenize_sizes(call, queries, extra_values, query_heads);
  call.queries = rows(queries);
  call.mask = pixels(mask, call.width);
  call.pixel_bias = pixels(pixel_bias, call.width);
  call.pixel_bias_dtype = bias_dtype(pixel_bias, call.dtype, "pixel_bias");
  if (extra_values) call.extra_values = rows(*extra_values);
}

void add_tokenize_results(Call& call, const Tensor& tokens, const Tensor& lse) {
  call.tokens_out = write(tokens);
  call.lse_out = write(lse);
}

// The gradients of tokenize's results, and what its forward saved.
void add_tokenize_saved(Call& call, const Tensor& grad_tokens, const Optional& grad_lse, const Tensor& tokens,
                        const Tensor& lse) {
  call.grad_tokens = rows(grad_tokens);
  call.grad_lse = row(grad_lse);
  call.exact_tokens = read(tokens);
  call.saved_lse = read(lse);
}

void add_project_gradients(Call& call, const Optional& dx, const Optional& dkeys, const Optional& dvalues,
                           const Optional& dtoken_bias) {
  call.dx = result(dx);
  call.dkeys = write(dkeys);
  call.dvalues = write(dvalues);
  call.dtoken_bias = write(dtoken_bias);
}

void add_tokenize_gradients(Call& call, const Optional& dqueries, const Optional& dpixel_bias,
                            const Optional& dextra_values) {
  call.dqueries = write(dqueries);
  call.dpixel_bias = write(dpixel_bias);
  call.dextra_values = write(dextra_values);
}

}  // namespace
}  // namespace vt
