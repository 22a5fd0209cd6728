// Checks of an op's arguments in one pass. What passes in vt_fast/checks passes here, and vice versa:
// Python calls the op at once, and asks it for a better message if it is refused.
#pragma once

#include "target.h"

#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/call.h"
#include "calls.h"
#include "results.h"

namespace vt {
namespace {

void require(bool met, const char* name, const char* must) {
  if (!met) throw std::invalid_argument("`" + std::string(name) + "` must " + must);
}

// A backend does not take a call; another may.
class UnsupportedError : public std::invalid_argument {
 public:
  UnsupportedError(const char* backend, const std::string& reason)
      : std::invalid_argument("`backend=\"" + std::string(backend) + "\"` cannot do this call: " + reason) {}
};

// What a backend does not take, each after its name.
void refuse(const char* backend, std::initializer_list<std::pair<const char*, bool>> given) {
  for (const auto& [what, is_given] : given)
    if (is_given) throw UnsupportedError(backend, "it does not take " + std::string(what));
}

void check_defined(const Tensor& value, const char* name) { require(value.defined(), name, "be a tensor"); }

// The offsets of bags, whose x is (total, C). The kernels rely on it, so the numbers are checked, too.
void check_bags(const Tensor& x, const Tensor& offsets) {
  check_defined(x, "x");
  check_defined(offsets, "offsets");
  require(x.dim() == 2 && x.size(1) > 0, "x", "be (total, C) where `offsets` are given");
  const bool wide = dtype_code(offsets) == aoti_torch_dtype_int64();
  require(
      offsets.dim() == 1 && offsets.size(0) > 0 && (wide || dtype_code(offsets) == aoti_torch_dtype_int32()),
      "offsets", "be (B + 1,) of int32 or int64");
  const void* data = read(offsets);
  const int64_t count = offsets.size(0), stride = offsets.stride(0);
  const auto bound = [&](int64_t i) -> int64_t {
    return wide ? static_cast<const int64_t*>(data)[i * stride]
                : static_cast<const int32_t*>(data)[i * stride];
  };
  bool fits = bound(0) == 0 && bound(count - 1) == x.size(0);
  for (int64_t i = 1; i < count; ++i) fits = fits && bound(i) >= bound(i - 1);
  if (fits) return;
  // Python has no better message where it traces the call, or a compiled program makes it.
  std::string given;
  for (int64_t i = 0; i < count; ++i) given += (i ? ", " : "") + std::to_string(bound(i));
  throw std::invalid_argument("`offsets` must start at 0, not fall, and end at the number of pixels " +
                              std::to_string(x.size(0)) + ", got [" + given + "]");
}

void check_map(const Tensor& x, const Optional& offsets = {}) {
  if (offsets) return check_bags(x, *offsets);
  check_defined(x, "x");
  const auto sizes = x.sizes();
  require(sizes.size() == 3 || sizes.size() == 4, "x", "be (B, N, C) or (B, C, H, W)");
  for (size_t dim = 1; dim < sizes.size(); ++dim)
    require(sizes[dim] > 0, "x", "have no size of 0 but the batch");
}

void check_dtype(const Tensor& value, const char* name, const Tensor& x) {
  check_defined(value, name);
  require(dtype_code(value) == dtype_code(x), name, "have the dtype of `x`");
}

// Of tensors that repeat one number in memory: workspace for more could not be counted in 64 bits.
void check_size(const Tensor& value, const char* name) {
  constexpr int64_t most = int64_t{1} << 44;
  require(value.numel() <= most, name, "have at most 2^44 elements");
}

// (R, width) or (B, R, width), R a multiple of `multiple` and not 0; or of the other width.
void check_rows(const Tensor& value, const char* name, const Tensor& x, int64_t batch, int64_t width,
                int64_t multiple, int64_t other_width = -1) {
  check_dtype(value, name, x);
  check_size(value, name);
  const auto sizes = value.sizes();
  const size_t dim = sizes.size();
  require((dim == 2 || (dim == 3 && sizes[0] == batch)) &&
              (sizes[dim - 1] == width || sizes[dim - 1] == other_width) && sizes[dim - 2] > 0 &&
              sizes[dim - 2] % multiple == 0,
          name,
          "be (L, C) or (B, L, C), of the same B and C as `x` or C / num_heads, L a multiple of num_heads");
}

// What may have the dtype of sums as well.
void check_sum_dtype(const Tensor& value, const char* name, const Tensor& x) {
  check_defined(value, name);
  const int32_t dtype = dtype_code(value), of_x = dtype_code(x);
  require(dtype == of_x || dtype == compute_dtype(of_x), name, "have the dtype of `x`, or that of its sums");
}

// (B, N), or (B, H, W) for a (B, C, H, W) map.
void check_pixels(const Tensor& value, const char* name, const Call& call, bool flat) {
  const auto sizes = value.sizes();
  if (call.offsets) return require(sizes.size() == 1 && sizes[0] == call.pixels, name, "be (total,)");
  require((sizes.size() == 2 && sizes[0] == call.batch && sizes[1] == call.pixels) ||
              (!flat && sizes.size() == 3 && sizes[0] == call.batch && sizes[1] == call.height &&
               sizes[2] == call.width),
          name, "be (B, N), or (B, H, W) for a (B, C, H, W) map");
}

// A map like x, with these channels or any.
void check_like(const Optional& value, const char* name, const Tensor& x, int64_t channels = -1) {
  if (!value) return;
  check_dtype(*value, name, x);
  Sizes expected = sizes_of(x);
  const size_t dim = expected.size() == 3 ? 2 : 1;
  if (channels < 0 && value->dim() == x.dim()) channels = value->size(dim);
  expected[dim] = channels;
  require(channels > 0 && sizes_of(*value) == expected, name, "be a map like `x`");
}

// (B, R, N), or (B, R, H, W) for a (B, C, H, W) map.
void check_scores(const Optional& value, const Call& call, const Tensor& x, int64_t rows, int64_t num_heads) {
  if (!value) return;
  check_sum_dtype(*value, "scores", x);
  const Sizes sizes = sizes_of(*value);
  if (call.offsets)
    return require(rows > 0 && rows % num_heads == 0 && sizes == Sizes{rows, call.pixels}, "scores",
                   "be (num_heads * L, total)");
  require(rows > 0 && rows % num_heads == 0 &&
              (sizes == Sizes{call.batch, rows, call.pixels} ||
               (x.dim() == 4 && sizes == Sizes{call.batch, rows, call.height, call.width})),
          "scores", "be (B, num_heads * L, N), or (B, num_heads * L, H, W) for a (B, C, H, W) map");
}

// R of rows, or else of scores; 0 where these have too few dimensions.
int64_t rows_given(const Call& call, const Optional& rows, const Optional& scores) {
  if (rows) return row_count(*rows);
  const int64_t dim = call.offsets ? 0 : 1;
  return scores->dim() > dim ? scores->size(dim) : 0;
}

void check_normalize(const Text& normalize, const char* one, const char* other, const char* must) {
  require(!normalize || *normalize == one || *normalize == other, "normalize", must);
}

// (R,) or (B, R).
void check_row_bias(const Optional& value, const Tensor& x, int64_t batch, int64_t rows) {
  if (!value) return;
  check_sum_dtype(*value, "token_bias", x);
  const auto bias = value->sizes();
  require((bias.size() == 1 || (bias.size() == 2 && bias[0] == batch)) && bias[bias.size() - 1] == rows,
          "token_bias", "be (num_heads * L,) or (B, num_heads * L)");
}

// The operands of pooling; `channels` are those of the map that the queries see.
void check_pooling(const Call& call, const Tensor& x, int64_t channels, const Optional& queries,
                   const Optional& mask, const Optional& pixel_bias, const Optional& extra_values,
                   int64_t num_heads, const Optional& values = {}, const Optional& scores = {},
                   const Optional& token_bias = {}, const Text& normalize = "pixels",
                   const Real& layer_norm_eps = {}) {
  require(num_heads >= 1, "num_heads", "be at least 1");
  require(queries || scores, "queries", "be a tensor where `scores` are absent");
  if (queries)
    check_rows(*queries, "queries", x, call.batch, channels, num_heads,
               channels % num_heads == 0 ? channels / num_heads : -1);
  const bool flat = x.dim() == 3;
  require(!layer_norm_eps ||
              (std::isfinite(*layer_norm_eps) && *layer_norm_eps > 0 && !values && normalize == "pixels"),
          "layer_norm_eps", "be at least 0, without `values` and with a softmax over pixels");
  const int64_t rows = rows_given(call, queries, scores);
  check_scores(scores, call, x, rows, num_heads);
  check_row_bias(token_bias, x, call.batch, rows);
  if (values) {
    check_like(values, "values", x);
    const int64_t of_values = values->size(flat ? 2 : 1);
    require(of_values % blocks_seen(queries, channels, num_heads) == 0, "num_heads",
            "divide the channels of `values`");
  }
  if (mask) {
    require(dtype_code(*mask) == aoti_torch_dtype_bool(), "mask", "be a bool tensor");
    check_pixels(*mask, "mask", call, flat);
  }
  if (pixel_bias) {
    check_sum_dtype(*pixel_bias, "pixel_bias", x);
    check_pixels(*pixel_bias, "pixel_bias", call, flat);
  }
  if (extra_values) {
    check_dtype(*extra_values, "extra_values", x);
    const auto sizes = extra_values->sizes();
    require(num_heads == 1, "num_heads", "be 1 where `extra_values` is given");
    require(!call.offsets, "extra_values", "be absent where `offsets` are given");
    require(normalize == "pixels", "normalize", "be \"pixels\" where `extra_values` is given");
    require(sizes.size() == 2 && sizes[0] == call.pixels && sizes[1] > 0, "extra_values", "be (N, P)");
  }
}

// The operands of spreading.
void check_spreading(const Call& call, const Tensor& x, const Optional& keys, const Tensor& values,
                     const Optional& token_bias, const Optional& residual, bool residual_is_input,
                     int64_t num_heads, const Optional& scores = {}) {
  require(num_heads >= 1, "num_heads", "be at least 1");
  require(keys || scores, "keys", "be a tensor where `scores` are absent");
  if (keys)
    check_rows(*keys, "keys", x, call.batch, call.channels, num_heads,
               call.channels % num_heads == 0 ? call.channels / num_heads : -1);
  const int64_t rows = rows_given(call, keys, scores);
  check_scores(scores, call, x, rows, num_heads);
  check_dtype(values, "values", x);
  check_size(values, "values");
  const auto sizes = values.sizes();
  const size_t dim = sizes.size();
  require((dim == 2 || (dim == 3 && sizes[0] == call.batch)) && sizes[dim - 1] > 0 &&
              (sizes[dim - 2] == rows / num_heads || sizes[dim - 2] == rows),
          "values",
          "be (L, D) or (B, L, D) with the B of `x` and the L of `keys`, or have all rows of `keys`");
  require(sizes[dim - 2] == rows || sizes[dim - 1] % num_heads == 0, "num_heads",
          "divide the channels of `values`");
  check_row_bias(token_bias, x, call.batch, rows);
  check_like(residual, "residual", x, sizes[dim - 1]);
  require(!residual_is_input || (!residual && sizes[dim - 1] == call.channels), "residual",
          "be a map like `x`");
}

// What a backward gets: the gradients of a forward's results, and tokens and statistics themselves. `blocks`:
// blocks of channels that the rows see.
void check_pooling_grads(const Call& call, const Tensor& x, int64_t rows, int64_t blocks, int64_t channels,
                         const Optional& extra_values, const Tensor& grad_tokens, const Optional& grad_stats,
                         const Tensor& tokens, const Tensor& stats) {
  const int64_t extra = extra_values ? extra_values->size(1) : 0;
  check_sum_dtype(grad_tokens, "grad_tokens", x);
  check_sum_dtype(tokens, "tokens", x);
  check_sum_dtype(stats, "stats", x);
  if (grad_stats) check_sum_dtype(*grad_stats, "grad_stats", x);
  const Sizes of_tokens = {call.batch, rows / blocks, channels + extra}, of_stats = {call.batch, rows};
  require(sizes_of(grad_tokens) == of_tokens, "grad_tokens", "have the shape of the tokens");
  require(sizes_of(tokens) == of_tokens, "tokens", "have the shape of the forward's");
  require(!grad_stats || sizes_of(*grad_stats) == of_stats, "grad_stats", "have the shape of the statistics");
  require(sizes_of(stats) == of_stats, "stats", "have the shape of the forward's");
}

void check_needs(const std::vector<bool>& needs, size_t count) {
  require(needs.size() == count, "needs", "have one entry for each gradient");
}

}  // namespace
}  // namespace vt
