// The backward of tokenize: one read of the map, and its gradient written.
//
// With A = exp(x queries^T - lse), dA = x dT^T (and the table's part), delta = rowsum(dT * T) - dlse:
// dS = A * (dA - delta), dx = A dT + dS queries, dqueries = dS^T x, dlog_weights = rowsum(dS),
// dposition = sum over the batch of A dT[:, C:].

template <class N, bool pixels_innermost>
struct TokenizeBackwardPlan {
  using Acc = typename N::Acc;
  const Call& call;
  const Split& split;
  Sink<Acc> dqueries;
  static constexpr int64_t position_block = 128;  // columns whose sums stay in the first cache
  Acc* attention = nullptr;                       // A of all pixels, (B, L, N), only where dposition wants it

  TokenizeBackwardPlan(const Call& call, const Split& split, Arena& arena)
      : call(call),
        split(split),
        dqueries(call.dqueries, call.queries.shared, call.queries_per_head * call.out_channels, split,
                 arena) {
    if (call.dposition) attention = arena.take<Acc>(split.batch * call.queries_per_head * split.pixels);
  }

  void finish(const Host& host, int64_t threads) const {
    dqueries.sum_up(split, host, threads);
    if (!call.dposition) return;
    // Summed over the batch, so it cannot be done sample by sample.
    constexpr int64_t run = 64;
    for_each(host, divided_up(split.pixels, run), threads, [&](int64_t, auto claim) {
      for (int64_t item; (item = claim()) >= 0;) {
        const int64_t first = item * run, end = smaller(first + run, split.pixels);
        for (int64_t p = 0; p < call.table; p += position_block)
          sum_position(first, end, p, smaller(position_block, call.table - p));
      }
    });
  }

  // dposition of pixels [first, end) in `count` columns.
  void sum_position(int64_t first, int64_t end, int64_t column, int64_t count) const {
    constexpr int64_t W = lanes<Acc>;
    const int64_t L = call.queries_per_head, P = call.table;
    const Rows& grads = call.grad_tokens;
    Acc* out = (Acc*)call.dposition + column;
    for (int64_t i = first; i < end; i++)
      for (int64_t p = 0; p < count; p++) out[i * P + p] = 0;
    for (int64_t row = 0; row < split.batch * L; row++) {
      Acc grad[position_block];
      gather(grads.data, call.dtype,
             row / L * grads.batch + row % L * grads.row + (call.out_channels + column) * grads.column,
             grads.column, grad, count);
      const Acc* a = attention + row * split.pixels;
      // Pixels that take no part have A = 0, and what arrives must not make that NaN.
      for (int64_t i = first; i < end; i++)
        if (a[i] != 0)
          for (int64_t p = 0; p < count; p += W) {
            const int64_t columns = smaller(W, count - p);
            Acc* to = out + i * P + p;
            store_part(to, load_part(to, columns) + a[i] * load<Acc>(grad + p), columns);
          }
    }
  }
};

// The tokenizing half of a backward: A and dS of a tile, and what becomes of them.
template <class N, bool pixels_innermost>
struct TokenizerBackward {
  using Acc = typename N::Acc;
  using Elem = typename N::Elem;
  const Call& call;
  const Split& split;
  const TokenizeBackwardPlan<N, pixels_innermost>& plan;
  int64_t heads, L, part;
  Bank<N, pixels_innermost> rows;        // of each head: queries, then the tokens' gradients
  Bank<N, pixels_innermost> table_rows;  // the gradients of the table's part of the tokens
  Weights<N, pixels_innermost> weights;  // of each head: dS, then A
  Sums<N, pixels_innermost> dqueries;
  PixelOptions<N> options;
  TiledMap<N, pixels_innermost> table;
  Acc *delta, *scratch, *table_scores = nullptr;
  int64_t sample = -1;

  TokenizerBackward(const Call& call, const Split& split,
                    const TokenizeBackwardPlan<N, pixels_innermost>& plan, int64_t heads, Arena& arena)
      : call(call),
        split(split),
        plan(plan),
        heads(heads),
        L(call.queries_per_head),
        part(call.out_channels / heads),
        rows(heads, 2 * L, part, true, true, arena, L),
        weights(heads, 2 * L, true, arena),
        options(call, arena),
        table(table_map(call.position, call), Use::read, call, call.table) {
    if (call.dqueries) dqueries = Sums<N, pixels_innermost>(heads, L, part, arena);
    if (call.table) {
      table_rows = Bank<N, pixels_innermost>(1, L, call.table, true, false, arena);
      table.take_buffer(arena, split.tile);
      table_scores = arena.take<Acc>(rounded_up(L, 16) * score_ld);
    }
    delta = arena.take<Acc>(heads * L);
    scratch = arena.take<Acc>(score_ld * rounded_up(2 * L, 16));
  }

  void begin(int64_t wanted) {
    if (sample == wanted) return;
    sample = wanted;
    const int64_t width = call.out_channels + call.table;
    for (int64_t h = 0; h < heads; h++)
      for (int64_t l = 0; l < L; l++) {
        rows.set_row(h, l, call.queries, call.dtype, sample, h * L + l, 0);
        rows.set_row(h, L + l, call.grad_tokens, call.dtype, sample, l, h * part);
        if (call.table) table_rows.set_row(0, l, call.grad_tokens, call.dtype, sample, l, call.out_channels);
        const int64_t row = h * L + l;
        const Acc* token = (const Acc*)call.exact_tokens + (sample * L + l) * width + h * part;
        // All pixels share delta, so that its error does not average out in a sum over them.
        double sum = rows.dot(h, L + l, token);
        if (call.table) sum += table_rows.dot(0, l, token + part);
        if (call.grad_lse.data)
          sum -= ((const Acc*)call.grad_lse.data)[sample * call.grad_lse.batch + row * call.grad_lse.column];
        delta[row] = (Acc)sum;
      }
    rows.pack();
    if (call.table) table_rows.pack();
  }

  // dS and A of a tile of the tokenized map, whose invalid pixels are 0; adds to the gradients of all
  // but the map.
  void add(PixelRange range, View<const Elem> x, const uint8_t* valid, int64_t ahead) {
    const int64_t n = range.count;
    const Acc* lse = (const Acc*)call.saved_lse + range.sample * heads * L;
    if (call.table)
      score<N, pixels_innermost>(table.read(range, valid), n, table_rows, 0, table_scores, scratch);
    for (int64_t h = 0; h < heads; h++) {
      const View<const Elem> block = x.template from_channel<pixels_innermost>(h * part);
      Acc *s = weights.row(2 * h * L), *g = s + L * score_ld;
      score<N, pixels_innermost>(block, n, rows, h, s, scratch, ahead);
      if (options.weights) add_to_rows(s, L, n, options.weights);
      if (call.table) add_rows(g, L, n, table_scores);
      pool_backward(s, g, L, n, lse + h * L, delta + h * L);
      if (valid) fill_invalid(s, 2 * L, n, valid, (Acc)0);
      weights.round(2 * h * L, 2 * L, n);
      if (call.dqueries) dqueries.add(h, block, n, weights.for_pool(2 * h * L, L, n), nullptr, ahead);
    }
    dqueries.fresh = false;
    if (call.dlog_weights) {
      Acc* out = (Acc*)call.dlog_weights + range.sample * split.pixels + range.first;
      for (int64_t i = 0; i < n; i += lanes<Acc>) {
        Vec<Acc> sum{};
        for (int64_t h = 0; h < heads; h++)
          for (int64_t l = 0; l < L; l++) sum += load<Acc>(weights.row(2 * h * L + l) + i);
        store_part(out + i, sum, smaller<int64_t>(lanes<Acc>, n - i));
      }
    }
    if (plan.attention)
      for (int64_t l = 0; l < L; l++)
        __builtin_memcpy(plan.attention + (range.sample * L + l) * split.pixels + range.first,
                         weights.row(L + l), n * sizeof(Acc));
  }

  // out = base + A dT + dS queries: the map's gradient in a tile.
  void grad_map(PixelRange range, View<const Elem> base, View<Elem> out, Storing storing,
                int64_t ahead) const {
    for (int64_t h = 0; h < heads; h++) {
      const int64_t step = h * part;
      const View<const Elem> b = base.template from_channel<pixels_innermost>(step);
      const View<Elem> o = out.template from_channel<pixels_innermost>(step);
      expand<N, pixels_innermost>(weights.for_expand(h, 2 * h * L, 2 * L, range.count), rows, h, range.count,
                                  b, o, storing, ahead);
    }
  }

  // After the tiles of a chunk, or those of a whole unit where the operand is shared.
  void emit(int64_t unit, int64_t of_sample) {
    if (!call.dqueries) return;
    Acc* out = plan.dqueries.place(unit, of_sample);
    for (int64_t h = 0; h < heads; h++) dqueries.emit(h, out + h * L * part, part, nullptr);
    dqueries.fresh = true;
  }
};

template <class N, bool pixels_innermost>
struct TokenizeBackwardWorker {
  using Elem = typename N::Elem;
  const Call& call;
  const Split& split;
  TiledMap<N, pixels_innermost> x, dx;
  TokenizerBackward<N, pixels_innermost> tokenizer;
  Storing storing;

  TokenizeBackwardWorker(const Call& call, const Split& split,
                         const TokenizeBackwardPlan<N, pixels_innermost>& plan, Arena& arena)
      : call(call),
        split(split),
        x(call.x, Use::read, call, call.channels),
        dx(call.dx, Use::write, call, call.channels),
        tokenizer(call, split, plan, call.heads, arena),
        storing(storing_of(dx, tokenizer.part, call, split)) {
    x.take_buffer_if_needed(arena, split.tile, tokenizer.options.any);
    dx.take_buffer_if_needed(arena, split.tile);
  }
  void unit(int64_t unit) {
    const bool shared = call.queries.shared;
    for_each_chunk(split, unit, [&](int64_t sample, int64_t chunk) {
      tokenizer.begin(sample);
      for_each_tile(split, unit, sample, chunk, [&](PixelRange range, Place next) {
        const uint8_t* valid = tokenizer.options.read(range);
        const View<const Elem> tile = x.read(range, valid);
        tokenizer.add(range, tile, valid, x.ahead(range, next));
        if (call.dx.data) {
          tokenizer.grad_map(range, {nullptr, 0}, dx.target(range), storing, 0);
          if (valid) dx.clear_invalid(dx.target(range), range.count, valid);
          dx.write(range);
        }
      });
      if (!shared) tokenizer.emit(unit, sample);
    });
    if (shared) tokenizer.emit(unit, 0);
  }
};

template <class N, bool pixels_innermost>
void tokenize_backward(const Call& call, const Host& host) {
  const int64_t pixels = call.height * call.width;
  const Split split = split_of<N, pixels_innermost>(call, call.channels, 16 * call.queries_per_head);
  run<TokenizeBackwardPlan<N, pixels_innermost>, TokenizeBackwardWorker<N, pixels_innermost>>(
      call, split, 3 * call.batch * pixels * call.queries_per_head * call.channels, host);
}
