// project_tokenize: a tile is projected, then tokenized while it is in the cache.
//
// The backward recomputes the map Y, tile by tile. With H = grad_map + (tokenize's dx at Y), the rest is
// project's backward with H for its gradient.
#pragma once

#include "project.h"
#include "tokenize.h"

namespace vt::VT_NAMESPACE {
namespace {

template <class N, bool pixels_innermost>
struct ProjectTokenizeWorker {
  using Elem = typename N::Elem;
  const Call& call;
  TiledMap<N, pixels_innermost> x, residual, map;
  Projector<N, pixels_innermost> projector;
  Tokenizer<N, pixels_innermost> tokenizer;

  ProjectTokenizeWorker(const Call& call, const Split& split, const TokenizePlan<N, pixels_innermost>& plan,
                        Arena& arena)
      : call(call),
        x(call.x, Use::read, call, call.channels),
        residual(call.residual, Use::read, call, call.out_channels),
        map(call.map, Use::write, call, call.out_channels),
        projector(call, false, arena),
        tokenizer(call, split, plan, arena) {
    const bool options = tokenizer.options.any;
    x.take_buffer_if_needed(arena, split.tile, options);
    residual.take_buffer_if_needed(arena, split.tile, options);
    if (!map.in_place || options) map.take_buffer(arena, split.tile);  // tokenize needs the map's tile anyway
  }
  void begin(int64_t sample) {
    projector.begin(sample);
    tokenizer.begin(sample);
  }
  void tile(PixelRange range, Place next) {
    const uint8_t* valid = tokenizer.options.read(range);
    // Where the map is not returned, masked pixels are not read at all.
    const uint8_t* read = call.map.data ? nullptr : valid;
    const View<const Elem> tile = x.read(range, read);
    projector.attend(range, tile, x.ahead(tile, range, next));
    const View<const Elem> base = residual_of(call, residual, tile, range, read);
    // Computed in the map itself, unless invalid pixels have to be cleared after it is written.
    const bool direct = map.in_place && !valid;
    const View<Elem> y = direct ? map.target(range) : View<Elem>{map.buffer, map.buffer_ld};
    projector.project(range, base, y, Storing::cached,
                      call.residual_is_input ? x.ahead(tile, range, next) : 0);
    if (!direct && call.map.data) map.put(range, {y.data, y.ld});
    if (valid) map.clear_invalid(y, range.count, valid);
    tokenizer.add(range, {y.data, y.ld}, valid, 0);
  }
  void end_chunk(int64_t, int64_t sample, int64_t chunk) { tokenizer.end(sample, chunk); }
  void end_unit(int64_t) {}
};

template <class N, bool pixels_innermost>
void project_tokenize(const Call& call, const Host& host) {
  const int64_t width = call.channels + call.out_channels;
  const Split split =
      split_of<N, pixels_innermost>(call, width, larger(16 * call.queries_per_head, 4 * call.key_rows));
  run<TokenizePlan<N, pixels_innermost>, ProjectTokenizeWorker<N, pixels_innermost>>(
      call, split, all_pixels(call) * (call.key_rows * width + 2 * call.queries_per_head * call.out_channels),
      host);
}

template <class N, bool pixels_innermost>
struct ProjectTokenizeBackwardPlan {
  TokenizeBackwardPlan<N, pixels_innermost> tokenizing;
  ProjectBackwardPlan<N> projecting;

  ProjectTokenizeBackwardPlan(const Call& call, const Split& split, Arena& arena)
      : tokenizing(call, split, arena), projecting(call, split, arena) {}
  void finish(const Host& host, int64_t threads) const {
    tokenizing.finish(host, threads);
    projecting.finish(host, threads);
  }
};

template <class N, bool pixels_innermost>
struct ProjectTokenizeBackwardWorker {
  using Elem = typename N::Elem;
  const Call& call;
  TiledMap<N, pixels_innermost> x, residual, grad, dx, dresidual;
  ProjectorBackward<N, pixels_innermost> projecting;
  TokenizerBackward<N, pixels_innermost> tokenizing;
  TiledMap<N, pixels_innermost> y;  // only its buffer
  uint8_t* used = nullptr;
  Storing storing;

  ProjectTokenizeBackwardWorker(const Call& call, const Split& split,
                                const ProjectTokenizeBackwardPlan<N, pixels_innermost>& plan, Arena& arena)
      : call(call),
        x(call.x, Use::read, call, call.channels),
        residual(call.residual, Use::read, call, call.out_channels),
        grad(call.grad_map, Use::read, call, call.out_channels),
        dx(call.dx, Use::write, call, call.channels),
        dresidual(call.dresidual, Use::write, call, call.out_channels),
        projecting(call, plan.projecting, arena),
        tokenizing(call, split, plan.tokenizing, arena),
        y(Map{}, Use::write, call, call.out_channels),
        storing(storing_of(dx, projecting.keys.depth, call, split)) {
    const bool options = tokenizing.options.any;
    if (options) used = arena.take<uint8_t>(most_pixels);
    for (auto* each : {&x, &residual, &grad, &dx}) each->take_buffer_if_needed(arena, split.tile, options);
    for (auto* each : {&dresidual, &y})  // H and Y are computed in any case
      if (!each->in_place) each->take_buffer(arena, split.tile);
  }
  void begin(int64_t sample) {
    projecting.projector.begin(sample);
    tokenizing.begin(sample);
  }
  void tile(PixelRange range, Place next) {
    const View<const Elem> none = {nullptr, 0};
    const uint8_t* valid = tokenizing.options.read(range);
    const View<const Elem> grads = call.grad_map.data ? grad.read(range, nullptr) : none;
    const uint8_t* read = find_used(range, valid, grads);
    const View<const Elem> pixels = x.read(range, read);
    projecting.projector.attend(range, pixels, x.ahead(pixels, range, next));
    const View<const Elem> base = residual_of(call, residual, pixels, range, read);
    const View<Elem> map = {y.buffer, y.buffer_ld};
    projecting.projector.project(range, base, map, Storing::cached, 0);
    if (valid) y.clear_invalid(map, range.count, valid);
    tokenizing.add(range, {map.data, map.ld}, valid, 0);

    const View<Elem> h = dresidual.target(range);
    tokenizing.grad_map(range, grads, h, Storing::cached,
                        call.grad_map.data ? grad.ahead(grads, range, next) : 0);
    if (valid) restore_invalid(range, valid, grads, h);
    projecting.add(range, pixels, {h.data, h.ld}, x.ahead(pixels, range, next), 0);
    if (call.dx.data) {
      projecting.grad_x(range, call.residual_is_input ? View<const Elem>{h.data, h.ld} : none,
                        dx.target(range), storing);
      dx.write(range);
    }
    if (call.dresidual.data) dresidual.write(range);
  }
  void end_chunk(int64_t unit, int64_t sample, int64_t chunk) {
    projecting.emit(false, unit, sample, chunk);
    tokenizing.emit(false, unit, sample, chunk);
  }
  void end_unit(int64_t unit) {
    projecting.emit(true, unit, 0, 0);
    tokenizing.emit(true, unit, 0, 0);
  }

  // The pixels of a tile that the results depend on: those that are tokenized, and those of the map whose
  // gradient is not 0. Other pixels must have no effect, even if they hold NaN.
  const uint8_t* find_used(PixelRange range, const uint8_t* valid, View<const Elem> grads) const {
    if (!valid) return nullptr;
    for (int64_t i = 0; i < range.count; i++) {
      used[i] = valid[i];
      for (int64_t c = 0; grads.data && !used[i] && c < call.out_channels; c++)
        used[i] = to_float(grads.data[pixels_innermost ? c * grads.ld + i : i * grads.ld + c]) != 0;
    }
    return used;
  }

  // A pixel that is not tokenized gets the map's gradient alone, as 0 times infinity must not reach it.
  void restore_invalid(PixelRange range, const uint8_t* valid, View<const Elem> grads, View<Elem> h) const {
    for (int64_t i = 0; i < range.count; i++)
      if (!valid[i])
        for (int64_t c = 0; c < call.out_channels; c++)
          h.data[pixels_innermost ? c * h.ld + i : i * h.ld + c] =
              grads.data ? grads.data[pixels_innermost ? c * grads.ld + i : i * grads.ld + c] : Elem{};
  }
};

template <class N, bool pixels_innermost>
void project_tokenize_backward(const Call& call, const Host& host) {
  const Split split = split_of<N, pixels_innermost>(call, call.channels + 2 * call.out_channels,
                                                    16 * larger(call.queries_per_head, call.key_rows));
  run<ProjectTokenizeBackwardPlan<N, pixels_innermost>, ProjectTokenizeBackwardWorker<N, pixels_innermost>>(
      call, split,
      all_pixels(call) * (3 * call.key_rows * (call.channels + call.out_channels) +
                          4 * call.queries_per_head * call.out_channels),
      host);
}

}  // namespace
}  // namespace vt::VT_NAMESPACE
