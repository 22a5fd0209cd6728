// project: tokens to pixels, in one read of the map and one write.
#pragma once

#include "operands.h"
#include "run.h"
#include "softmax.h"

namespace vt::VT_NAMESPACE {
namespace {

// The projecting half of a worker: keys, values and bias of a sample, and the weights of a tile.
template <class N, bool pixels_innermost>
struct Projector {
  using Acc = typename N::Acc;
  using Elem = typename N::Elem;
  const Call& call;
  int64_t num_heads, L, part;  // part: channels of a head's block of the result
  Bank<N, pixels_innermost> keys, values;
  Weights<N, pixels_innermost> weights;  // P
  Acc *token_bias = nullptr, *scratch;
  uint8_t* empty = nullptr;  // heads all of whose tokens are removed
  Current current;

  // `backward`: keys will be expanded, and values scored, too.
  Projector(const Call& call, bool backward, Arena& arena)
      : call(call),
        num_heads(call.num_heads),
        L(call.keys_per_head),
        part(call.out_channels / num_heads),
        keys(1, call.key_rows, call.channels, true, backward, arena),
        values(num_heads, L, part, backward, true, arena),
        weights(num_heads, L, true, arena) {
    if (call.token_bias.data)
      token_bias = arena.take<Acc>(call.key_rows), empty = arena.take<uint8_t>(num_heads);
    scratch = arena.take<Acc>(score_ld * rounded_up(call.key_rows, 16));
  }

  void begin(int64_t sample) {
    const Rows& bias = call.token_bias;
    if (current.is(sample, call.keys.shared && call.values.shared && (!token_bias || bias.shared))) return;
    if (token_bias)
      gather(bias.data, call.token_bias_dtype, sample * bias.batch, bias.column, token_bias, call.key_rows);
    for (int64_t h = 0; h < num_heads; h++) {
      if (token_bias) empty[h] = 1;
      for (int64_t l = 0; l < L; l++) {
        const int64_t row = h * L + l;
        const bool removed = token_bias && token_bias[row] == -(Acc)__builtin_inff();
        if (token_bias && !removed) empty[h] = 0;
        keys.set_row(0, row, call.keys, call.dtype, sample, row, 0, removed);
        values.set_row(h, l, call.values, call.dtype, sample, l, h * part, removed);
      }
    }
    keys.pack();
    values.pack();
  }

  // The weights P of a tile.
  void attend(PixelRange range, View<const Elem> x, int64_t ahead) {
    const int64_t n = range.count;
    score<N, pixels_innermost>(x, n, keys, 0, weights.row(0), scratch, ahead);
    fill_padding(weights.row(0), num_heads * L, n, (Acc)0);
    for (int64_t h = 0; h < num_heads; h++) {
      Acc* s = weights.row(h * L);
      if (token_bias)
        for (int64_t l = 0; l < L; l++)
          for (int64_t i = 0; i < n; i += lanes<Acc>)
            store<Acc>(s + l * score_ld + i, load<Acc>(s + l * score_ld + i) + token_bias[h * L + l]);
      softmax_over_rows(weights, h * L, L, n);
      if (!token_bias || !empty[h]) continue;
      for (int64_t l = 0; l < L; l++)
        for (int64_t i = 0; i < rounded_up(n, 32); i++) s[l * score_ld + i] = 0;
      weights.round(h * L, L, n);
    }
  }

  // out = base + P values.
  void project(PixelRange range, View<const Elem> base, View<Elem> out, Storing storing,
               int64_t ahead) const {
    expand(weights, values, range.count, base, out, storing, ahead);
  }
};

// What the projected tokens are added to: the tile itself, the residual's tile, or nothing.
template <class N, bool pixels_innermost, class Tile>
Tile residual_of(const Call& call, const TiledMap<N, pixels_innermost>& residual, Tile tile, PixelRange range,
                 const uint8_t* valid) {
  if (call.residual_is_input) return tile;
  return call.residual.data ? residual.read(range, valid) : Tile{nullptr, 0};
}

struct NoPlan {
  NoPlan(const Call&, const Split&, Arena&) {}
  void finish(const Host&, int64_t) const {}
};

template <class N, bool pixels_innermost>
struct ProjectWorker {
  using Elem = typename N::Elem;
  const Call& call;
  TiledMap<N, pixels_innermost> x, residual, map;
  Projector<N, pixels_innermost> projector;
  Storing storing;

  ProjectWorker(const Call& call, const Split& split, const NoPlan&, Arena& arena)
      : call(call),
        x(call.x, Use::read, call, call.channels),
        residual(call.residual, Use::read, call, call.out_channels),
        map(call.map, Use::write, call, call.out_channels),
        projector(call, false, arena),
        storing(storing_of(map, projector.part, call, split)) {
    for (auto* each : {&x, &residual, &map}) each->take_buffer_if_needed(arena, split.tile);
  }
  void begin(int64_t sample) { projector.begin(sample); }
  void tile(PixelRange range, Place next) {
    const View<const Elem> tile = x.read(range, nullptr);
    projector.attend(range, tile, x.ahead(range, next));
    const View<const Elem> base = residual_of(call, residual, tile, range, nullptr);
    projector.project(range, base, map.target(range), storing,
                      call.residual_is_input ? x.ahead(range, next) : 0);
    map.write(range);
  }
  void end_chunk(int64_t, int64_t, int64_t) {}
  void end_unit(int64_t) {}
};

template <class N, bool pixels_innermost>
void project(const Call& call, const Host& host) {
  const Split split =
      split_of<N, pixels_innermost>(call, larger(call.channels, call.out_channels), 4 * call.key_rows);
  run<NoPlan, ProjectWorker<N, pixels_innermost>>(
      call, split, call.batch * call.pixels * call.key_rows * (call.channels + call.out_channels), host);
}

}  // namespace
}  // namespace vt::VT_NAMESPACE
