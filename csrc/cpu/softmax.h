// The operations on scores between the products. Scores are rows [l][pixel], score_ld apart.
#pragma once

#include "call.h"
#include "operands.h"
#include "tiles.h"

namespace vt::VT_NAMESPACE {
namespace {

// The mask and the pixel bias of a tile. A pixel is valid unless it is masked or its bias is -inf.
template <class N>
struct PixelOptions {
  using Acc = typename N::Acc;
  const Call& call;
  uint8_t* valid = nullptr;
  Acc* bias = nullptr;
  int64_t valid_count = 0;
  bool any;  // whether there is a mask or a bias

  PixelOptions(const Call& call, Arena& arena) : call(call), any(call.mask.data || call.pixel_bias.data) {
    if (any) valid = arena.take<uint8_t>(most_pixels);
    if (call.pixel_bias.data) bias = arena.take<Acc>(score_ld);
  }

  // Reads those of a tile; returns a byte for each pixel, or nullptr if all are valid.
  const uint8_t* read(PixelRange range) {
    valid_count = range.count;
    if (!any) return nullptr;
    const int64_t n = range.count;
    for (int64_t i = 0; i < n; i++) valid[i] = 1;
    const Pixels &mask = call.mask, &given = call.pixel_bias;
    if (mask.data)
      for_each_run(mask, call.width, range, [&](int64_t first, int64_t offset, int64_t count) {
        const uint8_t* from = (const uint8_t*)mask.data + offset;
        for (int64_t i = 0; i < count; i++) valid[first + i] = from[i * mask.column] != 0;
      });
    if (given.data) {
      for_each_run(given, call.width, range, [&](int64_t first, int64_t offset, int64_t count) {
        gather(given.data, call.pixel_bias_dtype, offset, given.column, bias + first, count);
      });
      for (int64_t i = 0; i < n; i++)
        if (bias[i] == -(Acc)__builtin_inff()) valid[i] = 0, bias[i] = 0;
      for (int64_t i = n; i < rounded_up(n, lanes<Acc>); i++) bias[i] = 0;
    }
    valid_count = 0;
    for (int64_t i = 0; i < n; i++) valid_count += valid[i];
    return valid_count == n ? nullptr : valid;
  }
};

template <class Acc>
void fill_padding(Acc* scores, int64_t rows, int64_t pixels, Acc value) {
  const int64_t end = rounded_up(pixels, 32);
  for (int64_t l = 0; l < rows; l++)
    for (int64_t i = pixels; i < end; i++) scores[l * score_ld + i] = value;
}
template <class Acc>
void fill_invalid(Acc* scores, int64_t rows, int64_t pixels, const uint8_t* valid, Acc value) {
  for (int64_t i = 0; i < pixels; i++)
    if (!valid[i])
      for (int64_t l = 0; l < rows; l++) scores[l * score_ld + i] = value;
}
// scores[l] += others[l], which are `ld` apart; 0: one row for all.
template <class Acc>
void add_rows(Acc* scores, int64_t rows, int64_t pixels, const Acc* others, int64_t ld) {
  for (int64_t l = 0; l < rows; l++, scores += score_ld, others += ld)
    for (int64_t i = 0; i < pixels; i += lanes<Acc>)
      store<Acc>(scores + i, load<Acc>(scores + i) + load<Acc>(others + i));
}

// The bias of each row, in heads of L. A row whose bias is -inf is removed.
template <class Acc>
struct RowBias {
  const Rows* given = nullptr;
  Dtype dtype = Dtype::float32;
  int64_t rows = 0, L = 1;
  Acc* data = nullptr;       // absent without a bias
  uint8_t* empty = nullptr;  // heads all of whose rows are removed

  RowBias(const Rows& given, Dtype dtype, int64_t rows, int64_t L, Arena& arena)
      : given(&given), dtype(dtype), rows(rows), L(L) {
    if (given.data) data = arena.take<Acc>(rows), empty = arena.take<uint8_t>(rows / L);
  }
  bool shared() const { return !given->data || given->shared; }
  void read(int64_t sample) const {
    if (!data) return;
    gather(given->data, dtype, sample * given->batch, given->column, data, rows);
    for (int64_t h = 0; h < rows / L; h++) {
      empty[h] = 1;
      for (int64_t l = 0; l < L; l++) empty[h] &= removed(h * L + l);
    }
  }
  bool removed(int64_t row) const { return data && data[row] == -(Acc)__builtin_inff(); }
};

// The logits that a call gives, for a tile: adds them to `rows` rows from row `first` on, but for those that
// a bias removes.
template <class Acc>
void add_given_scores(const Call& call, PixelRange range, int64_t first, int64_t rows, Acc* scores,
                      const RowBias<Acc>& bias) {
  const Map& given = call.scores;
  for (int64_t l = 0; l < rows; l++, scores += score_ld) {
    if (bias.removed(first + l)) continue;
    Acc some[score_ld];
    for_each_run(given, call.width, range, [&](int64_t begin, int64_t offset, int64_t count) {
      gather(given.data, call.scores_dtype, offset + (first + l) * given.channel, given.column, some + begin,
             count);
    });
    for (int64_t i = 0; i < range.count; i++) scores[i] += some[i];
  }
}
// Writes their gradient.
template <class Acc>
void put_score_grads(const Call& call, PixelRange range, int64_t first, int64_t rows, const Acc* grads) {
  const Map& to = call.dscores;
  for (int64_t l = 0; l < rows; l++, grads += score_ld)
    for_each_run(to, call.width, range, [&](int64_t begin, int64_t offset, int64_t count) {
      scatter(grads + begin, count, to.data, call.scores_dtype, offset + (first + l) * to.channel, to.column);
    });
}

// The logits of block h, without biases: products with `rows` of the bank, then the given scores,
// which are added to the first L rows.
template <class N, bool pixels_innermost>
void score_block(const Call& call, PixelRange range, View<const typename N::Elem> x,
                 const Bank<N, pixels_innermost>& rows, int64_t h, int64_t L, typename N::Acc* scores,
                 typename N::Acc* scratch, const RowBias<typename N::Acc>& bias, int64_t ahead) {
  if (rows.rows > 0)
    score<N, pixels_innermost>(x.template from_channel<pixels_innermost>(h * rows.depth), range.count, rows,
                               h, scores, scratch, ahead);
  else
    for (int64_t l = 0; l < L; l++)
      for (int64_t i = 0; i < range.count; i++) scores[l * score_ld + i] = 0;
  if (call.scores.data) add_given_scores(call, range, h * L, L, scores, bias);
}

// sums[l] (+)= the sum of a row over the pixels of a tile.
template <class Acc>
void sum_rows(const Acc* rows, int64_t count, int64_t pixels, Acc* sums, bool fresh) {
  for (int64_t l = 0; l < count; l++, rows += score_ld) {
    Vec<Acc> sum{};
    for (int64_t i = 0; i < pixels; i += lanes<Acc>) sum += load<Acc>(rows + i);
    sums[l] = (fresh ? 0 : sums[l]) + total<Acc>(sum);
  }
}

// The running softmax over pixels, for each row of scores.
template <class Acc>
struct Running {
  Acc* highest = nullptr;  // the highest score so far; NaN if any was NaN
  Acc* sum = nullptr;      // of exp(score - highest)
  Acc* pooled = nullptr;   // the same sum of the rounded weights that pooling uses
  Acc* scale = nullptr;    // the factor by which the last tile rescaled earlier sums
  int64_t rows = 0;

  Running() = default;
  Running(int64_t rows, Arena& arena) : rows(rows) {
    const int64_t room = rounded_up(rows, 16) + 16;
    highest = arena.take<Acc>(room), sum = arena.take<Acc>(room);
    pooled = arena.take<Acc>(room), scale = arena.take<Acc>(room);
  }
  void clear() const {
    for (int64_t l = 0; l < rounded_up(rows, 16) + 16; l++)
      highest[l] = -(Acc)__builtin_inff(), sum[l] = 0, pooled[l] = 0, scale[l] = 0;
  }
};

// Turns rows [first, ..) of weights from scores into exp(score - highest so far), with padding of 0, and
// updates the sums. Where products take rounded weights, only those are stored. Up to a vector's lanes of
// rows are reduced together, as reducing one waits for each step.
template <class N, bool pixels_innermost>
void run_softmax(const Running<typename N::Acc>& running, const Weights<N, pixels_innermost>& weights,
                 int64_t first, int64_t rows, int64_t pixels) {
  using Acc = typename N::Acc;
  constexpr int64_t W = lanes<Acc>;
  const Acc infinity = (Acc)__builtin_inff();
  fill_padding(weights.row(first), rows, pixels, -infinity);
  for (int64_t l = first; l < first + rows; l += W) {
    const int64_t count = smaller<int64_t>(W, first + rows - l);
    Vec<Acc> some[W], pooled[W], unordered{};
    for (int64_t r = 0; r < W; r++) {
      some[r] = splat(-infinity);
      for (int64_t i = 0; r < count && i < pixels; i += W) {
        const Vec<Acc> v = load<Acc>(weights.row(l + r) + i);
        some[r] = max_of<Acc>(v, some[r]);
        unordered = v == v ? unordered : v;
      }
    }
    const Vec<Acc> before = load_part(running.highest + l, count);
    Vec<Acc> now = max_of<Acc>(highest_each<Acc>(some), before);  // NaN if `before` is
    const Acc nan = total<Acc>(unordered);                        // NaN if any score was, else 0
    if (nan != nan)
      for (int64_t r = 0; r < count; r++)
        for (int64_t i = 0; i < pixels; i++)
          if (const Acc score = weights.row(l + r)[i]; score != score) now[r] = score;
    // Before the first valid pixel, -inf - -inf would be NaN.
    const Vec<Acc> base = now == -infinity ? Vec<Acc>{} : now;
    for (int64_t r = 0; r < W; r++) {
      Vec<Acc> sum[2] = {}, rounded[2] = {};
      for (int64_t i = 0; r < count && i < pixels; i += 2 * W) {
        Acc* s = weights.row(l + r) + i;
        Vec<Acc> e[2];
        VT_UNROLL
        for (int v = 0; v < 2; v++) {
          e[v] = exponential(load<Acc>(s + v * W) - base[r]);
          sum[v] += e[v];
          if (N::group == 1) store<Acc>(s + v * W, e[v]);
        }
        if (N::group > 1) {
          weights.round_to(l + r, i, e);
          rounded[0] += e[0], rounded[1] += e[1];
        }
      }
      some[r] = sum[0] + sum[1], pooled[r] = rounded[0] + rounded[1];
    }
    const Vec<Acc> scale = exponential(before - base);
    const Vec<Acc> sum = load_part(running.sum + l, count) * scale + total_each<Acc>(some);
    store_part(running.highest + l, now, count);
    store_part(running.scale + l, scale, count);
    store_part(running.sum + l, sum, count);
    // Divided by the sum of the rounded weights, they sum to 1 exactly.
    store_part(running.pooled + l,
               N::group == 1 ? sum : load_part(running.pooled + l, count) * scale + total_each<Acc>(pooled),
               count);
  }
}

template <class Acc>
VT_INLINE Acc log_sum(Acc highest, Acc sum) {
  // inf - inf is NaN in the sum, but the sum itself is infinite.
  return highest == (Acc)__builtin_inff() ? highest : __builtin_log(sum) + highest;
}

// The softmax over rows [first, first + rows) of each pixel, in place, and rounded for products. Where all
// are -inf, weights are NaN, as in torch; 0 if `partial`.
template <bool partial, class N, bool pixels_innermost>
void softmax_over_rows(const Weights<N, pixels_innermost>& weights, int64_t first, int64_t rows,
                       int64_t pixels) {
  using Acc = typename N::Acc;
  constexpr int64_t W = lanes<Acc>;
  for (int64_t i = 0; i < pixels; i += 2 * W) {
    Acc* s = weights.row(first) + i;
    Vec<Acc> top[2] = {load<Acc>(s), load<Acc>(s + W)}, sum[2] = {};
    for (int64_t l = 1; l < rows; l++) VT_UNROLL
    for (int v = 0; v < 2; v++) top[v] = max_of<Acc>(load<Acc>(s + l * score_ld + v * W), top[v]);
    if constexpr (partial) VT_UNROLL
    for (int v = 0; v < 2; v++) top[v] = top[v] == -(Acc)__builtin_inff() ? Vec<Acc>{} : top[v];
    for (int64_t l = 0; l < rows; l++) VT_UNROLL
    for (int v = 0; v < 2; v++) {
      const Vec<Acc> e = exponential(load<Acc>(s + l * score_ld + v * W) - top[v]);
      store<Acc>(s + l * score_ld + v * W, e);
      sum[v] += e;
    }
    Vec<Acc> inverse[2] = {(Acc)1 / sum[0], (Acc)1 / sum[1]};
    if constexpr (partial) VT_UNROLL
    for (int v = 0; v < 2; v++) inverse[v] = sum[v] == (Acc)0 ? Vec<Acc>{} : inverse[v];
    for (int64_t l = 0; l < rows; l++) {
      Vec<Acc> p[2];
      VT_UNROLL
      for (int v = 0; v < 2; v++) {
        p[v] = load<Acc>(s + l * score_ld + v * W) * inverse[v];
        store<Acc>(s + l * score_ld + v * W, p[v]);
      }
      weights.round_to(first + l, i, p);
    }
  }
}

template <class N, bool pixels_innermost>
void clear_rows(const Weights<N, pixels_innermost>& weights, int64_t first, int64_t rows, int64_t pixels) {
  for (int64_t l = first; l < first + rows; l++)
    for (int64_t i = 0; i < rounded_up(pixels, 32); i++) weights.row(l)[i] = 0;
  weights.round(first, rows, pixels);
}

// Logits of rows [first, first + rows), which are whole heads, -> weights that need no sum over pixels, in
// place, and rounded for products. Their biases begin with row `first_bias`. `partial`: scores were given,
// any of which may be -inf.
template <class N, bool pixels_innermost>
void weigh(Normalize normalize, bool partial, const Weights<N, pixels_innermost>& weights, int64_t first,
           int64_t rows, int64_t pixels, const RowBias<typename N::Acc>& bias, int64_t first_bias) {
  using Acc = typename N::Acc;
  const int64_t L = bias.L;
  fill_padding(weights.row(first), rows, pixels, (Acc)0);
  for (int64_t l = 0; bias.data && l < rows; l++) {
    Acc* s = weights.row(first + l);
    for (int64_t i = 0; i < pixels; i += lanes<Acc>)
      store<Acc>(s + i, load<Acc>(s + i) + bias.data[first_bias + l]);
  }
  if (normalize == Normalize::tokens) {
    for (int64_t l = 0; l < rows; l += L) {
      if (partial)
        softmax_over_rows<true>(weights, first + l, L, pixels);
      else
        softmax_over_rows<false>(weights, first + l, L, pixels);
      if (bias.data && bias.empty[(first_bias + l) / L]) clear_rows(weights, first + l, L, pixels);
    }
    return;
  }
  for (int64_t l = 0; l < rows; l++) {
    Acc* s = weights.row(first + l);
    for (int64_t i = 0; normalize == Normalize::exp && i < pixels; i += lanes<Acc>)
      store<Acc>(s + i, exponential(load<Acc>(s + i)));
    if (bias.removed(first_bias + l)) clear_rows(weights, first + l, 1, pixels);
  }
  fill_padding(weights.row(first), rows, pixels, (Acc)0);
  weights.round(first, rows, pixels);
}

// The gradient of the logits of one head, after `weigh`: dS = W * (dW - sum of W * dW over the rows), W * dW
// or dW. It replaces dW in `grad`. In the order of pool_backward, `pools`, dW = grad - delta, dS replaces the
// weights, and these replace `grad`.
template <bool pools, class Acc>
void weigh_backward(Normalize normalize, Acc* weights, Acc* grad, int64_t rows, int64_t pixels,
                    const Acc* delta) {
  if (!pools && normalize == Normalize::none) return;
  const auto grad_of = [&](int64_t l, int64_t i) {
    if constexpr (pools)
      return load<Acc>(grad + l * score_ld + i) - delta[l];
    else
      return load<Acc>(grad + l * score_ld + i);
  };
  for (int64_t i = 0; i < pixels; i += lanes<Acc>) {
    Vec<Acc> inner{};
    if (normalize == Normalize::tokens)
      for (int64_t l = 0; l < rows; l++) inner += load<Acc>(weights + l * score_ld + i) * grad_of(l, i);
    for (int64_t l = 0; l < rows; l++) {
      Acc *w = weights + l * score_ld + i, *g = grad + l * score_ld + i;
      const Vec<Acc> held = load<Acc>(w), dw = grad_of(l, i);
      store<Acc>(pools ? w : g, pools && normalize == Normalize::none ? dw : held * (dw - inner));
      if (pools) store<Acc>(g, held);
    }
  }
}

// scores -> dS, grad: dA -> A, of a softmax over pixels: A = exp(score - lse), dS = A * (dA - delta). This is
// the order of the queries and the tokens' gradients that dS and A are multiplied with.
template <class Acc>
void pool_backward(Acc* scores, Acc* grad, int64_t rows, int64_t pixels, const Acc* lse, const Acc* delta) {
  for (int64_t l = 0; l < rows; l++)
    for (int64_t i = 0; i < pixels; i += lanes<Acc>) {
      Acc *s = scores + l * score_ld + i, *g = grad + l * score_ld + i;
      const Vec<Acc> a = exponential(load<Acc>(s) - lse[l]);
      store<Acc>(s, a * (load<Acc>(g) - delta[l]));
      store<Acc>(g, a);
    }
  fill_padding(scores, rows, pixels, (Acc)0);
  fill_padding(grad, rows, pixels, (Acc)0);
}

}  // namespace
}  // namespace vt::VT_NAMESPACE
