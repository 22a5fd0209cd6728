// The ops on the CUDA kernels: checks, results, calls. `devices` is what they run on.
#pragma once

#include "target.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "calls.h"
#include "checks.h"
#include "cuda_calls.h"
#include "results.h"

namespace vt {
namespace cuda_ops {
namespace {

extern const CudaDevice devices;

// ---- devices ----

// The sizes of a call on x, which must be on a CUDA device.
Call sizes_on(const Tensor& x) {
  check_map(x);
  require(device_of(x).type == devices.type(), "x", "be on a CUDA device");
  return call_on(x);
}

void check_devices(const DeviceId&) {}

// Operands, each after its name, are where x is. torch's dispatcher asks for no more than one such operand,
// and a kernel that reads the host's memory ends the process.
template <class... More>
void check_devices(const DeviceId& device, const char* name, const Optional& value, const More&... more) {
  if (value) {
    const DeviceId other = device_of(*value);
    require(other.type == device.type && other.index == device.index, name, "be on the device of `x`");
  }
  check_devices(device, more...);
}

// ---- results ----

// Memory for a gradient that is like its operand, dense. Over an empty batch, for which no kernel runs, it is
// 0.
Optional gradient(const Call& call, const Optional& operand, bool needed) {
  if (!needed || !operand) return {};
  Tensor result = empty(sizes_of(*operand), dtype_code(*operand), device_of(*operand));
  return call.batch == 0 ? torch::stable::zero_(result) : result;
}

void* data_of(const Optional& result) { return result ? result->mutable_data_ptr() : nullptr; }

// Tokens in x's dtype, and unrounded where that is another and a backward will want them; statistics.
struct Pooled {
  Tensor tokens, exact, stats;

  Pooled(const Tensor& x, const Call& call, int64_t channels, bool keep_exact)
      : tokens(empty({call.batch, call.queries_per_head, channels + call.extra_columns}, dtype_code(x),
                     device_of(x))),
        exact(keep_exact && dtype_code(x) != aoti_torch_dtype_float32()
                  ? empty(sizes_of(tokens), aoti_torch_dtype_float32(), device_of(x))
                  : nothing(aoti_torch_dtype_float32(), device_of(x))),
        stats(empty({call.batch, call.query_heads * call.queries_per_head}, aoti_torch_dtype_float32(),
                    device_of(x))) {}

  void add_to(cuda::Call& call) const {
    call.tokens = tokens.mutable_data_ptr();
    call.exact_out = exact.numel() > 0 ? static_cast<float*>(exact.mutable_data_ptr()) : nullptr;
    call.lse_out = static_cast<float*>(stats.mutable_data_ptr());
  }
};

// ---- operands ----

// Small operands as the kernels take them, held while they run.
struct Operands {
  Optional keys, values, token_bias, queries, mask, pixel_bias, extra_values;
  Optional grad_tokens, grad_extra, grad_stats, tokens, stats;

  void spread(const Tensor& of_keys, const Tensor& of_values, const Optional& of_token_bias) {
    keys = dense(of_keys), values = dense(of_values), token_bias = dense(of_token_bias);
  }

  void pool(const Tensor& of_queries, const Optional& of_mask, const Optional& of_pixel_bias,
            const Optional& of_extra_values) {
    queries = dense(of_queries), mask = dense(of_mask), pixel_bias = dense(of_pixel_bias);
    extra_values = dense(of_extra_values);
  }

  // Gradients of tokens, and what the forward saved. `columns` are those without extra values.
  void saved(const Tensor& x, int64_t columns, const Tensor& of_tokens, const Optional& of_stats,
             const Tensor& exact, const Tensor& of_rows) {
    const int32_t floats = aoti_torch_dtype_float32();
    const Tensor grad = in_dtype(of_tokens, dtype_code(x));
    if (extra_values) {
      grad_tokens = dense(torch::stable::narrow(const_cast<Tensor&>(grad), 2, 0, columns));
      grad_extra =
          dense(torch::stable::narrow(const_cast<Tensor&>(grad), 2, columns, grad.size(2) - columns));
    } else {
      grad_tokens = dense(grad);
    }
    if (of_stats) grad_stats = dense_in_dtype(*of_stats, floats);
    tokens = dense_in_dtype(exact, floats), stats = dense_in_dtype(of_rows, floats);
  }

  void add_to(cuda::Call& call) const {
    if (keys) call.keys = cuda_rows(*keys), call.values = cuda_rows(*values);
    if (token_bias) call.token_bias = cuda_biases(token_bias, token_bias->dim() == 1);
    if (queries) call.queries = cuda_rows(*queries);
    if (mask) call.mask = static_cast<const uint8_t*>(read(*mask));
    if (pixel_bias) call.pixel_bias = cuda_biases(pixel_bias, false);
    if (extra_values) call.extra_values = {read(*extra_values), 0};
    if (grad_tokens) call.grad_tokens = read(*grad_tokens);
    if (grad_extra) call.grad_extra = read(*grad_extra);
    if (grad_stats) call.grad_lse = static_cast<const float*>(read(*grad_stats));
    if (tokens)
      call.exact = static_cast<const float*>(read(*tokens)),
      call.lse = static_cast<const float*>(read(*stats));
  }
};

cuda::Biases bias_result(const Optional& result) {
  return result
             ? cuda::Biases{result->mutable_data_ptr(), 0, dtype_code(*result) == aoti_torch_dtype_float32()}
             : cuda::Biases{};
}

// ---- what these kernels do not take ----

void refuse_tokenize(const Optional& values, const Optional& scores, const Optional& token_bias,
                     const Optional& offsets, const Text& normalize, const Real& layer_norm_eps) {
  check_normalize(normalize, "pixels", "tokens", "be \"pixels\", \"tokens\" or None");
  refuse("cuda", {{"`values`", values.has_value()},
                  {"`scores`", scores.has_value()},
                  {"`token_bias`", token_bias && normalize == "pixels"},
                  {"`offsets`", offsets.has_value()},
                  {"`layer_norm_eps`", layer_norm_eps.has_value()}});
}

void refuse_project(const Tensor& x, const Optional& scores, const Optional& offsets, const Text& normalize) {
  check_normalize(normalize, "tokens", "exp", "be \"tokens\", \"exp\" or None");
  const bool half = dtype_code(x) == aoti_torch_dtype_float16();
  refuse("cuda", {{"`scores`", scores.has_value()},
                  {"`offsets`", offsets.has_value()},
                  {"`normalize=\"exp\"` in float16, which its weights leave", half && normalize == "exp"}});
}

// Adds the sizes of pooling, where each of `num_heads` sees a block of channels or all of them.
void add_pooling_sizes(Call& sizes, const Tensor& queries, const Optional& extra_values, int64_t num_heads,
                       const Text& normalize) {
  add_tokenize_sizes(sizes, row_count(queries), extra_values,
                     blocks_seen(queries, sizes.channels, num_heads));
  sizes.pooling = normalize_of(normalize);
  sizes.softmax_rows = row_count(queries) / num_heads;
}

// ---- the ops ----

Three tokenize(const Tensor& x, const Optional& queries, const Optional& mask, const Optional& pixel_bias,
               const Optional& extra_values, int64_t num_heads, bool keep_exact, const Optional& values,
               const Optional& scores, const Optional& token_bias, const Optional& offsets,
               const Text& normalize, const Real& layer_norm_eps) {
  refuse_tokenize(values, scores, token_bias, offsets, normalize, layer_norm_eps);
  Call sizes = sizes_on(x);
  check_pooling(sizes, x, sizes.channels, queries, mask, pixel_bias, extra_values, num_heads, {}, {},
                token_bias, normalize);
  check_devices(device_of(x), "queries", queries, "mask", mask, "pixel_bias", pixel_bias, "extra_values",
                extra_values, "token_bias", token_bias);
  add_pooling_sizes(sizes, *queries, extra_values, num_heads, normalize);
  check_taken(cuda::Op::tokenize, sizes, x);
  const Pooled pooled(x, sizes, sizes.channels, keep_exact);
  if (sizes.batch > 0) {
    const MapLayout layout = MapLayout::of(x, sizes);
    const Input map(x, layout);
    Operands operands;
    operands.pool(*queries, mask, pixel_bias, extra_values);
    operands.token_bias = dense(token_bias);
    cuda::Call call = sizes_of_call(sizes);
    call.x = map.map();
    operands.add_to(call);
    pooled.add_to(call);
    run(devices, cuda::Op::tokenize, sizes.dtype, call, layout.layout, x);
  }
  return {pooled.tokens, pooled.exact, pooled.stats};
}

Seven tokenize_backward(const Tensor& grad_tokens, const Optional& grad_stats, const Tensor& x,
                        const Optional& queries, const Optional& mask, const Optional& pixel_bias,
                        const Optional& extra_values, const Tensor& tokens, const Tensor& stats,
                        int64_t num_heads, const Needs& needs, const Optional& values, const Optional& scores,
                        const Optional& token_bias, const Optional& offsets, const Text& normalize,
                        const Real& layer_norm_eps) {
  refuse_tokenize(values, scores, token_bias, offsets, normalize, layer_norm_eps);
  Call sizes = sizes_on(x);
  check_pooling(sizes, x, sizes.channels, queries, mask, pixel_bias, extra_values, num_heads, {}, {},
                token_bias, normalize);
  const int64_t blocks = blocks_seen(queries, sizes.channels, num_heads);
  check_pooling_grads(sizes, x, row_count(*queries), blocks, sizes.channels, extra_values, grad_tokens,
                      grad_stats, tokens, stats);
  check_devices(device_of(x), "queries", queries, "mask", mask, "pixel_bias", pixel_bias, "extra_values",
                extra_values, "grad_tokens", grad_tokens, "grad_stats", grad_stats, "tokens", tokens, "stats",
                stats, "token_bias", token_bias);
  check_needs(needs, 7);
  add_pooling_sizes(sizes, *queries, extra_values, num_heads, normalize);
  check_taken(cuda::Op::tokenize_backward, sizes, x);
  const Optional dx = map_like(x, needs[0]), dqueries = gradient(sizes, queries, needs[1]),
                 dpixel_bias = gradient(sizes, pixel_bias, needs[2]),
                 dextra_values = gradient(sizes, extra_values, needs[3]),
                 dtoken_bias = gradient(sizes, token_bias, needs[6]);
  if (sizes.batch > 0) {
    const MapLayout layout = MapLayout::of(x, sizes);
    const Input map(x, layout);
    Output to(dx, layout);
    Operands operands;
    operands.pool(*queries, mask, pixel_bias, extra_values);
    operands.token_bias = dense(token_bias);
    operands.saved(x, sizes.channels, grad_tokens, grad_stats, tokens, stats);
    cuda::Call call = sizes_of_call(sizes);
    call.x = map.map(), call.dx = to.map();
    operands.add_to(call);
    call.dqueries = data_of(dqueries), call.dpixel_bias = bias_result(dpixel_bias),
    call.dextra_values = data_of(dextra_values), call.dtoken_bias = bias_result(dtoken_bias);
    run(devices, cuda::Op::tokenize_backward, sizes.dtype, call, layout.layout, x);
    to.finish();
  }
  return {or_undefined(dx),
          or_undefined(dqueries),
          or_undefined(dpixel_bias),
          or_undefined(dextra_values),
          Tensor(),
          Tensor(),
          or_undefined(dtoken_bias)};
}

One project(const Tensor& x, const Optional& keys, const Tensor& values, const Optional& token_bias,
            const Optional& residual, bool residual_is_input, int64_t num_heads, const Optional& scores,
            const Optional& offsets, const Text& normalize) {
  refuse_project(x, scores, offsets, normalize);
  Call sizes = sizes_on(x);
  check_spreading(sizes, x, keys, values, token_bias, residual, residual_is_input, num_heads);
  check_devices(device_of(x), "keys", keys, "values", values, "token_bias", token_bias, "residual", residual);
  add_project_sizes(sizes, keys, values, residual_is_input, num_heads, row_count(*keys));
  sizes.spreading = normalize_of(normalize);
  check_taken(cuda::Op::project, sizes, x);
  const Tensor y = empty_map_like(x, sizes.out_channels);
  if (sizes.batch > 0) {
    const MapLayout layout = MapLayout::of(x, sizes);
    const Input map(x, layout), other(residual, layout);
    Output to(y, layout);
    Operands operands;
    operands.spread(*keys, values, token_bias);
    cuda::Call call = sizes_of_call(sizes);
    call.x = map.map(), call.residual = other.map(), call.map = to.map();
    operands.add_to(call);
    run(devices, cuda::Op::project, sizes.dtype, call, layout.layout, x);
    to.finish();
  }
  return y;
}

Five project_backward(const Tensor& grad_map, const Tensor& x, const Optional& keys, const Tensor& values,
                      const Optional& token_bias, bool residual_is_input, int64_t num_heads,
                      const Needs& needs, const Optional& scores, const Optional& offsets,
                      const Text& normalize) {
  refuse_project(x, scores, offsets, normalize);
  Call sizes = sizes_on(x);
  check_spreading(sizes, x, keys, values, token_bias, {}, residual_is_input, num_heads);
  check_defined(grad_map, "grad_map");
  check_devices(device_of(x), "keys", keys, "values", values, "token_bias", token_bias, "grad_map", grad_map);
  check_needs(needs, 5);
  add_project_sizes(sizes, keys, values, residual_is_input, num_heads, row_count(*keys));
  sizes.spreading = normalize_of(normalize);
  check_taken(cuda::Op::project_backward, sizes, x);
  const Tensor grad = in_dtype(grad_map, dtype_code(x));
  check_like(grad, "grad_map", x, column_count(values));
  const Optional dx = map_like(x, needs[0]), dkeys = gradient(sizes, keys, needs[1]),
                 dvalues = gradient(sizes, values, needs[2]),
                 dtoken_bias = gradient(sizes, token_bias, needs[3]);
  if (sizes.batch > 0) {
    const MapLayout layout = MapLayout::of(x, sizes);
    const Input map(x, layout), arriving(grad, layout);
    Output to(dx, layout);
    Operands operands;
    operands.spread(*keys, values, token_bias);
    cuda::Call call = sizes_of_call(sizes);
    call.x = map.map(), call.grad_map = arriving.map(), call.dx = to.map();
    operands.add_to(call);
    call.dkeys = data_of(dkeys), call.dvalues = data_of(dvalues), call.dtoken_bias = bias_result(dtoken_bias);
    run(devices, cuda::Op::project_backward, sizes.dtype, call, layout.layout, x);
    to.finish();
  }
  return {or_undefined(dx), or_undefined(dkeys), or_undefined(dvalues), or_undefined(dtoken_bias), Tensor()};
}

Four project_tokenize(const Tensor& x, const Optional& keys, const Tensor& values, const Tensor& queries,
                      const Optional& token_bias, const Optional& residual, const Optional& mask,
                      const Optional& pixel_bias, const Optional& extra_values, bool residual_is_input,
                      int64_t num_heads, bool return_map, bool keep_exact, const Optional& scores,
                      const Optional& offsets, const Text& normalize) {
  refuse_project(x, scores, offsets, normalize);
  refuse("cuda", {{"`normalize` other than \"tokens\" in project_tokenize", normalize != "tokens"}});
  Call sizes = sizes_on(x);
  check_spreading(sizes, x, keys, values, token_bias, residual, residual_is_input, num_heads);
  const int64_t channels = column_count(values);
  check_pooling(sizes, x, channels, queries, mask, pixel_bias, extra_values, 1);
  check_devices(device_of(x), "keys", keys, "values", values, "token_bias", token_bias, "residual", residual,
                "queries", queries, "mask", mask, "pixel_bias", pixel_bias, "extra_values", extra_values);
  add_project_sizes(sizes, keys, values, residual_is_input, num_heads, row_count(*keys));
  add_tokenize_sizes(sizes, row_count(queries), extra_values, 1);
  check_taken(cuda::Op::project_tokenize, sizes, x);
  const Optional y = return_map ? Optional(empty_map_like(x, channels)) : Optional();
  const Pooled pooled(x, sizes, channels, keep_exact);
  if (sizes.batch > 0) {
    const MapLayout layout = MapLayout::of(x, sizes);
    const Input map(x, layout), other(residual, layout);
    Output to(y, layout);
    Operands operands;
    operands.spread(*keys, values, token_bias);
    operands.pool(queries, mask, pixel_bias, extra_values);
    cuda::Call call = sizes_of_call(sizes);
    call.x = map.map(), call.residual = other.map(), call.map = to.map();
    operands.add_to(call);
    pooled.add_to(call);
    run(devices, cuda::Op::project_tokenize, sizes.dtype, call, layout.layout, x);
    to.finish();
  }
  return {y ? *y : nothing(dtype_code(x), device_of(x)), pooled.tokens, pooled.exact, pooled.stats};
}

Eight project_tokenize_backward(const Optional& grad_map, const Tensor& grad_tokens, const Optional& grad_lse,
                                const Tensor& x, const Tensor& keys, const Tensor& values,
                                const Tensor& queries, const Optional& token_bias, const Optional& residual,
                                const Optional& mask, const Optional& pixel_bias,
                                const Optional& extra_values, const Tensor& tokens, const Tensor& lse,
                                bool residual_is_input, int64_t num_heads, const Needs& needs) {
  Call sizes = sizes_on(x);
  check_spreading(sizes, x, keys, values, token_bias, residual, residual_is_input, num_heads);
  const int64_t channels = column_count(values);
  check_pooling(sizes, x, channels, queries, mask, pixel_bias, extra_values, 1);
  check_pooling_grads(sizes, x, row_count(queries), 1, channels, extra_values, grad_tokens, grad_lse, tokens,
                      lse);
  check_devices(device_of(x), "keys", keys, "values", values, "token_bias", token_bias, "residual", residual,
                "queries", queries, "mask", mask, "pixel_bias", pixel_bias, "extra_values", extra_values,
                "grad_tokens", grad_tokens, "grad_lse", grad_lse, "tokens", tokens, "lse", lse, "grad_map",
                grad_map);
  check_needs(needs, 8);
  add_project_sizes(sizes, keys, values, residual_is_input, num_heads, row_count(keys));
  add_tokenize_sizes(sizes, row_count(queries), extra_values, 1);
  check_taken(cuda::Op::project_tokenize_backward, sizes, x);
  const Optional grad = grad_map ? Optional(in_dtype(*grad_map, dtype_code(x))) : Optional();
  check_like(grad, "grad_map", x, channels);
  const Optional dx = map_like(x, needs[0]), dkeys = gradient(sizes, keys, needs[1]),
                 dvalues = gradient(sizes, values, needs[2]), dqueries = gradient(sizes, queries, needs[3]),
                 dtoken_bias = gradient(sizes, token_bias, needs[4]),
                 dresidual = map_like(residual, needs[5]),
                 dpixel_bias = gradient(sizes, pixel_bias, needs[6]),
                 dextra_values = gradient(sizes, extra_values, needs[7]);
  if (sizes.batch > 0) {
    const MapLayout layout = MapLayout::of(x, sizes);
    const Input map(x, layout), other(residual, layout), arriving(grad, layout);
    Output to(dx, layout), to_residual(dresidual, layout);
    Operands operands;
    operands.spread(keys, values, token_bias);
    operands.pool(queries, mask, pixel_bias, extra_values);
    operands.saved(x, channels, grad_tokens, grad_lse, tokens, lse);
    cuda::Call call = sizes_of_call(sizes);
    call.x = map.map(), call.residual = other.map(), call.grad_map = arriving.map();
    call.dx = to.map(), call.dresidual = to_residual.map();
    operands.add_to(call);
    call.dkeys = data_of(dkeys), call.dvalues = data_of(dvalues), call.dqueries = data_of(dqueries);
    call.dtoken_bias = bias_result(dtoken_bias), call.dpixel_bias = bias_result(dpixel_bias);
    call.dextra_values = data_of(dextra_values);
    run(devices, cuda::Op::project_tokenize_backward, sizes.dtype, call, layout.layout, x);
    to.finish();
    to_residual.finish();
  }
  return {or_undefined(dx),          or_undefined(dkeys),        or_undefined(dvalues),
          or_undefined(dqueries),    or_undefined(dtoken_bias),  or_undefined(dresidual),
          or_undefined(dpixel_bias), or_undefined(dextra_values)};
}

}  // namespace
}  // namespace cuda_ops
}  // namespace vt
