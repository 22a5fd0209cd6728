// tokenize: pixels to tokens, in one read of the map; and its backward, in one read of the map, with its
// gradient written.
//
// With A = exp(x queries^T - lse), dA = x dT^T (plus the extra values' part), delta = rowsum(dT * T) - dlse:
// dS = A * (dA - delta), dx = A dT + dS queries, dqueries = dS^T x, dpixel_bias = rowsum(dS),
// dextra_values = sum over the batch of A dT[:, C:].
#pragma once

#include "run.h"
#include "softmax.h"

namespace vt::VT_NAMESPACE {
namespace {

// Tokens of chunks of pixels, and the statistics that their merge needs.
template <class N, bool pixels_innermost>
struct TokenizePlan {
  using Acc = typename N::Acc;
  const Call& call;
  const Split& split;
  int64_t num_heads;
  int64_t width, rows;  // of a token; of scores: num_heads * L
  Acc *tokens = nullptr, *highest = nullptr, *sums = nullptr, *pooled = nullptr;
  int64_t* valid = nullptr;

  TokenizePlan(const Call& call, const Split& split, Arena& arena)
      : call(call),
        split(split),
        num_heads(call.query_heads),
        width(call.out_channels + call.extra_columns),
        rows(num_heads * call.queries_per_head) {
    if (split.chunks == 1) return;
    tokens = arena.take<Acc>(split.units * call.queries_per_head * width);
    highest = arena.take<Acc>(split.units * rows), sums = arena.take<Acc>(split.units * rows);
    pooled = arena.take<Acc>(split.units * rows), valid = arena.take<int64_t>(split.units);
  }

  // Merges the chunks of each sample, in their order.
  void finish(const Host& host, int64_t threads) const {
    if (split.chunks == 1) return;
    for_each(host, split.batch * rows, threads, [&](int64_t, auto claim) {
      for (int64_t item; (item = claim()) >= 0;) merge(item / rows, item % rows);
    });
  }

  // One head's part of a token.
  void merge(int64_t sample, int64_t row) const {
    const int64_t L = call.queries_per_head, head = row / L, l = row % L, unit = sample * split.chunks;
    const int64_t part = call.out_channels / num_heads, count = num_heads == 1 ? width : part;
    Acc top = highest[unit * rows + row];
    int64_t seen = valid[unit];
    for (int64_t j = 1; j < split.chunks; j++) {
      const Acc other = highest[(unit + j) * rows + row];
      top = other > top || other != other ? other : top;
      seen += valid[unit + j];
    }
    const Acc base = top == -(Acc)__builtin_inff() ? 0 : top;
    Acc factors[most_units], sum = 0, weight = 0;
    for (int64_t j = 0; j < split.chunks; j++) {
      const int64_t at = (unit + j) * rows + row;
      factors[j] = exponential(splat<Acc>(highest[at] - base))[0];
      sum += factors[j] * sums[at], weight += factors[j] * pooled[at];
    }
    ((Acc*)call.lse_out)[sample * rows + row] = seen ? log_sum(top, sum) : -(Acc)__builtin_inff();
    const Acc* from = tokens + (unit * L + l) * width + head * part;
    Acc* to = (Acc*)call.tokens_out + (sample * L + l) * width + head * part;
    for (int64_t c = 0; c < count; c += lanes<Acc>) {
      const int64_t columns = smaller<int64_t>(lanes<Acc>, count - c);
      Vec<Acc> token{};
      for (int64_t j = 0; j < split.chunks; j++)
        token += factors[j] / weight * load_part(from + j * L * width + c, columns);
      store_part(to + c, seen ? token : Vec<Acc>{}, columns);
    }
  }
};

// The tokenizing half of a worker: the sums over a chunk's pixels.
template <class N, bool pixels_innermost>
struct Tokenizer {
  using Acc = typename N::Acc;
  using Elem = typename N::Elem;
  const Call& call;
  const Split& split;
  const TokenizePlan<N, pixels_innermost>& plan;
  int64_t num_heads, L, part;  // part: channels of a head's block
  Bank<N, pixels_innermost> queries;
  Weights<N, pixels_innermost> weights;
  Sums<N, pixels_innermost> tokens, pooled_extra;
  Running<Acc> running;
  PixelOptions<N> options;
  TiledMap<N, pixels_innermost> extra;
  Acc *scratch, *factors;
  Current current;
  int64_t seen = 0;  // valid pixels so far

  Tokenizer(const Call& call, const Split& split, const TokenizePlan<N, pixels_innermost>& plan, Arena& arena)
      : call(call),
        split(split),
        plan(plan),
        num_heads(call.query_heads),
        L(call.queries_per_head),
        part(call.out_channels / num_heads),
        queries(num_heads, L, part, true, false, arena),
        weights(num_heads, L, false, arena),
        tokens(num_heads, L, part, arena),
        running(num_heads * L, arena),
        options(call, arena),
        extra(extra_values_map(call), Use::read, call, call.extra_columns) {
    if (call.extra_columns) {
      pooled_extra = Sums<N, pixels_innermost>(1, L, call.extra_columns, arena);
      extra.take_buffer(arena, split.tile);
    }
    scratch = arena.take<Acc>(score_ld * rounded_up(L, 16));
    factors = arena.take<Acc>(rounded_up(L, 16));
  }

  void begin(int64_t sample) {
    if (!current.is(sample, call.queries.shared)) {
      for (int64_t h = 0; h < num_heads; h++)
        for (int64_t l = 0; l < L; l++) queries.set_row(h, l, call.queries, call.dtype, sample, h * L + l, 0);
      queries.pack();
    }
    running.clear();
    tokens.fresh = pooled_extra.fresh = true;
    seen = 0;
  }

  // Adds a tile of the map to be tokenized, whose invalid pixels are 0.
  void add(PixelRange range, View<const Elem> x, const uint8_t* valid, int64_t ahead) {
    seen += options.valid_count;
    for (int64_t h = 0; h < num_heads; h++) {
      const View<const Elem> block = x.template from_channel<pixels_innermost>(h * part);
      Acc* s = weights.row(h * L);
      score<N, pixels_innermost>(block, range.count, queries, h, s, scratch, ahead);
      if (options.bias) add_rows(s, L, range.count, options.bias, 0);
      if (valid) fill_invalid(s, L, range.count, valid, -(Acc)__builtin_inff());
      run_softmax(running, weights, h * L, L, range.count);
      const typename N::Lane* a = weights.for_pool(h * L, L, range.count);
      tokens.add(h, block, range.count, a, running.scale + h * L, ahead);
      if (call.extra_columns) {
        pooled_extra.add(0, extra.read(range, valid), range.count, a, running.scale);
      }
    }
    tokens.fresh = pooled_extra.fresh = false;
  }

  // Writes the tokens and statistics of a chunk.
  void end(int64_t sample, int64_t chunk) {
    const int64_t rows = num_heads * L, width = plan.width, unit = sample * split.chunks + chunk;
    const bool whole = split.chunks == 1;
    Acc* out = whole ? (Acc*)call.tokens_out + sample * L * width : plan.tokens + unit * L * width;
    for (int64_t h = 0; h < num_heads; h++) {
      // A sample without a valid pixel has tokens of 0.
      for (int64_t l = 0; l < L; l++) factors[l] = whole ? 1 / running.pooled[h * L + l] : 1;
      if (whole && !seen) tokens.fresh = pooled_extra.fresh = true;
      tokens.emit(h, out + h * part, width, whole ? factors : nullptr);
      if (call.extra_columns) pooled_extra.emit(0, out + call.out_channels, width, whole ? factors : nullptr);
    }
    if (!whole) plan.valid[unit] = seen;
    for (int64_t row = 0; row < rows; row++)
      if (whole) {
        ((Acc*)call.lse_out)[sample * rows + row] =
            seen ? log_sum(running.highest[row], running.sum[row]) : -(Acc)__builtin_inff();
      } else {
        plan.highest[unit * rows + row] = running.highest[row];
        plan.sums[unit * rows + row] = running.sum[row];
        plan.pooled[unit * rows + row] = running.pooled[row];
      }
  }
};

template <class N, bool pixels_innermost>
struct TokenizeWorker {
  TiledMap<N, pixels_innermost> x;
  Tokenizer<N, pixels_innermost> tokenizer;

  TokenizeWorker(const Call& call, const Split& split, const TokenizePlan<N, pixels_innermost>& plan,
                 Arena& arena)
      : x(call.x, Use::read, call, call.channels), tokenizer(call, split, plan, arena) {
    x.take_buffer_if_needed(arena, split.tile, tokenizer.options.any);
  }
  void begin(int64_t sample) { tokenizer.begin(sample); }
  void tile(PixelRange range, Place next) {
    const uint8_t* valid = tokenizer.options.read(range);
    tokenizer.add(range, x.read(range, valid), valid, x.ahead(range, next));
  }
  void end_chunk(int64_t, int64_t sample, int64_t chunk) { tokenizer.end(sample, chunk); }
  void end_unit(int64_t) {}
};

template <class N, bool pixels_innermost>
void tokenize(const Call& call, const Host& host) {
  const Split split = split_of<N, pixels_innermost>(call, call.channels, 16 * call.queries_per_head);
  run<TokenizePlan<N, pixels_innermost>, TokenizeWorker<N, pixels_innermost>>(
      call, split, call.batch * call.pixels * call.queries_per_head * call.channels, host);
}

template <class N, bool pixels_innermost>
struct TokenizeBackwardPlan {
  using Acc = typename N::Acc;
  const Call& call;
  const Split& split;
  Sink<Acc> dqueries;
  static constexpr int64_t extra_block = 128;  // columns whose sums stay in the first-level cache
  Acc* attention = nullptr;                    // A of all pixels, (B, L, N), only for dextra_values

  TokenizeBackwardPlan(const Call& call, const Split& split, Arena& arena)
      : call(call),
        split(split),
        dqueries(call.dqueries, call.queries.shared, call.queries_per_head * call.out_channels, split,
                 arena) {
    if (call.dextra_values) attention = arena.take<Acc>(split.batch * call.queries_per_head * split.pixels);
  }

  void finish(const Host& host, int64_t threads) const {
    dqueries.sum_up(split, host, threads);
    if (!call.dextra_values) return;
    // A sum over the batch, so the samples' units cannot compute it.
    constexpr int64_t run = 64;
    for_each(host, divided_up(split.pixels, run), threads, [&](int64_t, auto claim) {
      for (int64_t item; (item = claim()) >= 0;) {
        const int64_t first = item * run, end = smaller(first + run, split.pixels);
        for (int64_t p = 0; p < call.extra_columns; p += extra_block)
          sum_extra_values(first, end, p, smaller(extra_block, call.extra_columns - p));
      }
    });
  }

  // dextra_values of pixels [first, end) in `count` columns.
  void sum_extra_values(int64_t first, int64_t end, int64_t column, int64_t count) const {
    constexpr int64_t W = lanes<Acc>;
    const int64_t L = call.queries_per_head, P = call.extra_columns;
    const Rows& grads = call.grad_tokens;
    Acc* out = (Acc*)call.dextra_values + column;
    for (int64_t i = first; i < end; i++)
      for (int64_t p = 0; p < count; p++) out[i * P + p] = 0;
    for (int64_t row = 0; row < split.batch * L; row++) {
      Acc grad[extra_block];
      gather(grads.data, call.dtype,
             row / L * grads.batch + row % L * grads.row + (call.out_channels + column) * grads.column,
             grads.column, grad, count);
      const Acc* a = attention + row * split.pixels;
      // An invalid pixel has A = 0; an infinite gradient times that must not become NaN.
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

// The tokenizing half of a backward: A and dS of a tile, and the gradients they are summed to.
template <class N, bool pixels_innermost>
struct TokenizerBackward {
  using Acc = typename N::Acc;
  using Elem = typename N::Elem;
  const Call& call;
  const Split& split;
  const TokenizeBackwardPlan<N, pixels_innermost>& plan;
  int64_t num_heads, L, part;            // part: channels of a head's block
  Bank<N, pixels_innermost> rows;        // of each head: queries, then the tokens' gradients
  Bank<N, pixels_innermost> extra_rows;  // the tokens' gradients in the columns of the extra values
  Weights<N, pixels_innermost> weights;  // of each head: dS, then A
  Sums<N, pixels_innermost> dqueries;
  PixelOptions<N> options;
  TiledMap<N, pixels_innermost> extra;
  Acc *delta, *scratch, *extra_scores = nullptr;
  int64_t sample = -1;

  TokenizerBackward(const Call& call, const Split& split,
                    const TokenizeBackwardPlan<N, pixels_innermost>& plan, Arena& arena)
      : call(call),
        split(split),
        plan(plan),
        num_heads(call.query_heads),
        L(call.queries_per_head),
        part(call.out_channels / num_heads),
        rows(num_heads, 2 * L, part, true, true, arena, L),
        weights(num_heads, 2 * L, true, arena),
        options(call, arena),
        extra(extra_values_map(call), Use::read, call, call.extra_columns) {
    if (call.dqueries) dqueries = Sums<N, pixels_innermost>(num_heads, L, part, arena);
    if (call.extra_columns) {
      extra_rows = Bank<N, pixels_innermost>(1, L, call.extra_columns, true, false, arena);
      extra.take_buffer(arena, split.tile);
      extra_scores = arena.take<Acc>(rounded_up(L, 16) * score_ld);
    }
    delta = arena.take<Acc>(num_heads * L);
    scratch = arena.take<Acc>(score_ld * rounded_up(2 * L, 16));
  }

  void begin(int64_t wanted) {
    if (sample == wanted) return;
    sample = wanted;
    const int64_t width = call.out_channels + call.extra_columns;
    for (int64_t h = 0; h < num_heads; h++)
      for (int64_t l = 0; l < L; l++) {
        rows.set_row(h, l, call.queries, call.dtype, sample, h * L + l, 0);
        rows.set_row(h, L + l, call.grad_tokens, call.dtype, sample, l, h * part);
        if (call.extra_columns)
          extra_rows.set_row(0, l, call.grad_tokens, call.dtype, sample, l, call.out_channels);
        const int64_t row = h * L + l;
        const Acc* token = (const Acc*)call.exact_tokens + (sample * L + l) * width + h * part;
        // In double: all pixels share delta, so that its error does not average out in a sum over them.
        double sum = rows.dot(h, L + l, token);
        if (call.extra_columns) sum += extra_rows.dot(0, l, token + part);
        if (call.grad_lse.data)
          sum -= ((const Acc*)call.grad_lse.data)[sample * call.grad_lse.batch + row * call.grad_lse.column];
        delta[row] = (Acc)sum;
      }
    rows.pack();
    if (call.extra_columns) extra_rows.pack();
  }

  // Computes dS and A of a tile of the tokenized map, whose invalid pixels are 0, and adds to the gradients
  // of all operands but the map.
  void add(PixelRange range, View<const Elem> x, const uint8_t* valid, int64_t ahead) {
    const int64_t n = range.count;
    const Acc* lse = (const Acc*)call.saved_lse + range.sample * num_heads * L;
    if (call.extra_columns)
      score<N, pixels_innermost>(extra.read(range, valid), n, extra_rows, 0, extra_scores, scratch);
    for (int64_t h = 0; h < num_heads; h++) {
      const View<const Elem> block = x.template from_channel<pixels_innermost>(h * part);
      Acc *s = weights.row(2 * h * L), *g = s + L * score_ld;
      score<N, pixels_innermost>(block, n, rows, h, s, scratch, ahead);
      if (options.bias) add_rows(s, L, n, options.bias, 0);
      if (call.extra_columns) add_rows(g, L, n, extra_scores, score_ld);
      pool_backward(s, g, L, n, lse + h * L, delta + h * L);
      if (valid) fill_invalid(s, 2 * L, n, valid, (Acc)0);
      weights.round(2 * h * L, 2 * L, n);
      if (call.dqueries) dqueries.add(h, block, n, weights.for_pool(2 * h * L, L, n), nullptr, ahead);
    }
    dqueries.fresh = false;
    if (call.dpixel_bias) {
      Acc* out = (Acc*)call.dpixel_bias + range.sample * split.pixels + range.first;
      for (int64_t i = 0; i < n; i += lanes<Acc>) {
        Vec<Acc> sum{};
        for (int64_t h = 0; h < num_heads; h++)
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
    expand(weights, rows, range.count, base, out, storing, ahead);
  }

  // Writes the sums of one sample's chunk (shared = false), or of a whole unit.
  void emit(bool shared, int64_t unit, int64_t of_sample) {
    if (!call.dqueries || plan.dqueries.shared != shared) return;
    Acc* out = plan.dqueries.place(unit, of_sample);
    for (int64_t h = 0; h < num_heads; h++) dqueries.emit(h, out + h * L * part, part, nullptr);
    dqueries.fresh = true;
  }
};

template <class N, bool pixels_innermost>
struct TokenizeBackwardWorker {
  using Elem = typename N::Elem;
  TiledMap<N, pixels_innermost> x, dx;
  TokenizerBackward<N, pixels_innermost> tokenizer;
  Storing storing;

  TokenizeBackwardWorker(const Call& call, const Split& split,
                         const TokenizeBackwardPlan<N, pixels_innermost>& plan, Arena& arena)
      : x(call.x, Use::read, call, call.channels),
        dx(call.dx, Use::write, call, call.channels),
        tokenizer(call, split, plan, arena),
        storing(storing_of(dx, tokenizer.part, call, split)) {
    x.take_buffer_if_needed(arena, split.tile, tokenizer.options.any);
    dx.take_buffer_if_needed(arena, split.tile);
  }
  void begin(int64_t sample) { tokenizer.begin(sample); }
  void tile(PixelRange range, Place next) {
    const uint8_t* valid = tokenizer.options.read(range);
    tokenizer.add(range, x.read(range, valid), valid, x.ahead(range, next));
    if (!dx.map.data) return;
    tokenizer.grad_map(range, {nullptr, 0}, dx.target(range), storing, 0);
    if (valid) dx.clear_invalid(dx.target(range), range.count, valid);
    dx.write(range);
  }
  void end_chunk(int64_t unit, int64_t sample, int64_t) { tokenizer.emit(false, unit, sample); }
  void end_unit(int64_t unit) { tokenizer.emit(true, unit, 0); }
};

template <class N, bool pixels_innermost>
void tokenize_backward(const Call& call, const Host& host) {
  const Split split = split_of<N, pixels_innermost>(call, call.channels, 16 * call.queries_per_head);
  run<TokenizeBackwardPlan<N, pixels_innermost>, TokenizeBackwardWorker<N, pixels_innermost>>(
      call, split, 3 * call.batch * call.pixels * call.queries_per_head * call.channels, host);
}

}  // namespace
}  // namespace vt::VT_NAMESPACE
