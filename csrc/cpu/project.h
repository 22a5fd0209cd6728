// project: tokens onto pixels, one read of the map and one write.

// The projecting half of a worker: keys, values and bias of a sample, and the weights of a tile.
template <class N, bool pixels_innermost>
struct Projector {
  using Acc = typename N::Acc;
  using Elem = typename N::Elem;
  const Call& call;
  int64_t heads, L, part;  // channels of a head's block of the result
  Bank<N, pixels_innermost> keys, values;
  Weights<N, pixels_innermost> weights;  // P
  Acc *bias = nullptr, *scratch;
  uint8_t* empty = nullptr;  // heads all of whose tokens are removed
  Current current;

  // `backward`: keys will be expanded, and values scored, too.
  Projector(const Call& call, bool backward, Arena& arena)
      : call(call),
        heads(call.heads),
        L(call.tokens),
        part(call.out_channels / call.heads),
        keys(1, heads * L, call.channels, true, backward, arena),
        values(heads, L, part, backward, true, arena),
        weights(heads, L, true, arena) {
    if (call.bias.data) bias = arena.take<Acc>(heads * L), empty = arena.take<uint8_t>(heads);
    scratch = arena.take<Acc>(score_ld * rounded_up(heads * L, 16));
  }

  void begin(int64_t sample) {
    if (current.is(sample, call.keys.shared && call.values.shared && (!bias || call.bias.shared))) return;
    for (int64_t h = 0; h < heads; h++) {
      if (bias) empty[h] = 1;
      for (int64_t l = 0; l < L; l++) {
        const int64_t row = h * L + l;
        bool removed = false;
        if (bias) {
          gather(call.bias.data, call.dtype, sample * call.bias.batch + row * call.bias.column, 1, bias + row,
                 1);
          removed = bias[row] == -(Acc)__builtin_inff();
          if (!removed) empty[h] = 0;
        }
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
    fill_padding(weights.row(0), heads * L, n, (Acc)0);
    for (int64_t h = 0; h < heads; h++) {
      Acc* s = weights.row(h * L);
      if (bias)
        for (int64_t l = 0; l < L; l++)
          for (int64_t i = 0; i < n; i += lanes<Acc>)
            store<Acc>(s + l * score_ld + i, load<Acc>(s + l * score_ld + i) + bias[h * L + l]);
      softmax_over_rows(weights, h * L, L, n);
      if (bias && empty[h])
        for (int64_t l = 0; l < L; l++)
          for (int64_t i = 0; i < rounded_up(n, 32); i++) s[l * score_ld + i] = 0;
      if (bias && empty[h]) weights.round(h * L, L, n);
    }
  }

  // out = base + P values.
  void spread(PixelRange range, View<const Elem> base, View<Elem> out, Storing storing, int64_t ahead) const {
    for (int64_t h = 0; h < heads; h++) {
      const int64_t step = h * part;
      const View<const Elem> b = base.template from_channel<pixels_innermost>(step);
      const View<Elem> o = out.template from_channel<pixels_innermost>(step);
      expand<N, pixels_innermost>(weights.for_expand(h, h * L, L, range.count), values, h, range.count, b, o,
                                  storing, ahead);
    }
  }
};

// What the projected tokens are added to: the tile itself, another map's, or nothing.
template <class N, bool pixels_innermost, class Tile>
Tile residual_of(const Call& call, const TiledMap<N, pixels_innermost>& residual, Tile tile, PixelRange range,
                 const uint8_t* valid) {
  if (call.residual_input) return tile;
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
  const Split& split;
  TiledMap<N, pixels_innermost> x, residual, map;
  Projector<N, pixels_innermost> projector;
  Storing storing;

  ProjectWorker(const Call& call, const Split& split, const NoPlan&, Arena& arena)
      : call(call),
        split(split),
        x(call.x, Use::read, call, call.channels),
        residual(call.residual, Use::read, call, call.out_channels),
        map(call.map, Use::write, call, call.out_channels),
        projector(call, false, arena),
        storing(storing_of(map, projector.part, call, split)) {
    for (auto* each : {&x, &residual, &map}) each->take_buffer_if_needed(arena, split.tile);
  }
  void unit(int64_t unit) {
    for_each_chunk(split, unit, [&](int64_t sample, int64_t chunk) {
      projector.begin(sample);
      for_each_tile(split, unit, sample, chunk, [&](PixelRange range, Place next) {
        const View<const Elem> tile = x.read(range, nullptr);
        projector.attend(range, tile, x.ahead(range, next));
        const View<const Elem> base = residual_of(call, residual, tile, range, nullptr);
        projector.spread(range, base, map.target(range), storing,
                         call.residual_input ? x.ahead(range, next) : 0);
        map.write(range);
      });
    });
  }
};

template <class N, bool pixels_innermost>
void project(const Call& call, const Host& host) {
  const int64_t pixels = call.height * call.width, rows = call.heads * call.tokens;
  const Split split = split_of<N, pixels_innermost>(call, larger(call.channels, call.out_channels), 4 * rows);
  run<NoPlan, ProjectWorker<N, pixels_innermost>>(
      call, split, call.batch * pixels * rows * (call.channels + call.out_channels), host);
}
