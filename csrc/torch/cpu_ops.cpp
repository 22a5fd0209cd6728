// torch.ops.vt_fast_cpu.*: the CPU kernels for tensors, on torch's stable ABI, which any torch from
// TORCH_TARGET_VERSION on can load. No file but this and its host.h knows torch.
//
// Results are allocated by the caller and passed as mutable arguments, None where not wanted. Nothing is
// checked here: shapes, dtypes and devices are what vt_fast/backends/cpu makes of a checked call.
#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 11) << 48))

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>

#include "host.h"
#include "torch_facts.h"

namespace vt {

const char* const torch_of_headers = TORCH_VERSION;
const char* const oldest_torch = "2.11";

namespace {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// ---- from tensors to what a kernel is told ----

Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::headeronly::ScalarType::Double:
      return Dtype::float64;
    case torch::headeronly::ScalarType::BFloat16:
      return Dtype::bfloat16;
    case torch::headeronly::ScalarType::Half:
      return Dtype::float16;
    default:
      return Dtype::float32;
  }
}

// Kernels do not write to operands; Call has one kind of pointer for operands and results.
void* read(const Tensor& tensor) { return const_cast<void*>(tensor.const_data_ptr()); }

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

Call call_on(const Tensor& x, int64_t heads) {
  Call call;
  call.dtype = dtype_of(x);
  const auto sizes = x.sizes();
  const bool flat = sizes.size() == 3;
  call.batch = sizes[0];
  call.height = flat ? 1 : sizes[2];
  call.width = flat ? sizes[1] : sizes[3];
  call.channels = flat ? sizes[2] : sizes[1];
  call.out_channels = call.channels;
  call.heads = heads;
  call.x = operand(x);
  return call;
}

void add_spreading(Call& call, const Tensor& keys, const Tensor& values, const Optional& bias,
                   bool residual_input) {
  call.out_channels = column_count(values);
  call.tokens = row_count(values);
  call.residual_input = residual_input;
  call.keys = rows(keys);
  call.values = rows(values);
  call.bias = row(bias);
}

void add_pooling(Call& call, const Tensor& queries, int64_t heads, const Optional& mask,
                 const Optional& log_weights, const Optional& position) {
  call.queries_per_head = row_count(queries) / heads;
  call.queries = rows(queries);
  call.mask = pixels(mask, call.width);
  call.log_weights = pixels(log_weights, call.width);
  if (position) {
    call.table = column_count(*position);
    call.position = rows(*position);
  }
}

void add_pooled(Call& call, const Tensor& grad_tokens, const Optional& grad_lse, const Tensor& tokens,
                const Tensor& lse) {
  call.grad_tokens = rows(grad_tokens);
  call.grad_lse = row(grad_lse);
  call.exact_tokens = read(tokens);
  call.saved_lse = read(lse);
}

// ---- the ops ----

void run(Kernel Kernels::* kernel, const Call& call) {
  const char* error = nullptr;
  const InstructionSet* set = chosen_instruction_set(&error);
  if (set == nullptr) throw std::runtime_error(error);
  TorchHost torch;
  (set->kernels->*kernel)(call, torch.host());
}

void tokenize(const Tensor& x, const Tensor& queries, const Optional& mask, const Optional& log_weights,
              const Optional& position, int64_t heads, const Tensor& tokens, const Tensor& lse) {
  Call call = call_on(x, heads);
  add_pooling(call, queries, heads, mask, log_weights, position);
  call.tokens_out = write(tokens);
  call.lse_out = write(lse);
  run(&Kernels::tokenize, call);
}

void tokenize_backward(const Tensor& grad_tokens, const Optional& grad_lse, const Tensor& x,
                       const Tensor& queries, const Optional& mask, const Optional& log_weights,
                       const Optional& position, const Tensor& tokens, const Tensor& lse, int64_t heads,
                       const Optional& dx, const Optional& dqueries, const Optional& dlog_weights,
                       const Optional& dposition) {
  Call call = call_on(x, heads);
  add_pooling(call, queries, heads, mask, log_weights, position);
  add_pooled(call, grad_tokens, grad_lse, tokens, lse);
  call.dx = result(dx);
  call.dqueries = write(dqueries);
  call.dlog_weights = write(dlog_weights);
  call.dposition = write(dposition);
  run(&Kernels::tokenize_backward, call);
}

void project(const Tensor& x, const Tensor& keys, const Tensor& values, const Optional& bias,
             const Optional& residual, bool residual_input, int64_t heads, const Tensor& map) {
  Call call = call_on(x, heads);
  add_spreading(call, keys, values, bias, residual_input);
  call.residual = operand(residual);
  call.map = map_of(map, write(map));
  run(&Kernels::project, call);
}

void project_backward(const Tensor& grad_map, const Tensor& x, const Tensor& keys, const Tensor& values,
                      const Optional& bias, bool residual_input, int64_t heads, const Optional& dx,
                      const Optional& dkeys, const Optional& dvalues, const Optional& dbias) {
  Call call = call_on(x, heads);
  add_spreading(call, keys, values, bias, residual_input);
  call.grad_map = operand(grad_map);
  call.dx = result(dx);
  call.dkeys = write(dkeys);
  call.dvalues = write(dvalues);
  call.dbias = write(dbias);
  run(&Kernels::project_backward, call);
}

void project_tokenize(const Tensor& x, const Tensor& keys, const Tensor& values, const Tensor& queries,
                      const Optional& bias, const Optional& residual, const Optional& mask,
                      const Optional& log_weights, const Optional& position, bool residual_input,
                      int64_t heads, const Optional& map, const Tensor& tokens, const Tensor& lse) {
  Call call = call_on(x, heads);
  add_spreading(call, keys, values, bias, residual_input);
  add_pooling(call, queries, 1, mask, log_weights, position);
  call.residual = operand(residual);
  call.map = result(map);
  call.tokens_out = write(tokens);
  call.lse_out = write(lse);
  run(&Kernels::project_tokenize, call);
}

void project_tokenize_backward(const Optional& grad_map, const Tensor& grad_tokens, const Optional& grad_lse,
                               const Tensor& x, const Tensor& keys, const Tensor& values,
                               const Tensor& queries, const Optional& bias, const Optional& residual,
                               const Optional& mask, const Optional& log_weights, const Optional& position,
                               const Tensor& tokens, const Tensor& lse, bool residual_input, int64_t heads,
                               const Optional& dx, const Optional& dkeys, const Optional& dvalues,
                               const Optional& dqueries, const Optional& dbias, const Optional& dresidual,
                               const Optional& dlog_weights, const Optional& dposition) {
  Call call = call_on(x, heads);
  add_spreading(call, keys, values, bias, residual_input);
  add_pooling(call, queries, 1, mask, log_weights, position);
  add_pooled(call, grad_tokens, grad_lse, tokens, lse);
  call.grad_map = operand(grad_map);
  call.residual = operand(residual);
  call.dx = result(dx);
  call.dkeys = write(dkeys);
  call.dvalues = write(dvalues);
  call.dqueries = write(dqueries);
  call.dbias = write(dbias);
  call.dresidual = result(dresidual);
  call.dlog_weights = write(dlog_weights);
  call.dposition = write(dposition);
  run(&Kernels::project_tokenize_backward, call);
}

}  // namespace
}  // namespace vt

STABLE_TORCH_LIBRARY(vt_fast_cpu, library) {
  library.def(
      "tokenize(Tensor x, Tensor queries, Tensor? mask, Tensor? log_weights, Tensor? position, int heads, "
      "Tensor(a!) tokens, Tensor(b!) lse) -> ()");
  library.def(
      "tokenize_backward(Tensor grad_tokens, Tensor? grad_lse, Tensor x, Tensor queries, Tensor? mask, "
      "Tensor? log_weights, Tensor? position, Tensor tokens, Tensor lse, int heads, Tensor(a!)? dx, "
      "Tensor(b!)? dqueries, Tensor(c!)? dlog_weights, Tensor(d!)? dposition) -> ()");
  library.def(
      "project(Tensor x, Tensor keys, Tensor values, Tensor? bias, Tensor? residual, bool residual_input, "
      "int heads, Tensor(a!) map) -> ()");
  library.def(
      "project_backward(Tensor grad_map, Tensor x, Tensor keys, Tensor values, Tensor? bias, "
      "bool residual_input, int heads, Tensor(a!)? dx, Tensor(b!)? dkeys, Tensor(c!)? dvalues, "
      "Tensor(d!)? dbias) -> ()");
  library.def(
      "project_tokenize(Tensor x, Tensor keys, Tensor values, Tensor queries, Tensor? bias, "
      "Tensor? residual, Tensor? mask, Tensor? log_weights, Tensor? position, bool residual_input, "
      "int heads, Tensor(a!)? map, Tensor(b!) tokens, Tensor(c!) lse) -> ()");
  library.def(
      "project_tokenize_backward(Tensor? grad_map, Tensor grad_tokens, Tensor? grad_lse, Tensor x, "
      "Tensor keys, Tensor values, Tensor queries, Tensor? bias, Tensor? residual, Tensor? mask, "
      "Tensor? log_weights, Tensor? position, Tensor tokens, Tensor lse, bool residual_input, int heads, "
      "Tensor(a!)? dx, Tensor(b!)? dkeys, Tensor(c!)? dvalues, Tensor(d!)? dqueries, Tensor(e!)? dbias, "
      "Tensor(f!)? dresidual, Tensor(g!)? dlog_weights, Tensor(h!)? dposition) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(vt_fast_cpu, CPU, library) {
  library.impl("tokenize", vt::guarded<TORCH_BOX(&vt::tokenize)>);
  library.impl("tokenize_backward", vt::guarded<TORCH_BOX(&vt::tokenize_backward)>);
  library.impl("project", vt::guarded<TORCH_BOX(&vt::project)>);
  library.impl("project_backward", vt::guarded<TORCH_BOX(&vt::project_backward)>);
  library.impl("project_tokenize", vt::guarded<TORCH_BOX(&vt::project_tokenize)>);
  library.impl("project_tokenize_backward", vt::guarded<TORCH_BOX(&vt::project_tokenize_backward)>);
}
