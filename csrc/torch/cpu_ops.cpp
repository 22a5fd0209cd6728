// The ops on a CPU: torch.ops.vt_fast.*, on torch's stable ABI. This library defines their schemas, chooses
// among backends where tensors are on a CPU, and has the backend "cpu" as torch.ops.vt_fast.*_cpu. None of it
// needs Python.
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
#include "choose.h"
#include "cpu_calls.h"
#include "host.h"
#include "results.h"
#include "schemas.h"

namespace vt {

namespace cpu_ops {
namespace {

constexpr char name[] = "cpu";

const char* unavailable() {
  const char* error = nullptr;
  return chosen_instruction_set(&error) == nullptr ? error : nullptr;
}

// ---- results ----

// Tokens and statistics in the compute dtype.
struct Pooled {
  Tensor tokens, stats;

  Pooled(const Tensor& x, int64_t batch, int64_t count, int64_t rows, int64_t channels,
         const Optional& extra_values)
      : tokens(empty({batch, count, channels + (extra_values ? column_count(*extra_values) : 0)},
                     compute_dtype(dtype_code(x)), {})),
        stats(empty({batch, rows}, compute_dtype(dtype_code(x)), {})) {}

  // Tokens in x's dtype, and unrounded where that is another and a backward will want them; statistics.
  Three rounded(const Tensor& x, bool keep_exact) const {
    const int32_t dtype = dtype_code(x), exact = dtype_code(tokens);
    if (dtype == exact) return {tokens, nothing(exact, {}), stats};
    return {converted(tokens, dtype), keep_exact ? tokens : nothing(exact, {}), stats};
  }
};

// Memory for the gradient of a small operand, in the compute dtype. Over an empty batch, for which no kernel
// runs, it is 0.
Optional gradient(const Call& call, const Optional& operand, bool needed) {
  if (!needed || !operand) return {};
  Tensor result = empty(sizes_of(*operand), compute_dtype(dtype_code(*operand)), {});
  return call.batch == 0 ? torch::stable::zero_(result) : result;
}

void poison_results(bool on) { poison = on; }

// That gradient in the operand's dtype.
Tensor rounded(const Optional& gradient, const Optional& operand) {
  return gradient ? in_dtype(*gradient, dtype_code(*operand)) : Tensor();
}

Optional optional_in_dtype(const Optional& value, int32_t dtype) {
  return value ? in_dtype(*value, dtype) : Optional();
}

// Memory for the gradient of scores, dense.
Optional like(const Optional& scores, bool needed) {
  if (!needed || !scores) return {};
  return empty(sizes_of(*scores), dtype_code(*scores), {});
}

// What tokenize pools: `rows` rows, `blocks` blocks of the map's `channels`.
struct Pools {
  int64_t rows, blocks, channels;

  Pools(const Call& call, const Optional& queries, const Optional& scores, const Optional& values,
        int64_t num_heads)
      : rows(rows_given(call, queries, scores)),
        blocks(blocks_seen(queries, call.channels, num_heads)),
        channels(values ? values->size(values->dim() == 3 ? 2 : 1) : call.channels) {}
};

constexpr char of_tokenize[] = "be \"pixels\", \"tokens\" or None";
constexpr char of_project[] = "be \"tokens\", \"exp\" or None";

// ---- the ops ----

Three tokenize(const Tensor& x, const Optional& queries, const Optional& mask, const Optional& pixel_bias,
               const Optional& extra_values, int64_t num_heads, bool keep_exact, const Optional& values,
               const Optional& scores, const Optional& token_bias, const Optional& offsets,
               const Text& normalize, const Real& layer_norm_eps) {
  check_map(x, offsets);
  const Call call = call_on(x, offsets);
  check_normalize(normalize, "pixels", "tokens", of_tokenize);
  check_pooling(call, x, call.channels, queries, mask, pixel_bias, extra_values, num_heads, values, scores,
                token_bias, normalize, layer_norm_eps);
  const Pools pools(call, queries, scores, values, num_heads);
  const Pooled pooled(x, call.batch, pools.rows / pools.blocks, pools.rows, pools.channels, extra_values);
  vt::tokenize(x, queries, mask, pixel_bias, extra_values, num_heads, pooled.tokens, pooled.stats, values,
               scores, token_bias, offsets, normalize, layer_norm_eps);
  return pooled.rounded(x, keep_exact);
}

Seven tokenize_backward(const Tensor& grad_tokens, const Optional& grad_stats, const Tensor& x,
                        const Optional& queries, const Optional& mask, const Optional& pixel_bias,
                        const Optional& extra_values, const Tensor& tokens, const Tensor& stats,
                        int64_t num_heads, const Needs& needs, const Optional& values, const Optional& scores,
                        const Optional& token_bias, const Optional& offsets, const Text& normalize,
                        const Real& layer_norm_eps) {
  check_map(x, offsets);
  const Call call = call_on(x, offsets);
  check_normalize(normalize, "pixels", "tokens", of_tokenize);
  check_pooling(call, x, call.channels, queries, mask, pixel_bias, extra_values, num_heads, values, scores,
                token_bias, normalize, layer_norm_eps);
  const Pools pools(call, queries, scores, values, num_heads);
  check_pooling_grads(call, x, pools.rows, pools.blocks, pools.channels, extra_values, grad_tokens,
                      grad_stats, tokens, stats);
  check_needs(needs, 7);
  const int32_t dtype = dtype_code(x), exact = compute_dtype(dtype);
  const Optional dx = map_like(x, needs[0]), dqueries = gradient(call, queries, needs[1]),
                 dpixel_bias = gradient(call, pixel_bias, needs[2]),
                 dextra_values = gradient(call, extra_values, needs[3]), dvalues = map_like(values, needs[4]),
                 dscores = like(scores, needs[5]), dtoken_bias = gradient(call, token_bias, needs[6]);
  vt::tokenize_backward(in_dtype(grad_tokens, dtype), optional_in_dtype(grad_stats, exact), x, queries, mask,
                        pixel_bias, extra_values, dense_in_dtype(tokens, exact), dense_in_dtype(stats, exact),
                        num_heads, dx, dqueries, dpixel_bias, dextra_values, values, scores, token_bias,
                        offsets, normalize, layer_norm_eps, dvalues, dscores, dtoken_bias);
  return {or_undefined(dx),
          rounded(dqueries, queries),
          rounded(dpixel_bias, pixel_bias),
          rounded(dextra_values, extra_values),
          or_undefined(dvalues),
          or_undefined(dscores),
          rounded(dtoken_bias, token_bias)};
}

One project(const Tensor& x, const Optional& keys, const Tensor& values, const Optional& token_bias,
            const Optional& residual, bool residual_is_input, int64_t num_heads, const Optional& scores,
            const Optional& offsets, const Text& normalize) {
  check_map(x, offsets);
  check_normalize(normalize, "tokens", "exp", of_project);
  const Call call = call_on(x, offsets);
  check_spreading(call, x, keys, values, token_bias, residual, residual_is_input, num_heads, scores);
  const Tensor map = empty_map_like(x, column_count(values));
  vt::project(x, keys, values, token_bias, residual, residual_is_input, num_heads, map, scores, offsets,
              normalize);
  return map;
}

Five project_backward(const Tensor& grad_map, const Tensor& x, const Optional& keys, const Tensor& values,
                      const Optional& token_bias, bool residual_is_input, int64_t num_heads,
                      const Needs& needs, const Optional& scores, const Optional& offsets,
                      const Text& normalize) {
  check_map(x, offsets);
  check_normalize(normalize, "tokens", "exp", of_project);
  const Call call = call_on(x, offsets);
  check_spreading(call, x, keys, values, token_bias, {}, residual_is_input, num_heads, scores);
  check_defined(grad_map, "grad_map");
  const Tensor grad = in_dtype(grad_map, dtype_code(x));
  check_like(grad, "grad_map", x, column_count(values));
  check_needs(needs, 5);
  const Optional dx = map_like(x, needs[0]), dkeys = gradient(call, keys, needs[1]),
                 dvalues = gradient(call, values, needs[2]),
                 dtoken_bias = gradient(call, token_bias, needs[3]), dscores = like(scores, needs[4]);
  vt::project_backward(grad, x, keys, values, token_bias, residual_is_input, num_heads, dx, dkeys, dvalues,
                       dtoken_bias, scores, offsets, normalize, dscores);
  return {or_undefined(dx), rounded(dkeys, keys), rounded(dvalues, values), rounded(dtoken_bias, token_bias),
          or_undefined(dscores)};
}

Four project_tokenize(const Tensor& x, const Optional& keys, const Tensor& values, const Tensor& queries,
                      const Optional& token_bias, const Optional& residual, const Optional& mask,
                      const Optional& pixel_bias, const Optional& extra_values, bool residual_is_input,
                      int64_t num_heads, bool return_map, bool keep_exact, const Optional& scores,
                      const Optional& offsets, const Text& normalize) {
  refuse(name, {{"`scores` in project_tokenize", scores.has_value()},
                {"`offsets` in project_tokenize", offsets.has_value()},
                {"`normalize` other than \"tokens\" in project_tokenize", normalize != "tokens"}});
  check_map(x);
  const Call call = call_on(x);
  check_spreading(call, x, keys, values, token_bias, residual, residual_is_input, num_heads);
  const int64_t channels = column_count(values);
  check_pooling(call, x, channels, queries, mask, pixel_bias, extra_values, 1);
  const int64_t rows = row_count(queries);
  const Optional map = return_map ? Optional(empty_map_like(x, channels)) : Optional();
  const Pooled pooled(x, call.batch, rows, rows, channels, extra_values);
  vt::project_tokenize(x, *keys, values, queries, token_bias, residual, mask, pixel_bias, extra_values,
                       residual_is_input, num_heads, map, pooled.tokens, pooled.stats);
  return std::tuple_cat(std::make_tuple(map ? *map : nothing(dtype_code(x), {})),
                        pooled.rounded(x, keep_exact));
}

Eight project_tokenize_backward(const Optional& grad_map, const Tensor& grad_tokens, const Optional& grad_lse,
                                const Tensor& x, const Tensor& keys, const Tensor& values,
                                const Tensor& queries, const Optional& token_bias, const Optional& residual,
                                const Optional& mask, const Optional& pixel_bias,
                                const Optional& extra_values, const Tensor& tokens, const Tensor& lse,
                                bool residual_is_input, int64_t num_heads, const Needs& needs) {
  check_map(x);
  const Call call = call_on(x);
  check_spreading(call, x, keys, values, token_bias, residual, residual_is_input, num_heads);
  const int64_t channels = column_count(values);
  check_pooling(call, x, channels, queries, mask, pixel_bias, extra_values, 1);
  check_pooling_grads(call, x, row_count(queries), 1, channels, extra_values, grad_tokens, grad_lse, tokens,
                      lse);
  const int32_t dtype = dtype_code(x), exact = compute_dtype(dtype);
  const Optional grad = optional_in_dtype(grad_map, dtype);
  check_like(grad, "grad_map", x, channels);
  check_needs(needs, 8);
  const Optional dx = map_like(x, needs[0]), dkeys = gradient(call, keys, needs[1]),
                 dvalues = gradient(call, values, needs[2]), dqueries = gradient(call, queries, needs[3]),
                 dtoken_bias = gradient(call, token_bias, needs[4]), dresidual = map_like(residual, needs[5]),
                 dpixel_bias = gradient(call, pixel_bias, needs[6]),
                 dextra_values = gradient(call, extra_values, needs[7]);
  vt::project_tokenize_backward(grad, in_dtype(grad_tokens, dtype), optional_in_dtype(grad_lse, exact), x,
                                keys, values, queries, token_bias, residual, mask, pixel_bias, extra_values,
                                dense_in_dtype(tokens, exact), dense_in_dtype(lse, exact), residual_is_input,
                                num_heads, dx, dkeys, dvalues, dqueries, dtoken_bias, dresidual, dpixel_bias,
                                dextra_values);
  return {or_undefined(dx),
          rounded(dkeys, keys),
          rounded(dvalues, values),
          rounded(dqueries, queries),
          rounded(dtoken_bias, token_bias),
          or_undefined(dresidual),
          rounded(dpixel_bias, pixel_bias),
          rounded(dextra_values, extra_values)};
}

}  // namespace
}  // namespace cpu_ops
}  // namespace vt

STABLE_TORCH_LIBRARY(vt_fast, library) {
#define VT_DEFINE(op) vt::define(library, vt::ops::op);
  VT_FOR_EACH_OP(VT_DEFINE)
}

STABLE_TORCH_LIBRARY_FRAGMENT(vt_fast_cpu, library) { library.def("poison_results(bool on) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(vt_fast_cpu, CompositeExplicitAutograd, library) {
  library.impl("poison_results", TORCH_BOX(&vt::cpu_ops::poison_results));
}

STABLE_TORCH_LIBRARY_IMPL(vt_fast, CPU, library) {
#define VT_IMPLEMENT(op)                                                                                    \
  library.impl(                                                                                             \
      vt::ops::op.name,                                                                                     \
      vt::guarded<vt::choose<vt::ops::op, vt::cpu_ops::unavailable, vt::cpu_ops::name, &vt::cpu_ops::op>>); \
  library.impl(#op "_cpu", vt::guarded<TORCH_BOX(&vt::cpu_ops::op)>);
  VT_FOR_EACH_OP(VT_IMPLEMENT)
}
