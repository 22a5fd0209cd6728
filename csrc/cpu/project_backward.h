// The backward of project: one read of the map and of its result's gradient G.
//
// With dP = G values^T: dS = P * (dP - rowsum(P * dP)), dx = [G if the residual is x] + dS keys,
// dkeys = dS^T x, dvalues = P^T G, dtoken_bias = column sums of dS.
#pragma once

#include "project.h"

namespace vt::VT_NAMESPACE {
namespace {

template <class N>
struct ProjectBackwardPlan {
  using Acc = typename N::Acc;
  const Split& split;
  Sink<Acc> dkeys, dvalues, dtoken_bias;

  ProjectBackwardPlan(const Call& call, const Split& split, Arena& arena)
      : split(split),
        dkeys(call.dkeys, call.keys.shared, call.key_rows * call.channels, split, arena),
        dvalues(call.dvalues, call.values.shared, call.keys_per_head * call.out_channels, split, arena),
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
  int64_t num_heads, L, part, rows;    // rows: num_heads * L
  Weights<N, pixels_innermost> grads;  // dP, then dS
  Sums<N, pixels_innermost> dkeys, dvalues;
  Acc* dtoken_bias = nullptr;
  bool fresh_token_bias = true;

  ProjectorBackward(const Call& call, const ProjectBackwardPlan<N>& plan, Arena& arena)
      : call(call),
        plan(plan),
        projector(call, true, arena),
        num_heads(call.num_heads),
        L(call.keys_per_head),
        part(projector.part),
        rows(call.key_rows),
        grads(1, rows, true, arena) {
    if (call.dkeys) dkeys = Sums<N, pixels_innermost>(1, rows, call.channels, arena);
    if (call.dvalues) dvalues = Sums<N, pixels_innermost>(num_heads, L, part, arena);
    if (call.dtoken_bias) dtoken_bias = arena.take<Acc>(rows);
  }

  // Computes dS of a tile from its P, its pixels x and the gradient G of its results, and adds to the
  // operands' gradients.
  void add(PixelRange range, View<const Elem> x, View<const Elem> grad, int64_t ahead, int64_t grad_ahead) {
    const int64_t n = range.count;
    for (int64_t h = 0; h < num_heads; h++) {
      const View<const Elem> block = grad.template from_channel<pixels_innermost>(h * part);
      Acc* g = grads.row(h * L);
      score<N, pixels_innermost>(block, n, projector.values, h, g, projector.scratch, grad_ahead);
      fill_padding(g, L, n, (Acc)0);
      softmax_over_rows_backward(projector.weights.row(h * L), g, L, n);
      if (call.dvalues)
        dvalues.add(h, block, n, projector.weights.for_pool(h * L, L, n), nullptr, grad_ahead);
    }
    grads.round(0, rows, n);
    if (call.dkeys) dkeys.add(0, x, n, grads.for_pool(0, rows, n), nullptr, ahead);
    if (dtoken_bias)
      for (int64_t l = 0; l < rows; l++) {
        Vec<Acc> sum{};
        for (int64_t i = 0; i < n; i += lanes<Acc>) sum += load<Acc>(grads.row(l) + i);
        dtoken_bias[l] = (fresh_token_bias ? 0 : dtoken_bias[l]) + total<Acc>(sum);
      }
    dkeys.fresh = dvalues.fresh = fresh_token_bias = false;
  }

  // out = base + dS keys: the gradient of x in a tile.
  void grad_x(PixelRange range, View<const Elem> base, View<Elem> out, Storing storing) const {
    expand(grads, projector.keys, range.count, base, out, storing, 0);
  }

  // Writes the sums of one sample's chunk (shared = false), or of a whole unit.
  void emit(bool shared, int64_t unit, int64_t sample) {
    if (call.dkeys && plan.dkeys.shared == shared) {
      dkeys.emit(0, plan.dkeys.place(unit, sample), call.channels, nullptr);
      dkeys.fresh = true;
    }
    if (call.dvalues && plan.dvalues.shared == shared) {
      for (int64_t h = 0; h < num_heads; h++)
        dvalues.emit(h, plan.dvalues.place(unit, sample) + h * part, call.out_channels, nullptr);
      dvalues.fresh = true;
    }
    if (dtoken_bias && plan.dtoken_bias.shared == shared) {
      Acc* out = plan.dtoken_bias.place(unit, sample);
      for (int64_t l = 0; l < rows; l++) out[l] = fresh_token_bias ? 0 : dtoken_bias[l];
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
        storing(storing_of(dx, call.channels, call, split)) {
    for (auto* each : {&x, &grad, &dx}) each->take_buffer_if_needed(arena, split.tile);
  }
  void begin(int64_t sample) { backward.projector.begin(sample); }
  void tile(PixelRange range, Place next) {
    const View<const Elem> tile = x.read(range, nullptr), grads = grad.read(range, nullptr);
    backward.projector.attend(range, tile, x.ahead(range, next));
    backward.add(range, tile, grads, x.ahead(range, next), grad.ahead(range, next));
    if (!call.dx.data) return;
    backward.grad_x(range, call.residual_is_input ? grads : View<const Elem>{nullptr, 0}, dx.target(range),
                    storing);
    dx.write(range);
  }
  void end_chunk(int64_t unit, int64_t sample, int64_t) { backward.emit(false, unit, sample); }
  void end_unit(int64_t unit) { backward.emit(true, unit, 0); }
};

template <class N, bool pixels_innermost>
void project_backward(const Call& call, const Host& host) {
  const int64_t width = call.channels + call.out_channels;
  // With many rows and channels, their sums pass through the cache once a tile: fewer, larger tiles then.
  const int64_t fewest = pixels_innermost ? 128 : 64;
  const Split split = split_of<N, pixels_innermost>(call, width, 16 * call.key_rows, fewest);
  run<ProjectBackwardPlan<N>, ProjectBackwardWorker<N, pixels_innermost>>(
      call, split, 3 * call.batch * call.pixels * call.key_rows * width, host);
}

}  // namespace
}  // namespace vt::VT_NAMESPACE
