// project_tokenize: a tile is projected and tokenized while it is in cache.

template <class N, bool pixels_innermost>
struct ProjectTokenizeWorker {
  using Elem = typename N::Elem;
  const Call& call;
  const Split& split;
  TiledMap<N, pixels_innermost> x, residual, map;
  Projector<N, pixels_innermost> projector;
  Tokenizer<N, pixels_innermost> tokenizer;

  ProjectTokenizeWorker(const Call& call, const Split& split, const TokenizePlan<N, pixels_innermost>& plan,
                        Arena& arena)
      : call(call),
        split(split),
        x(call.x, Use::read, call, call.channels),
        residual(call.residual, Use::read, call, call.out_channels),
        map(call.map, Use::write, call, call.out_channels),
        projector(call, false, arena),
        tokenizer(call, split, plan, 1, arena) {
    const bool options = tokenizer.options.any;
    x.take_buffer_if_needed(arena, split.tile, options);
    residual.take_buffer_if_needed(arena, split.tile, options);
    if (!map.in_place || options) map.take_buffer(arena, split.tile);  // the map is tokenized in any case
  }
  void unit(int64_t unit) {
    for_each_chunk(split, unit, [&](int64_t sample, int64_t chunk) {
      projector.begin(sample);
      tokenizer.begin(sample);
      for_each_tile(split, unit, sample, chunk, [&](PixelRange range, Place next) {
        const uint8_t* valid = tokenizer.options.read(range);
        // Where nobody sees the map, a masked pixel is not used at all.
        const uint8_t* read = call.map.data ? nullptr : valid;
        const View<const Elem> tile = x.read(range, read);
        projector.attend(range, tile, x.ahead(range, next));
        const View<const Elem> base = residual_of(call, residual, tile, range, read);
        // The tile itself is the map's place, unless pixels of it are to be taken out after it was written.
        const bool direct = map.in_place && !valid;
        const View<Elem> y = direct ? map.target(range) : View<Elem>{map.buffer, map.buffer_ld};
        projector.spread(range, base, y, Storing::cached, call.residual_input ? x.ahead(range, next) : 0);
        if (!direct && call.map.data) map.put(range, {y.data, y.ld});
        if (valid) map.clear_invalid(y, range.count, valid);
        tokenizer.add(range, {y.data, y.ld}, valid, 0);
      });
      tokenizer.end(sample, chunk);
    });
  }
};

template <class N, bool pixels_innermost>
void project_tokenize(const Call& call, const Host& host) {
  const int64_t pixels = call.height * call.width, rows = call.heads * call.tokens;
  const Split split = split_of<N, pixels_innermost>(call, call.channels + call.out_channels,
                                                    larger(16 * call.queries_per_head, 4 * rows));
  run<TokenizePlan<N, pixels_innermost>, ProjectTokenizeWorker<N, pixels_innermost>>(
      call, split,
      call.batch * pixels *
          (rows * (call.channels + call.out_channels) + 2 * call.queries_per_head * call.out_channels),
      host);
}
