// project: tokens to pixels, in one read of the map and one write; and its backward, in one read of the map
// and of the result's gradient G.
//
// With dP = G values^T: dS = P * (dP - rowsum(P * dP)), dx = [G if the residual is x] + dS keys,
// dkeys = dS^T x, dvalues = P^T G, dtoken_bias = column sums of dS. Where P = exp(S), dS = P * dP; where
// P = S, dS = dP.
#pragma once

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
  int64_t num_heads, L, part;              // part: channels that a matrix of values writes
  Bank<N, pixels_innermost> keys, values;  // a matrix for each block of channels
  Weights<N, pixels_innermost> weights;    // P
  RowBias<Acc> bias;
  Acc* scratch;
  Current current;

  // `backward`: keys will be expanded, and values scored, too.
  Projector(const Call& call, bool backward, Arena& arena)
      : call(call),
        num_heads(call.num_heads),
        L(call.keys_per_head),
        part(call.out_channels / call.value_blocks),
        keys(call.key_blocks, call.keys.data ? call.key_rows / call.key_blocks : 0,
             call.channels / call.key_blocks, true, backward, arena),
        values(call.value_blocks, call.key_rows / call.value_blocks, part, backward, true, arena),
        weights(values.count, values.rows, true, arena),
        bias(call.token_bias, call.token_bias_dtype, call.key_rows, L, arena) {
    scratch = arena.take<Acc>(score_ld * rounded_up(call.key_rows, 16));
  }

  void begin(int64_t sample) {
    if (current.is(sample, (!call.keys.data || call.keys.shared) && call.values.shared && bias.shared()))
      return;
    bias.read(sample);
    const auto removed = [&](int64_t row) { return bias.removed(row); };
    if (call.keys.data) keys.set_rows(0, keys.rows, call.keys, call.dtype, sample, keys.rows, 0, removed);
    values.set_rows(0, values.rows, call.values, call.dtype, sample, 0, part, removed);
    keys.pack();
    values.pack();
  }

  // The weights P of a tile.
  void attend(PixelRange range, View<const Elem> x, int64_t ahead) {
    const int64_t n = range.count;
    const int64_t of_block = num_heads * L / keys.count;
    for (int64_t block = 0; block < keys.count; block++)
      score_block(call, range, x, keys, block, of_block, weights.row(block * of_block), scratch, bias, ahead);
    weigh(call.spreading, call.scores.data, weights, 0, num_heads * L, n, bias, 0);
  }

  // out = base + P values. `ahead`: in the base, as scores left it.
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
    projector.attend(range, tile, x.ahead(tile, range, next));
    const View<const Elem> base = residual_of(call, residual, tile, range, nullptr);
    projector.project(range, base, map.target(range), storing,
                      call.residual_is_input ? x.ahead(tile, range, next) : 0);
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
      call, split, all_pixels(call) * call.key_rows * (call.channels + call.out_channels), host);
}

template <class N>
struct ProjectBackwardPlan {
  using Acc = typename N::Acc;
  const Split& split;
  Sink<Acc> dkeys, dvalues, dtoken_bias;

  ProjectBackwardPlan(const Call& call, const Split& split, Arena& arena)
      : split(split),
        dkeys(call.dkeys, call.keys.shared, call.key_rows * (call.channels / call.key_blocks), split, arena),
        dvalues(call.dvalues, call.values.shared, call.key_rows / call.value_blocks * call.out_channels,
                split, arena),
        dtoken_bias(call.dtoken_bias, call.token_bias.shared, call.key_rows, split, arena) {}

  void finish(const Host& host, int64_t threads) const {
    for (auto* each : {&dkeys, &dvalues, &dtoken_bias}) each->sum_up(split, host, threads);
  }
};

// The projecting half of a backward: a Projector, and the sums of its operands' gradients.
template <class N, bool pixels_innermost>
struct ProjectorBackward {
  using Acc = typename N::Acc;
  using Elem = typename N::Elem;
  const Call& call;
  const ProjectBackwardPlan<N>& plan;
  Projector<N, pixels_innermost> projector;
  int64_t num_heads, L, part, rows;  // rows: num_heads * L
  const Bank<N, pixels_innermost>&keys, &values;
  Weights<N, pixels_innermost> grads;  // dP, then dS
  Sums<N, pixels_innermost> dkeys, dvalues;
  Acc *dtoken_bias = nullptr, *own_dkeys, *own_dvalues, *own_dtoken_bias;  // own: see Sink
  bool fresh_token_bias = true;

  ProjectorBackward(const Call& call, const ProjectBackwardPlan<N>& plan, Arena& arena)
      : call(call),
        plan(plan),
        projector(call, true, arena),
        num_heads(call.num_heads),
        L(call.keys_per_head),
        part(projector.part),
        rows(call.key_rows),
        keys(projector.keys),
        values(projector.values),
        grads(keys.count, rows / keys.count, true, arena) {
    if (call.dkeys) dkeys = Sums<N, pixels_innermost>(keys.count, keys.rows, keys.depth, arena);
    if (call.dvalues) dvalues = Sums<N, pixels_innermost>(values.count, values.rows, part, arena);
    if (call.dtoken_bias) dtoken_bias = arena.take<Acc>(rows);
    own_dkeys = plan.dkeys.take_own(arena), own_dvalues = plan.dvalues.take_own(arena);
    own_dtoken_bias = plan.dtoken_bias.take_own(arena);
  }

  // Computes dS of a tile from its P, its pixels x and the gradient G of its results, and adds to the
  // operands' gradients.
  void add(PixelRange range, View<const Elem> x, View<const Elem> grad, int64_t ahead, int64_t grad_ahead) {
    const int64_t n = range.count;
    for (int64_t block = 0; block < values.count; block++) {
      const View<const Elem> part_of_grad = grad.template from_channel<pixels_innermost>(block * part);
      const int64_t first = block * values.rows;
      score<N, pixels_innermost>(part_of_grad, n, values, block, grads.row(first), projector.scratch,
                                 grad_ahead);
      fill_padding(grads.row(first), values.rows, n, (Acc)0);
      for (int64_t row = first; row < first + values.rows; row += L)
        weigh_backward<false>(call.spreading, projector.weights.row(row), grads.row(row), L, n,
                              (Acc*)nullptr);
      if (call.dvalues)
        dvalues.add(block, part_of_grad, n, projector.weights.for_pool(first, values.rows, n), nullptr,
                    grad_ahead);
    }
    grads.round(0, rows, n);
    if (call.dscores.data) put_score_grads(call, range, 0, rows, grads.row(0));
    for (int64_t block = 0; call.dkeys && block < keys.count; block++)
      dkeys.add(block, x.template from_channel<pixels_innermost>(block * keys.depth), n,
                grads.for_pool(block * keys.rows, keys.rows, n), nullptr, ahead);
    if (dtoken_bias) sum_rows(grads.row(0), rows, n, dtoken_bias, fresh_token_bias);
    dkeys.fresh = dvalues.fresh = fresh_token_bias = false;
  }

  // out = base + dS keys: the gradient of x in a tile.
  void grad_x(PixelRange range, View<const Elem> base, View<Elem> out, Storing storing) const {
    expand(grads, keys, range.count, base, out, storing, 0);
  }

  // Writes the sums of one sample's chunk (shared = false), or of a whole unit.
  void emit(bool shared, int64_t unit, int64_t sample, int64_t chunk) {
    if (call.dkeys && plan.dkeys.shared == shared) {
      plan.dkeys.put(unit, sample, chunk, own_dkeys, [&](Acc* out) {
        for (int64_t block = 0; block < keys.count; block++)
          dkeys.emit(block, out + block * keys.rows * keys.depth, keys.depth, nullptr);
      });
      dkeys.fresh = true;
    }
    if (call.dvalues && plan.dvalues.shared == shared) {
      plan.dvalues.put(unit, sample, chunk, own_dvalues, [&](Acc* out) {
        for (int64_t block = 0; block < values.count; block++)
          dvalues.emit(block, out + block * part, call.out_channels, nullptr);
      });
      dvalues.fresh = true;
    }
    if (dtoken_bias && plan.dtoken_bias.shared == shared) {
      plan.dtoken_bias.put(unit, sample, chunk, own_dtoken_bias, [&](Acc* out) {
        for (int64_t l = 0; l < rows; l++) out[l] = fresh_token_bias ? 0 : dtoken_bias[l];
      });
      fresh_token_bias = true;
    }
  }
};

template <class N, bool pixels_innermost>
struct ProjectBackwardWorker {
  using Elem = typename N::Elem;
  const Call& call;
  TiledMap<N, pixels_innermost> x, grad, dx;
  ProjectorBackward<N, pixels_innermost> backward;
  Storing storing;

  ProjectBackwardWorker(const Call& call, const Split& split, const ProjectBackwardPlan<N>& plan,
                        Arena& arena)
      : call(call),
        x(call.x, Use::read, call, call.channels),
        grad(call.grad_map, Use::read, call, call.out_channels),
        dx(call.dx, Use::write, call, call.channels),
        backward(call, plan, arena),
        storing(storing_of(dx, backward.keys.depth, call, split)) {
    for (auto* each : {&x, &grad, &dx}) each->take_buffer_if_needed(arena, split.tile);
  }
  void begin(int64_t sample) { backward.projector.begin(sample); }
  void tile(PixelRange range, Place next) {
    const View<const Elem> tile = x.read(range, nullptr), grads = grad.read(range, nullptr);
    backward.projector.attend(range, tile, x.ahead(tile, range, next));
    backward.add(range, tile, grads, x.ahead(tile, range, next), grad.ahead(grads, range, next));
    if (!call.dx.data) return;
    backward.grad_x(range, call.residual_is_input ? grads : View<const Elem>{nullptr, 0}, dx.target(range),
                    storing);
    dx.write(range);
  }
  void end_chunk(int64_t unit, int64_t sample, int64_t chunk) { backward.emit(false, unit, sample, chunk); }
  void end_unit(int64_t unit) { backward.emit(true, unit, 0, 0); }
};

template <class N, bool pixels_innermost>
void project_backward(const Call& call, const Host& host) {
  const int64_t width = call.channels + call.out_channels;
  // With many rows and channels, their sums pass through the cache once a tile: fewer, larger tiles then.
  const int64_t fewest = pixels_innermost ? 128 : 64;
  const Split split = split_of<N, pixels_innermost>(call, width, 16 * call.key_rows, fewest);
  run<ProjectBackwardPlan<N>, ProjectBackwardWorker<N, pixels_innermost>>(
      call, split, 3 * all_pixels(call) * call.key_rows * width, host);
}

}  // namespace
}  // namespace vt::VT_NAMESPACE
