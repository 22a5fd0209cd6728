// The backward of project_tokenize: the map Y is recomputed, tile by tile.
//
// H = grad_map + (tokenize's dx at Y); the rest is project's backward with H for its gradient.

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
  const Split& split;
  TiledMap<N, pixels_innermost> x, residual, grad, dx, dresidual;
  ProjectorBackward<N, pixels_innermost> projecting;
  TokenizerBackward<N, pixels_innermost> tokenizing;
  TiledMap<N, pixels_innermost> y;  // a buffer alone
  uint8_t* used = nullptr;
  Storing storing;

  ProjectTokenizeBackwardWorker(const Call& call, const Split& split,
                                const ProjectTokenizeBackwardPlan<N, pixels_innermost>& plan, Arena& arena)
      : call(call),
        split(split),
        x(call.x, Use::read, call, call.channels),
        residual(call.residual, Use::read, call, call.out_channels),
        grad(call.grad_map, Use::read, call, call.out_channels),
        dx(call.dx, Use::write, call, call.channels),
        dresidual(call.dresidual, Use::write, call, call.out_channels),
        projecting(call, plan.projecting, arena),
        tokenizing(call, split, plan.tokenizing, 1, arena),
        y(Map{}, Use::write, call, call.out_channels),
        storing(storing_of(dx, call.channels, call, split)) {
    const bool options = tokenizing.options.any;
    if (options) used = arena.take<uint8_t>(most_pixels);
    for (auto* each : {&x, &residual, &grad, &dx}) each->take_buffer_if_needed(arena, split.tile, options);
    for (auto* each : {&dresidual, &y})  // the gradient H and the map Y are needed in any case
      if (!each->in_place) each->take_buffer(arena, split.tile);
  }

  // The pixels of a tile that the result depended on: those that are tokenized, and those of the map
  // through which a gradient arrives. What any other pixel holds must not matter, even if it is NaN.
  const uint8_t* find_used(PixelRange range, const uint8_t* valid, View<const Elem> grads) const {
    if (!valid) return nullptr;
    for (int64_t i = 0; i < range.count; i++) {
      used[i] = valid[i];
      for (int64_t c = 0; grads.data && !used[i] && c < call.out_channels; c++)
        used[i] = to_float(grads.data[pixels_innermost ? c * grads.ld + i : i * grads.ld + c]) != 0;
    }
    return used;
  }

  void unit(int64_t unit) {
    for_each_chunk(split, unit, [&](int64_t sample, int64_t chunk) {
      projecting.projector.begin(sample);
      tokenizing.begin(sample);
      for_each_tile(split, unit, sample, chunk, [&](PixelRange range, Place next) { tile(range, next); });
      projecting.emit(false, unit, sample);
      if (!call.queries.shared) tokenizing.emit(unit, sample);
    });
    projecting.emit(true, unit, 0);
    if (call.queries.shared) tokenizing.emit(unit, 0);
  }

  void tile(PixelRange range, Place next) {
    const View<const Elem> none = {nullptr, 0};
    const uint8_t* valid = tokenizing.options.read(range);
    const View<const Elem> grads = call.grad_map.data ? grad.read(range, nullptr) : none;
    const uint8_t* read = find_used(range, valid, grads);
    const View<const Elem> pixels = x.read(range, read);
    projecting.projector.attend(range, pixels, x.ahead(range, next));
    const View<const Elem> base = residual_of(call, residual, pixels, range, read);
    const View<Elem> map = {y.buffer, y.buffer_ld};
    projecting.projector.spread(range, base, map, Storing::cached, 0);
    if (valid) y.clear_invalid(map, range.count, valid);
    tokenizing.add(range, {map.data, map.ld}, valid, 0);

    const View<Elem> h = dresidual.target(range);
    tokenizing.grad_map(range, grads, h, Storing::cached, call.grad_map.data ? grad.ahead(range, next) : 0);
    if (valid) restore_invalid(range, valid, grads, h);
    projecting.add(range, pixels, {h.data, h.ld}, x.ahead(range, next), 0);
    if (call.dx.data) {
      projecting.grad_x(range, call.residual_input ? View<const Elem>{h.data, h.ld} : none, dx.target(range),
                        storing);
      dx.write(range);
    }
    if (call.dresidual.data) dresidual.write(range);
  }

  // A pixel that was not tokenized has the map's gradient alone, whatever 0 times infinity is.
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
  const int64_t pixels = call.height * call.width, rows = call.heads * call.tokens;
  const Split split = split_of<N, pixels_innermost>(call, call.channels + 2 * call.out_channels,
                                                    16 * larger(call.queries_per_head, rows));
  run<ProjectTokenizeBackwardPlan<N, pixels_innermost>, ProjectTokenizeBackwardWorker<N, pixels_innermost>>(
      call, split,
      call.batch * pixels *
          (3 * rows * (call.channels + call.out_channels) + 4 * call.queries_per_head * call.out_channels),
      host);
}
