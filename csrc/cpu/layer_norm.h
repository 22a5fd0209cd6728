// LayerNorm without an affine part, over the channels of each pixel of a tile, in place; and its backward.
#pragma once

#include "call.h"
#include "memory.h"
#include "numbers.h"
#include "tiles.h"

namespace vt::VT_NAMESPACE {
namespace {

// A vector of a tile's elements as numbers of sums, and back. `count`: elements, of which others read as 0.
template <class N>
VT_INLINE Vec<typename N::Acc> read_numbers(const typename N::Elem* p, int64_t count) {
  using Acc = typename N::Acc;
  const auto all = [](const typename N::Elem* from) {
    if constexpr (N::group == 1)
      return load<Acc>(from);
    else
      return widen(from);
  };
  if (count >= lanes<Acc>) return all(p);
  typename N::Elem some[lanes<Acc>] = {};
  for (int64_t i = 0; i < count; i++) some[i] = p[i];
  return all(some);
}
template <class N>
VT_INLINE void write_numbers(typename N::Elem* p, Vec<typename N::Acc> v, int64_t count) {
  using Acc = typename N::Acc;
  typename N::Elem some[lanes<Acc>];
  typename N::Elem* to = count < lanes<Acc> ? some : p;
  if constexpr (N::group == 1)
    store<Acc>(to, v);
  else
    narrow(to, v);
  if (to == some)
    for (int64_t i = 0; i < count; i++) p[i] = some[i];
}

template <class N, bool pixels_innermost>
struct LayerNorm {
  using Acc = typename N::Acc;
  using Elem = typename N::Elem;
  static constexpr int64_t W = lanes<Acc>;
  bool on;
  Acc eps;
  int64_t channels;
  Acc* scales = nullptr;  // 1 / sqrt(variance + eps) of each pixel

  LayerNorm(const Call& call, Arena& arena)
      : on(call.layer_norm_eps >= 0), eps((Acc)call.layer_norm_eps), channels(call.channels) {
    if (on) scales = arena.take<Acc>(score_ld);
  }

  // Calls body(place of a vector's elements, their number, index of a sum) for the vectors of a group of
  // pixels: one pixel's channels, or the channels of pixels side by side. Several sums hide their latency.
  static constexpr int64_t sums = 4;
  template <class Body>
  VT_INLINE void for_each_vector(int64_t ld, int64_t pixel, int64_t pixels, Body body) const {
    const int64_t distance = pixels_innermost ? ld : W, whole = pixels_innermost ? channels : channels / W;
    int64_t at = pixels_innermost ? pixel : pixel * ld, v = 0;
    if (!pixels_innermost || pixels == W)
      for (; v + sums <= whole; v += sums) VT_UNROLL
    for (int64_t k = 0; k < sums; k++, at += distance) body(at, W, k);
    for (; v < whole; v++, at += distance) body(at, pixels_innermost ? pixels : W, (int64_t)0);
    if (!pixels_innermost && channels % W) body(at, channels % W, (int64_t)0);
  }
  // The mean over channels of each pixel of such a group, in every lane that needs it.
  VT_INLINE Vec<Acc> mean_of(const Vec<Acc> (&some)[sums]) const {
    const Vec<Acc> sum = (some[0] + some[1]) + (some[2] + some[3]);
    return (pixels_innermost ? sum : splat<Acc>(total<Acc>(sum))) / (Acc)channels;
  }
  static constexpr int64_t step = pixels_innermost ? W : 1;
  // 1 in the lanes that hold one of `count` numbers, else 0.
  static VT_INLINE Vec<Acc> present(int64_t count) {
    Vec<Acc> v{};
    for (int64_t i = 0; i < smaller(W, count); i++) v[i] = 1;
    return v;
  }

  void normalize(View<Elem> x, int64_t pixels) const {
    for (int64_t i = 0; i < pixels; i += step) {
      const int64_t count = smaller(step, pixels - i);
      Vec<Acc> sum[sums] = {}, squares[sums] = {}, scale;
      for_each_vector(x.ld, i, count,
                      [&](int64_t at, int64_t n, int64_t k) { sum[k] += read_numbers<N>(x.data + at, n); });
      const Vec<Acc> mean = mean_of(sum);
      for_each_vector(x.ld, i, count, [&](int64_t at, int64_t n, int64_t k) {
        Vec<Acc> off = read_numbers<N>(x.data + at, n) - mean;
        if (!pixels_innermost && n < W) off *= present(n);
        squares[k] += off * off;
      });
      const Vec<Acc> variance = mean_of(squares);
      if (pixels_innermost)
        for (int64_t j = 0; j < W; j++) scale[j] = 1 / __builtin_sqrt(variance[j] + eps);
      else
        scale = splat<Acc>(1 / __builtin_sqrt(variance[0] + eps));
      for (int64_t j = 0; j < count; j++) scales[i + j] = scale[j];
      for_each_vector(x.ld, i, count, [&](int64_t at, int64_t n, int64_t) {
        write_numbers<N>(x.data + at, (read_numbers<N>(x.data + at, n) - mean) * scale, n);
      });
    }
  }

  // grad: that of the normalised pixels -> that of the pixels: scale * (g - mean(g) - x^ * mean(g * x^)).
  // Both tiles are buffers, whose rows are the same distance apart.
  void differentiate(View<const Elem> normalized, View<Elem> grad, int64_t pixels) const {
    for (int64_t i = 0; i < pixels; i += step) {
      const int64_t count = smaller(step, pixels - i);
      Vec<Acc> sum[sums] = {}, inner[sums] = {}, scale = splat<Acc>(scales[i]);
      for_each_vector(grad.ld, i, count, [&](int64_t at, int64_t n, int64_t k) {
        const Vec<Acc> g = read_numbers<N>(grad.data + at, n);
        sum[k] += g, inner[k] += g * read_numbers<N>(normalized.data + at, n);
      });
      const Vec<Acc> mean = mean_of(sum), slope = mean_of(inner);
      if (pixels_innermost)
        for (int64_t j = 0; j < count; j++) scale[j] = scales[i + j];
      for_each_vector(grad.ld, i, count, [&](int64_t at, int64_t n, int64_t) {
        const Vec<Acc> g = read_numbers<N>(grad.data + at, n), hat = read_numbers<N>(normalized.data + at, n);
        write_numbers<N>(grad.data + at, scale * (g - mean - hat * slope), n);
      });
    }
  }
};

}  // namespace
}  // namespace vt::VT_NAMESPACE
