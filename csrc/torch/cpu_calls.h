// Calls of the CPU kernels. Results are the caller's. Shapes and devices are not checked here.
#pragma once

#include "target.h"

#include <torch/csrc/stable/tensor.h>

#include <stdexcept>

#include "../cpu/instruction_sets.h"
#include "calls.h"
#include "host.h"

namespace vt {
namespace {

void run(Kernel Kernels::* kernel, const Call& call) {
  if (call.batch == 0) return;  // all results are empty but shared gradients, which the caller has set to 0
  const char* error = nullptr;
  const InstructionSet* set = chosen_instruction_set(&error);
  if (set == nullptr) throw std::runtime_error(error);
  TorchHost torch;
  (set->kernels->*kernel)(call, torch.host());
}

void tokenize(const Tensor& x, const Tensor& queries, const Optional& mask, const Optional& pixel_bias,
              const Optional& extra_values, int64_t num_heads, const Tensor& tokens, const Tensor& lse) {
  Call call = call_on(x);
  add_tokenize_operands(call, queries, mask, pixel_bias, extra_values, num_heads);
  add_tokenize_results(call, tokens, lse);
  run(&Kernels::tokenize, call);
}

void tokenize_backward(const Tensor& grad_tokens, const Optional& grad_lse, const Tensor& x,
                       const Tensor& queries, const Optional& mask, const Optional& pixel_bias,
                       const Optional& extra_values, const Tensor& tokens, const Tensor& lse,
                       int64_t num_heads, const Optional& dx, const Optional& dqueries,
                       const Optional& dpixel_bias, const Optional& dextra_values) {
  Call call = call_on(x);
  add_tokenize_operands(call, queries, mask, pixel_bias, extra_values, num_heads);
  add_tokenize_saved(call, grad_tokens, grad_lse, tokens, lse);
  call.dx = result(dx);
  add_tokenize_gradients(call, dqueries, dpixel_bias, dextra_values);
  run(&Kernels::tokenize_backward, call);
}

void project(const Tensor& x, const Tensor& keys, const Tensor& values, const Optional& token_bias,
             const Optional& residual, bool residual_is_input, int64_t num_heads, const Tensor& map) {
  Call call = call_on(x);
  add_project_operands(call, keys, values, token_bias, residual_is_input, num_heads);
  call.residual = operand(residual);
  call.map = map_of(map, write(map));
  run(&Kernels::project, call);
}

void project_backward(const Tensor& grad_map, const Tensor& x, const Tensor& keys, const Tensor& values,
                      const Optional& token_bias, bool residual_is_input, int64_t num_heads,
                      const Optional& dx, const Optional& dkeys, const Optional& dvalues,
                      const Optional& dtoken_bias) {
  Call call = call_on(x);
  add_project_operands(call, keys, values, token_bias, residual_is_input, num_heads);
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
