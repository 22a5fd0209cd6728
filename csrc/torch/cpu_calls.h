// Calls of the CPU kernels. Results are the caller's. Shapes and devices are not checked here.
#pragma once

#include "target.h"

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "../cpu/instruction_sets.h"
#include "calls.h"
#include "host.h"

namespace vt {
namespace {

// ---- from tensors to a kernel's arguments ----

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

void* write(const Tensor& tensor) { return tensor.mutable_data_ptr(); }

void* write(const Optional& tensor) { return tensor ? tensor->mutable_data_ptr() : nullptr; }

Map operand(const Optional& map) { return map ? operand(*map) : Map{}; }

Map result(const Optional& map) { return map ? map_of(*map, write(*map)) : Map{}; }

// (B, N) or (B, H, W), for a map whose rows have `width` pixels; (total,) of bags.
Pixels pixels(const Optional& value, int64_t width) {
  if (!value) return {};
  const auto strides = value->strides();
  if (strides.size() == 1) return {read(*value), 0, 0, strides[0]};
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

// (B, R, N) or (B, R, H, W), for a map whose rows have `width` pixels, or (R, total) of bags; a row is a
// channel.
Map scores_map(const Tensor& value, void* data, int64_t width) {
  const auto strides = value.strides();
  if (strides.size() == 2) return {data, 0, 0, strides[1], strides[0]};
  if (strides.size() == 3) return {data, strides[0], width * strides[2], strides[2], strides[1]};
  return {data, strides[0], strides[2], strides[3], strides[1]};
}

void add_scores(Call& call, const Optional& scores, const Optional& dscores = {}) {
  if (!scores) return;
  call.scores = scores_map(*scores, read(*scores), call.width);
  call.scores_dtype = bias_dtype(scores, call.dtype, "scores");
  if (dscores) call.dscores = scores_map(*dscores, write(*dscores), call.width);
}

// The operands of project, and of that half of project_tokenize. Before those of tokenize.
void add_project_operands(Call& call, const Optional& keys, const Tensor& values, const Optional& token_bias,
                          bool residual_is_input, int64_t num_heads, const Optional& scores = {},
                          const Optional& offsets = {}, const Text& normalize = "tokens") {
  add_project_sizes(call, keys, values, residual_is_input, num_heads, row_count(keys, scores, offsets));
  call.spreading = normalize_of(normalize);
  add_scores(call, scores);
  if (keys) call.keys = rows(*keys);
  call.values = rows(values);
  call.token_bias = row(token_bias);
  call.token_bias_dtype = bias_dtype(token_bias, call.dtype, "token_bias");
}

void add_tokenize_operands(Call& call, const Optional& queries, const Optional& mask,
                           const Optional& pixel_bias, const Optional& extra_values, int64_t num_heads,
                           const Optional& values = {}, const Optional& scores = {},
                           const Optional& token_bias = {}, const Optional& offsets = {},
                           const Text& normalize = "pixels") {
  const int64_t blocks = blocks_seen(queries, call.out_channels, num_heads);
  call.pools_values = values.has_value();
  if (values) {
    call.pooled_map = operand(*values);
    call.out_channels = values->size(values->dim() == 3 ? 2 : 1);
  }
  add_tokenize_sizes(call, row_count(queries, scores, offsets), extra_values, blocks);
  call.softmax_rows = call.query_heads * call.queries_per_head / num_heads;
  call.mask = pixels(mask, call.width);
  call.pixel_bias = pixels(pixel_bias, call.width);
  call.pixel_bias_dtype = bias_dtype(pixel_bias, call.dtype, "pixel_bias");
  if (queries) call.queries = rows(*queries);
  if (extra_values) call.extra_values = rows(*extra_values);
  call.query_bias = row(token_bias);
  call.query_bias_dtype = bias_dtype(token_bias, call.dtype, "token_bias");
  add_scores(call, scores);
  call.pooling = normalize_of(normalize);
}

void add_tokenize_results(Call& call, const Tensor& tokens, const Tensor& stats) {
  call.tokens_out = write(tokens);
  call.stats_out = write(stats);
}

// The gradients of tokenize's results, and what its forward saved.
void add_tokenize_saved(Call& call, const Tensor& grad_tokens, const Optional& grad_stats,
                        const Tensor& tokens, const Tensor& stats) {
  call.grad_tokens = rows(grad_tokens);
  call.grad_stats = row(grad_stats);
  call.exact_tokens = read(tokens);
  call.saved_stats = read(stats);
}

void add_project_gradients(Call& call, const Optional& dx, const Optional& dkeys, const Optional& dvalues,
                           const Optional& dtoken_bias) {
  call.dx = result(dx);
  call.dkeys = write(dkeys);
  call.dvalues = write(dvalues);
  call.dtoken_bias = write(dtoken_bias);
}

void add_tokenize_gradients(Call& call, const Optional& dqueries, const Optional& dpixel_bias,
                            const Optional& dextra_values, const Optional& dtoken_bias = {}) {
  call.dquery_bias = write(dtoken_bias);
  call.dqueries = write(dqueries);
  call.dpixel_bias = write(dpixel_bias);
  call.dextra_values = write(dextra_values);
}

// ---- the calls ----

void run(Kernel Kernels::* kernel, const Call& call) {
  if (call.batch == 0) return;  // all results are empty but shared gradients, which the caller has set to 0
  const char* error = nullptr;
  const InstructionSet* set = chosen_instruction_set(&error);
  if (set == nullptr) throw std::runtime_error(error);
  TorchHost torch;
  (set->kernels->*kernel)(call, torch.host());
}

void tokenize(const Tensor& x, const Optional& queries, const Optional& mask, const Optional& pixel_bias,
              const Optional& extra_values, int64_t num_heads, const Tensor& tokens, const Tensor& stats,
              const Optional& values, const Optional& scores, const Optional& token_bias,
              const Optional& offsets, const Text& normalize, const Real& layer_norm_eps) {
  Call call = call_on(x, offsets);
  call.layer_norm_eps = layer_norm_eps.value_or(-1);
  add_tokenize_operands(call, queries, mask, pixel_bias, extra_values, num_heads, values, scores, token_bias,
                        offsets, normalize);
  add_tokenize_results(call, tokens, stats);
  run(&Kernels::tokenize, call);
}

void tokenize_backward(const Tensor& grad_tokens, const Optional& grad_stats, const Tensor& x,
                       const Optional& queries, const Optional& mask, const Optional& pixel_bias,
                       const Optional& extra_values, const Tensor& tokens, const Tensor& stats,
                       int64_t num_heads, const Optional& dx, const Optional& dqueries,
                       const Optional& dpixel_bias, const Optional& dextra_values, const Optional& values,
                       const Optional& scores, const Optional& token_bias, const Optional& offsets,
                       const Text& normalize, const Real& layer_norm_eps, const Optional& dvalues,
                       const Optional& dscores, const Optional& dtoken_bias) {
  Call call = call_on(x, offsets);
  call.layer_norm_eps = layer_norm_eps.value_or(-1);
  add_tokenize_operands(call, queries, mask, pixel_bias, extra_values, num_heads, values, scores, token_bias,
                        offsets, normalize);
  add_tokenize_saved(call, grad_tokens, grad_stats, tokens, stats);
  call.dx = result(dx);
  call.dpooled_map = result(dvalues);
  add_scores(call, scores, dscores);
  add_tokenize_gradients(call, dqueries, dpixel_bias, dextra_values, dtoken_bias);
  run(&Kernels::tokenize_backward, call);
}

void project(const Tensor& x, const Optional& keys, const Tensor& values, const Optional& token_bias,
             const Optional& residual, bool residual_is_input, int64_t num_heads, const Tensor& map,
             const Optional& scores, const Optional& offsets, const Text& normalize) {
  Call call = call_on(x, offsets);
  add_project_operands(call, keys, values, token_bias, residual_is_input, num_heads, scores, offsets,
                       normalize);
  call.residual = operand(residual);
  call.map = map_of(map, write(map));
  run(&Kernels::project, call);
}

void project_backward(const Tensor& grad_map, const Tensor& x, const Optional& keys, const Tensor& values,
                      const Optional& token_bias, bool residual_is_input, int64_t num_heads,
                      const Optional& dx, const Optional& dkeys, const Optional& dvalues,
                      const Optional& dtoken_bias, const Optional& scores, const Optional& offsets,
                      const Text& normalize, const Optional& dscores) {
  Call call = call_on(x, offsets);
  add_project_operands(call, keys, values, token_bias, residual_is_input, num_heads, scores, offsets,
                       normalize);
  add_scores(call, scores, dscores);
  call.grad_map = operand(grad_map);
  add_project_gradients(call, dx, dkeys, dvalues, dtoken_bias);
  run(&Kernels::project_backward, call);
}

void project_tokenize(const Tensor& x, const Tensor& keys, const Tensor& values, const Tensor& queries,
                      const Optional& token_bias, const Optional& residual, const Optional& mask,
                      const Optional& pixel_bias, const Optional& extra_values, bool residual_is_input,
                      int64_t num_heads, const Optional& map, const Tensor& tokens, const Tensor& lse) {
  Call call = call_on(x);
  add_project_operands(call, keys, values, token_bias, residual_is_input, num_heads);
  add_tokenize_operands(call, queries, mask, pixel_bias, extra_values, 1);
  call.residual = operand(residual);
  call.map = result(map);
  add_tokenize_results(call, tokens, lse);
  run(&Kernels::project_tokenize, call);
}

void project_tokenize_backward(const Optional& grad_map, const Tensor& grad_tokens, const Optional& grad_lse,
                               const Tensor& x, const Tensor& keys, const Tensor& values,
                               const Tensor& queries, const Optional& token_bias, const Optional& residual,
                               const Optional& mask, const Optional& pixel_bias, const Optional& extra_values,
                               const Tensor& tokens, const Tensor& lse, bool residual_is_input,
                               int64_t num_heads, const Optional& dx, const Optional& dkeys,
                               const Optional& dvalues, const Optional& dqueries, const Optional& dtoken_bias,
                               const Optional& dresidual, const Optional& dpixel_bias,
                               const Optional& dextra_values) {
  Call call = call_on(x);
  add_project_operands(call, keys, values, token_bias, residual_is_input, num_heads);
  add_tokenize_operands(call, queries, mask, pixel_bias, extra_values, 1);
  add_tokenize_saved(call, grad_tokens, grad_lse, tokens, lse);
  call.grad_map = operand(grad_map);
  call.residual = operand(residual);
  add_project_gradients(call, dx, dkeys, dvalues, dtoken_bias);
  add_tokenize_gradients(call, dqueries, dpixel_bias, dextra_values);
  call.dresidual = result(dresidual);
  run(&Kernels::project_tokenize_backward, call);
}

}  // namespace
}  // namespace vt
