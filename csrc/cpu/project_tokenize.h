// project_tokenize: a tile is projected, then tokenized while it is in the cache.
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
    projector.attend(range, tile, x.ahead(range, next));
    const View<const Elem> base = residual_of(call, residual, tile, range, read);
    // Computed in the map itself, unless invalid pixels have to be cleared after it is written.
    const bool direct = map.in_place && !valid;
    const View<Elem> y = direct ? map.target(range) : View<Elem>{map.buffer, map.buffer_ld};
    projector.project(range, base, y, Storing::cached, call.residual_is_input ? x.ahead(range, next) : 0);
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
      call, split,
      call.batch * call.pixels * (call.key_rows * width + 2 * call.queries_per_head * call.out_channels),
      host);
}

}  // namespace
}  // namespace vt::VT_NAMESPACE
