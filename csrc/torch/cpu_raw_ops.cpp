// torch.ops.vt_fast_cpu.*: the kernels with results that the caller allocates, None where not wanted, and
// checks of dtypes alone. For tests, which put guards around the results.
#include "target.h"

#include <torch/csrc/stable/library.h>

#include "cpu_calls.h"
#include "host.h"

STABLE_TORCH_LIBRARY(vt_fast_cpu, library) {
  library.def(
      "tokenize(Tensor x, Tensor? queries, Tensor? mask, Tensor? pixel_bias, Tensor? extra_values, "
      "int num_heads, Tensor(a!) tokens, Tensor(b!) stats, Tensor? values=None, Tensor? scores=None, "
      "Tensor? token_bias=None, Tensor? offsets=None, str? normalize=\"pixels\", float? layer_norm_eps=None) "
      "-> ()");
  library.def(
      "tokenize_backward(Tensor grad_tokens, Tensor? grad_stats, Tensor x, Tensor? queries, Tensor? mask, "
      "Tensor? pixel_bias, Tensor? extra_values, Tensor tokens, Tensor stats, int num_heads, Tensor(a!)? dx, "
      "Tensor(b!)? dqueries, Tensor(c!)? dpixel_bias, Tensor(d!)? dextra_values, Tensor? values=None, "
      "Tensor? scores=None, Tensor? token_bias=None, Tensor? offsets=None, str? normalize=\"pixels\", float? "
      "layer_norm_eps=None, Tensor(e!)? dpooled=None, "
      "Tensor(f!)? dscores=None, Tensor(g!)? dtoken_bias=None) -> ()");
  library.def(
      "project(Tensor x, Tensor? keys, Tensor values, Tensor? token_bias, Tensor? residual, "
      "bool residual_is_input, int num_heads, Tensor(a!) map, Tensor? scores=None, "
      "Tensor? offsets=None, str? normalize=\"tokens\") -> ()");
  library.def(
      "project_backward(Tensor grad_map, Tensor x, Tensor? keys, Tensor values, Tensor? token_bias, "
      "bool residual_is_input, int num_heads, Tensor(a!)? dx, Tensor(b!)? dkeys, Tensor(c!)? dvalues, "
      "Tensor(d!)? dtoken_bias, Tensor? scores=None, Tensor? offsets=None, str? normalize=\"tokens\", "
      "Tensor(e!)? dscores=None) -> ()");
  library.def(
      "project_tokenize(Tensor x, Tensor keys, Tensor values, Tensor queries, Tensor? token_bias, "
      "Tensor? residual, Tensor? mask, Tensor? pixel_bias, Tensor? extra_values, bool residual_is_input, "
      "int num_heads, Tensor(a!)? map, Tensor(b!) tokens, Tensor(c!) lse) -> ()");
  library.def(
      "project_tokenize_backward(Tensor? grad_map, Tensor grad_tokens, Tensor? grad_lse, Tensor x, "
      "Tensor keys, Tensor values, Tensor queries, Tensor? token_bias, Tensor? residual, Tensor? mask, "
      "Tensor? pixel_bias, Tensor? extra_values, Tensor tokens, Tensor lse, bool residual_is_input, "
      "int num_heads, Tensor(a!)? dx, Tensor(b!)? dkeys, Tensor(c!)? dvalues, Tensor(d!)? dqueries, "
      "Tensor(e!)? dtoken_bias, Tensor(f!)? dresidual, Tensor(g!)? dpixel_bias, "
      "Tensor(h!)? dextra_values) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(vt_fast_cpu, CPU, library) {
  library.impl("tokenize", vt::guarded<TORCH_BOX(&vt::tokenize)>);
  library.impl("tokenize_backward", vt::guarded<TORCH_BOX(&vt::tokenize_backward)>);
  library.impl("project", vt::guarded<TORCH_BOX(&vt::project)>);
  library.impl("project_backward", vt::guarded<TORCH_BOX(&vt::project_backward)>);
  library.impl("project_tokenize", vt::guarded<TORCH_BOX(&vt::project_tokenize)>);
  library.impl("project_tokenize_backward", vt::guarded<TORCH_BOX(&vt::project_tokenize_backward)>);
}
