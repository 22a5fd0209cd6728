// The public ops' schemas, but for their last argument, `*, str? backend=None`, which a backend's own op
// lacks.
//
// vt_fast/ops has the same ones for installations without this library; a test compares them. Saved programs
// hold arguments by position, so new ones go to the end, with a default; the backend is passed by name.
#pragma once

namespace vt {

struct Op {
  const char* name;
  const char* arguments;
  const char* results;
};

// An op of this library may be handed over to one of these.
inline constexpr const char* backends[] = {"cpu", "cuda", "triton", "torch"};

namespace ops {

inline constexpr Op tokenize = {
    "tokenize",
    "Tensor x, Tensor? queries, Tensor? mask, Tensor? pixel_bias, Tensor? extra_values, int num_heads, "
    "bool keep_exact, Tensor? values=None, Tensor? scores=None, Tensor? token_bias=None, "
    "Tensor? offsets=None, str? normalize=\"pixels\", float? layer_norm_eps=None",
    "Tensor tokens, Tensor exact, Tensor stats"};

inline constexpr Op tokenize_backward = {
    "tokenize_backward",
    "Tensor grad_tokens, Tensor? grad_stats, Tensor x, Tensor? queries, Tensor? mask, Tensor? pixel_bias, "
    "Tensor? extra_values, Tensor tokens, Tensor stats, int num_heads, bool[] needs, Tensor? values=None, "
    "Tensor? scores=None, Tensor? token_bias=None, Tensor? offsets=None, str? normalize=\"pixels\", "
    "float? layer_norm_eps=None",
    "Tensor dx, Tensor dqueries, Tensor dpixel_bias, Tensor dextra_values, Tensor dvalues, Tensor dscores, "
    "Tensor dtoken_bias"};

inline constexpr Op project = {
    "project",
    "Tensor x, Tensor? keys, Tensor values, Tensor? token_bias, Tensor? residual, bool residual_is_input, "
    "int num_heads, Tensor? scores=None, Tensor? offsets=None, str? normalize=\"tokens\"",
    "Tensor map"};

inline constexpr Op project_backward = {
    "project_backward",
    "Tensor grad_map, Tensor x, Tensor? keys, Tensor values, Tensor? token_bias, bool residual_is_input, "
    "int num_heads, bool[] needs, Tensor? scores=None, Tensor? offsets=None, str? normalize=\"tokens\"",
    "Tensor dx, Tensor dkeys, Tensor dvalues, Tensor dtoken_bias, Tensor dscores"};

inline constexpr Op project_tokenize = {
    "project_tokenize",
    "Tensor x, Tensor? keys, Tensor values, Tensor queries, Tensor? token_bias, Tensor? residual, "
    "Tensor? mask, Tensor? pixel_bias, Tensor? extra_values, bool residual_is_input, int num_heads, "
    "bool return_map, bool keep_exact, Tensor? scores=None, Tensor? offsets=None, "
    "str? normalize=\"tokens\"",
    "Tensor map, Tensor tokens, Tensor exact, Tensor lse"};

inline constexpr Op project_tokenize_backward = {
    "project_tokenize_backward",
    "Tensor? grad_map, Tensor grad_tokens, Tensor? grad_lse, Tensor x, Tensor keys, Tensor values, "
    "Tensor queries, Tensor? token_bias, Tensor? residual, Tensor? mask, Tensor? pixel_bias, "
    "Tensor? extra_values, Tensor tokens, Tensor lse, bool residual_is_input, int num_heads, bool[] needs",
    "Tensor dx, Tensor dkeys, Tensor dvalues, Tensor dqueries, Tensor dtoken_bias, Tensor dresidual, "
    "Tensor dpixel_bias, Tensor dextra_values"};

}  // namespace ops
}  // namespace vt

// do(name) for each.
#define VT_FOR_EACH_OP(do)                                                                   \
  do                                                                                         \
  (tokenize) do(tokenize_backward) do(project) do(project_backward) do(project_tokenize) do( \
      project_tokenize_backward)
