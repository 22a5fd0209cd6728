// tokenize: pixels to tokens, in one read of the map; and its backward, in one read of the map, with its
// gradient written.
//
// With A = exp(x queries^T - lse), dA = x dT^T (plus the extra values' part), delta = rowsum(dT * T) - dlse:
// dS = A * (dA - delta), dx = A dT + dS queries, dqueries = dS^T x, dpixel_bias = rowsum(dS),
// dextra_values = sum over the batch of A dT[:, C:].
//
// With a softmax over tokens, or none, A needs no sum over pixels and tokens are plain sums: see `weigh` in
// softmax.h for A and dS. The statistics are the sums of A then, and delta is their gradient's negative.
// Where another map V is pooled, dA = V dT^T and dV = A dT.
#pragma once

#include "layer_norm.h"
#include "run.h"
#include "softmax.h"

namespace vt::VT_NAMESPACE {
namespace {

// Channels of the map that the queries see: x, or in project_tokenize the projected map.
VT_INLINE int64_t query_width(const Call& call) {
  return call.pools_values ? call.channels : call.out_channels;
}
// Channels that are read for a pixel.
VT_INLINE int64_t pooling_width(const Call& call) {
  return call.channels + (call.pools_values ? call.out_channels : 0);
}

// The bias of a query; 0 without one.
template <class Acc>
Acc bias_of(const Call& call, int64_t sample, int64_t row) {
  const Rows& given = call.query_bias;
  Acc bias = 0;
  if (given.data)
    gather(given.data, call.query_bias_dtype, sample * given.batch + row * given.column, 1, &bias, 1);
  return bias;
}

// lse, which a softmax over pixels adds the bias to, or the sum of the weights. `seen`: 0 where there are no
// valid pixels, or the row is removed.
template <class Acc>
VT_INLINE void put_statistic(const Call& call, int64_t place, int64_t seen, Acc highest, Acc sum, Acc bias) {
  Acc& out = ((Acc*)call.stats_out)[place];
  if (call.pooling == Normalize::pixels)
    out = seen ? call.query_bias.data ? log_sum(highest, sum) + bias : log_sum(highest, sum)
               : -(Acc)__builtin_inff();
  else
    out = seen ? sum : 0;
}

// Tokens of chunks of pixels, and the statistics that their merge needs.
template <class Acc>
struct Chunks {
  const Call& call;
  int64_t width, rows;  // of a token; of scores: num_heads * L
  Acc *tokens = nullptr, *highest = nullptr, *sums = nullptr, *pooled = nullptr;
  int64_t* valid = nullptr;

  Chunks(const Call& call, int64_t count, Arena& arena)
      : call(call),
        width(call.out_channels + call.extra_columns),
        rows(call.query_heads * call.queries_per_head) {
    if (count == 0) return;
    tokens = arena.take<Acc>(count * call.queries_per_head * width);
    highest = arena.take<Acc>(count * rows), sums = arena.take<Acc>(count * rows);
    pooled = arena.take<Acc>(count * rows), valid = arena.take<int64_t>(count);
  }

  // Merges the `chunks` chunks of a sample from place `unit` in their order: one head's part of a token.
  void merge(int64_t unit, int64_t chunks, int64_t sample, int64_t row) const {
    const bool shifted = call.pooling == Normalize::pixels;
    const int64_t L = call.queries_per_head, head = row / L, l = row % L;
    const int64_t part = call.out_channels / call.query_heads, count = call.query_heads == 1 ? width : part;
    Acc top = shifted ? highest[unit * rows + row] : 0;
    int64_t seen = valid[unit];
    for (int64_t j = 1; j < chunks; j++) {
      const Acc other = shifted ? highest[(unit + j) * rows + row] : 0;
      top = other > top || other != other ? other : top;
      seen += valid[unit + j];
    }
    const Acc bias = bias_of<Acc>(call, sample, row);
    if (bias == -(Acc)__builtin_inff()) seen = 0;
    const Acc base = top == -(Acc)__builtin_inff() ? 0 : top;
    Acc factors[most_units], sum = 0, weight = 0;
    for (int64_t j = 0; j < chunks; j++) {
      const int64_t at = (unit + j) * rows + row;
      factors[j] = shifted ? exponential(splat<Acc>(highest[at] - base))[0] : 1;
      sum += factors[j] * sums[at], weight += factors[j] * pooled[at];
    }
    if (!shifted) weight = 1;
    if (weight == 0 && call.scores.data) seen = 0;
    if (shifted) weight += 0 * bias;  // NaN where the bias is not finite
    put_statistic(call, sample * rows + row, seen, top, sum, bias);
    const Acc* from = tokens + (unit * L + l) * width + head * part;
    Acc* to = (Acc*)call.tokens_out + (sample * L + l) * width + head * part;
    for (int64_t c = 0; c < count; c += lanes<Acc>) {
      const int64_t columns = smaller<int64_t>(lanes<Acc>, count - c);
      Vec<Acc> token{};
      for (int64_t j = 0; j < chunks; j++)
        token += factors[j] / weight * load_part(from + j * L * width + c, columns);
      store_part(to + c, seen ? token : Vec<Acc>{}, columns);
    }
  }
};

// The chunks of samples that several units share.
template <class N, bool pixels_innermost>
struct TokenizePlan {
  using Acc = typename N::Acc;
  const Split& split;
  Chunks<Acc> chunks;

  TokenizePlan(const Call& call, const Split& split, Arena& arena)
      : split(split), chunks(call, split.slots, arena) {}

  void finish(const Host& host, int64_t threads) const {
    if (split.slots == 0) return;
    const int64_t rows = chunks.rows;
    for_each(host, split.batch * rows, threads, [&](int64_t, auto claim) {
      for (int64_t item; (item = claim()) >= 0;)
        if (const int64_t sample = item / rows, count = split.slots_of(sample); count > 0)
          chunks.merge(split.slot(sample, 0), count, sample, item % rows);
    });
  }
};

// The tokenizing half of a worker: the sums over a chunk's pixels. Where it says `values`, it is x itself
// unless another map is pooled.
template <class N, bool pixels_innermost>
struct Tokenizer {
  using Acc = typename N::Acc;
  using Elem = typename N::Elem;
  const Call& call;
  const Split& split;
  const TokenizePlan<N, pixels_innermost>& plan;
  Chunks<Acc> own;             // of a bag that this worker computes
  int64_t num_heads, L, part;  // part: channels of a head's block of the values
  Bank<N, pixels_innermost> queries;
  Weights<N, pixels_innermost> weights;
  Sums<N, pixels_innermost> tokens, pooled_extra;
  Running<Acc> running;
  RowBias<Acc> bias;
  PixelOptions<N> options;
  TiledMap<N, pixels_innermost> extra;
  Acc *scratch, *factors;
  Current current;
  int64_t seen = 0;  // valid pixels so far

  Tokenizer(const Call& call, const Split& split, const TokenizePlan<N, pixels_innermost>& plan, Arena& arena)
      : call(call),
        split(split),
        plan(plan),
        own(call, split.own_chunks > 1 ? split.own_chunks : 0, arena),
        num_heads(call.query_heads),
        L(call.queries_per_head),
        part(call.out_channels / num_heads),
        queries(num_heads, call.queries.data ? L : 0, query_width(call) / num_heads, true, false, arena),
        weights(num_heads, L, false, arena),
        tokens(num_heads, L, part, arena),
        running(num_heads * L, arena),
        bias(call.query_bias, call.query_bias_dtype, num_heads * L, call.softmax_rows, arena),
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
    if (!current.is(sample, (!call.queries.data || call.queries.shared) && bias.shared())) {
      bias.read(sample);
      if (call.queries.data)
        queries.set_rows(0, queries.rows, call.queries, call.dtype, sample, L, 0,
                         [&](int64_t row) { return bias.removed(row); });
      queries.pack();
    }
    running.clear();
    tokens.fresh = pooled_extra.fresh = true;
    seen = 0;
  }

  // Adds a tile of the map to be tokenized, whose invalid pixels are 0.
  void add(PixelRange range, View<const Elem> x, const uint8_t* valid, int64_t ahead) {
    add(range, x, x, valid, ahead, ahead);
  }
  void add(PixelRange range, View<const Elem> x, View<const Elem> values, const uint8_t* valid, int64_t ahead,
           int64_t values_ahead) {
    const bool shifted = call.pooling == Normalize::pixels;
    seen += options.valid_count;
    for (int64_t h = 0; h < num_heads; h++) {
      Acc* s = weights.row(h * L);
      score_block(call, range, x, queries, h, L, s, scratch, bias, ahead);
      if (options.bias) add_rows(s, L, range.count, options.bias, 0);
      if (shifted) {
        if (valid) fill_invalid(s, L, range.count, valid, -(Acc)__builtin_inff());
        run_softmax(running, weights, h * L, L, range.count);
      } else {
        // Where logits are 0, so that weights are finite: values are 0 there, too.
        if (valid) fill_invalid(s, L, range.count, valid, (Acc)0);
        weigh(call.pooling, call.scores.data, weights, h * L, L, range.count, bias, h * L);
        if (valid) fill_invalid(s, L, range.count, valid, (Acc)0);
        fill_padding(s, L, range.count, (Acc)0);
        sum_rows(s, L, range.count, running.sum + h * L, false);
      }
      const View<const Elem> block = values.template from_channel<pixels_innermost>(h * part);
      const typename N::Lane* a = weights.for_pool(h * L, L, range.count);
      tokens.add(h, block, range.count, a, shifted ? running.scale + h * L : nullptr, values_ahead);
      if (call.extra_columns) {
        pooled_extra.add(0, extra.read(range, valid), range.count, a, running.scale);
      }
    }
    tokens.fresh = pooled_extra.fresh = false;
  }

  // Writes the tokens and statistics of a chunk.
  void end(int64_t sample, int64_t chunk) {
    const int64_t chunks = split.chunks_of(sample);
    const bool whole = chunks == 1, divided = whole && call.pooling == Normalize::pixels,
               slotted = split.slots_of(sample) > 0;
    const Chunks<Acc>& to = slotted ? plan.chunks : own;
    const int64_t rows = to.rows, width = to.width, unit = slotted ? split.slot(sample, chunk) : chunk;
    Acc* out = whole ? (Acc*)call.tokens_out + sample * L * width : to.tokens + unit * L * width;
    for (int64_t h = 0; h < num_heads; h++) {
      // A sample without a valid pixel has tokens of 0, and so has a row whose given scores are all -inf.
      for (int64_t l = 0; l < L; l++) {
        const Acc sum = running.pooled[h * L + l];
        factors[l] = !divided ? 1 : sum == 0 && call.scores.data ? 0 : 1 / sum;
        // Tokens do not depend on a row's bias, but one that is not finite makes them NaN.
        if (divided && bias.data) factors[l] += 0 * bias.data[h * L + l];
      }
      if (whole && !seen) tokens.fresh = pooled_extra.fresh = true;
      tokens.emit(h, out + h * part, width, divided ? factors : nullptr);
      if (call.extra_columns)
        pooled_extra.emit(0, out + call.out_channels, width, divided ? factors : nullptr);
      for (int64_t l = 0; bias.data && whole && l < L; l++)
        if (bias.removed(h * L + l))
          for (int64_t c = 0; c < part + call.extra_columns; c++) out[l * width + h * part + c] = 0;
    }
    if (!whole) to.valid[unit] = seen;
    for (int64_t row = 0; row < rows; row++)
      if (whole) {
        put_statistic(call, sample * rows + row, bias.removed(row) ? 0 : seen, running.highest[row],
                      running.sum[row], bias.data ? bias.data[row] : 0);
      } else {
        to.highest[unit * rows + row] = running.highest[row];
        to.sums[unit * rows + row] = running.sum[row];
        to.pooled[unit * rows + row] = running.pooled[row];
      }
    if (whole || slotted || chunk + 1 < chunks) return;
    for (int64_t row = 0; row < rows; row++) own.merge(0, chunks, sample, row);
  }
};

template <class N, bool pixels_innermost>
struct TokenizeWorker {
  using Elem = typename N::Elem;
  TiledMap<N, pixels_innermost> x, values;
  Tokenizer<N, pixels_innermost> tokenizer;
  LayerNorm<N, pixels_innermost> norm;

  TokenizeWorker(const Call& call, const Split& split, const TokenizePlan<N, pixels_innermost>& plan,
                 Arena& arena)
      : x(call.x, Use::read, call, call.channels),
        values(call.pooled_map, Use::read, call, call.out_channels),
        tokenizer(call, split, plan, arena),
        norm(call, arena) {
    x.in_place &= !norm.on;
    for (auto* each : {&x, &values}) each->take_buffer_if_needed(arena, split.tile, tokenizer.options.any);
  }
  void begin(int64_t sample) { tokenizer.begin(sample); }
  void tile(PixelRange range, Place next) {
    const uint8_t* valid = tokenizer.options.read(range);
    const Call& call = tokenizer.call;
    const bool unused = call.pools_values && !call.queries.data;
    const View<const Elem> tile = unused ? View<const Elem>{nullptr, 0} : x.read(range, valid);
    if (norm.on) norm.normalize({x.buffer, x.buffer_ld}, range.count);
    const int64_t ahead = x.ahead(tile, range, next);
    if (!call.pools_values) return tokenizer.add(range, tile, valid, ahead);
    const View<const Elem> pooled = values.read(range, valid);
    tokenizer.add(range, tile, pooled, valid, ahead, values.ahead(pooled, range, next));
  }
  void end_chunk(int64_t, int64_t sample, int64_t chunk) { tokenizer.end(sample, chunk); }
  void end_unit(int64_t) {}
};

template <class N, bool pixels_innermost>
void tokenize(const Call& call, const Host& host) {
  const Split split = split_of<N, pixels_innermost>(call, pooling_width(call), 16 * call.queries_per_head);
  run<TokenizePlan<N, pixels_innermost>, TokenizeWorker<N, pixels_innermost>>(
      call, split, all_pixels(call) * call.queries_per_head * pooling_width(call), host);
}

template <class N, bool pixels_innermost>
struct TokenizeBackwardPlan {
  using Acc = typename N::Acc;
  const Call& call;
  const Split& split;
  Sink<Acc> dqueries, dquery_bias;
  static constexpr int64_t extra_block = 128;  // columns whose sums stay in the first-level cache
  Acc* attention = nullptr;                    // A of all pixels, (B, L, N), only for dextra_values

  TokenizeBackwardPlan(const Call& call, const Split& split, Arena& arena)
      : call(call),
        split(split),
        dqueries(call.dqueries, call.queries.shared, call.queries_per_head * query_width(call), split, arena),
        dquery_bias(call.dquery_bias, call.query_bias.shared, call.query_heads * call.queries_per_head, split,
                    arena) {
    if (call.dextra_values) attention = arena.take<Acc>(split.batch * call.queries_per_head * split.pixels);
  }

  void finish(const Host& host, int64_t threads) const {
    for (auto* each : {&dqueries, &dquery_bias}) each->sum_up(split, host, threads);
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
  bool joint;                  // queries and pooled values see the same map: one product for both
  int64_t num_heads, L, part;  // part: channels of a head's block of the values
  // Of each head: queries, then where joint the tokens' gradients; others are in value_rows.
  Bank<N, pixels_innermost> rows, value_rows;
  Bank<N, pixels_innermost> extra_rows;  // the tokens' gradients in the columns of the extra values
  // Of each head: dS, then where joint A; others are in value_weights.
  Weights<N, pixels_innermost> weights, value_weights;
  Sums<N, pixels_innermost> dqueries;
  RowBias<Acc> bias;
  PixelOptions<N> options;
  TiledMap<N, pixels_innermost> extra;
  Acc *delta, *lse, *scratch, *extra_scores = nullptr, *dquery_bias = nullptr;
  Acc *own_dqueries, *own_dquery_bias;  // see Sink
  bool fresh_query_bias = true;
  int64_t sample = -1;

  TokenizerBackward(const Call& call, const Split& split,
                    const TokenizeBackwardPlan<N, pixels_innermost>& plan, Arena& arena)
      : call(call),
        split(split),
        plan(plan),
        joint(!call.pools_values && call.queries.data),
        num_heads(call.query_heads),
        L(call.queries_per_head),
        part(call.out_channels / num_heads),
        rows(num_heads,
             joint               ? 2 * L
             : call.queries.data ? L
                                 : 0,
             query_width(call) / num_heads, true, true, arena),
        weights(num_heads, joint ? 2 * L : L, true, arena),
        bias(call.query_bias, call.query_bias_dtype, num_heads * L, call.softmax_rows, arena),
        options(call, arena),
        extra(extra_values_map(call), Use::read, call, call.extra_columns) {
    if (!joint) {
      value_rows = Bank<N, pixels_innermost>(num_heads, L, part, true, true, arena);
      value_weights = Weights<N, pixels_innermost>(num_heads, L, true, arena);
    }
    if (call.dqueries) dqueries = Sums<N, pixels_innermost>(num_heads, L, rows.depth, arena);
    if (call.dquery_bias) dquery_bias = arena.take<Acc>(num_heads * L);
    own_dqueries = plan.dqueries.take_own(arena), own_dquery_bias = plan.dquery_bias.take_own(arena);
    if (call.extra_columns) {
      extra_rows = Bank<N, pixels_innermost>(1, L, call.extra_columns, true, false, arena);
      extra.take_buffer(arena, split.tile);
      extra_scores = arena.take<Acc>(rounded_up(L, 16) * score_ld);
    }
    delta = arena.take<Acc>(num_heads * L);
    lse = arena.take<Acc>(num_heads * L);
    scratch = arena.take<Acc>(score_ld * rounded_up(2 * L, 16));
  }
  const Bank<N, pixels_innermost>& grad_rows() const { return joint ? rows : value_rows; }
  // dS and A of head h.
  Acc* logit_grads(int64_t h) const { return weights.row(joint ? 2 * h * L : h * L); }
  Acc* attention(int64_t h) const { return joint ? weights.row(2 * h * L + L) : value_weights.row(h * L); }

  void begin(int64_t wanted) {
    if (sample == wanted) return;
    sample = wanted;
    const int64_t width = call.out_channels + call.extra_columns, first_grad = joint ? L : 0;
    const Bank<N, pixels_innermost>& grads = grad_rows();
    const bool shifted = call.pooling == Normalize::pixels;
    bias.read(sample);
    const auto removed = [&](int64_t row) { return bias.removed(row); };
    if (call.queries.data) rows.set_rows(0, L, call.queries, call.dtype, sample, L, 0, removed);
    grads.set_rows(first_grad, L, call.grad_tokens, call.dtype, sample, 0, part, removed);
    for (int64_t h = 0; h < num_heads; h++)
      for (int64_t l = 0; l < L; l++) {
        const int64_t row = h * L + l;
        const bool zero = bias.removed(row);
        if (call.extra_columns)
          extra_rows.set_row(0, l, call.grad_tokens, call.dtype, sample, l, call.out_channels, zero);
        const Acc* token = (const Acc*)call.exact_tokens + (sample * L + l) * width + h * part;
        // In double: all pixels share delta, so that its error does not average out in a sum over them.
        double sum = shifted ? grads.dot(h, first_grad + l, token) : 0;
        if (call.extra_columns) sum += extra_rows.dot(0, l, token + part);
        if (call.grad_stats.data && !zero) sum -= grad_lse(row);
        delta[row] = (Acc)sum;
        // Without the bias, as logits are; infinite for a removed row, and for one whose given scores are all
        // -inf: their weights become 0.
        lse[row] = ((const Acc*)call.saved_stats)[sample * num_heads * L + row];
        const bool empty = zero || (call.scores.data && lse[row] == -(Acc)__builtin_inff());
        if (empty)
          lse[row] = (Acc)__builtin_inff();
        else if (bias.data)
          lse[row] -= bias.data[row];
      }
    rows.pack();
    if (!joint) value_rows.pack();
    if (call.extra_columns) extra_rows.pack();
  }

  Acc grad_lse(int64_t row) const {
    const Rows& given = call.grad_stats;
    return given.data ? ((const Acc*)given.data)[sample * given.batch + row * given.column] : 0;
  }

  // Computes dS and A of a tile of the tokenized map, whose invalid pixels are 0, and adds to the gradients
  // of all operands but the map.
  void add(PixelRange range, View<const Elem> x, const uint8_t* valid, int64_t ahead) {
    add(range, x, x, valid, ahead, ahead);
  }
  void add(PixelRange range, View<const Elem> x, View<const Elem> values, const uint8_t* valid, int64_t ahead,
           int64_t values_ahead) {
    const int64_t n = range.count;
    if (call.extra_columns)
      score<N, pixels_innermost>(extra.read(range, valid), n, extra_rows, 0, extra_scores, scratch);
    for (int64_t h = 0; h < num_heads; h++) {
      Acc *s = logit_grads(h), *g = attention(h);
      score_block(call, range, x, rows, h, L, s, scratch, bias, ahead);
      if (!joint)
        score<N, pixels_innermost>(values.template from_channel<pixels_innermost>(h * part), n, value_rows, h,
                                   g, scratch, values_ahead);
      if (options.bias) add_rows(s, L, n, options.bias, 0);
      if (call.extra_columns) add_rows(g, L, n, extra_scores, score_ld);
      differentiate(h, s, g, n, valid);
      if (joint) {
        if (valid) fill_invalid(s, 2 * L, n, valid, (Acc)0);
        weights.round(2 * h * L, 2 * L, n);
      } else {
        for (Acc* each : {s, g})
          if (valid) fill_invalid(each, L, n, valid, (Acc)0);
        weights.round(h * L, L, n), value_weights.round(h * L, L, n);
      }
      if (call.dqueries)
        dqueries.add(h, x.template from_channel<pixels_innermost>(h * rows.depth), n,
                     weights.for_pool(joint ? 2 * h * L : h * L, L, n), nullptr, ahead);
      if (call.dscores.data) put_score_grads(call, range, h * L, L, s);
      if (dquery_bias) add_to_bias(range, h);
    }
    dqueries.fresh = fresh_query_bias = false;
    if (call.dpixel_bias) {
      Acc* out = (Acc*)call.dpixel_bias + split.flat(range.sample, range.first);
      for (int64_t i = 0; i < n; i += lanes<Acc>) {
        Vec<Acc> sum{};
        for (int64_t h = 0; h < num_heads; h++)
          for (int64_t l = 0; l < L; l++) sum += load<Acc>(logit_grads(h) + l * score_ld + i);
        store_part(out + i, sum, smaller<int64_t>(lanes<Acc>, n - i));
      }
    }
    if (plan.attention)
      for (int64_t l = 0; l < L; l++)
        __builtin_memcpy(plan.attention + (range.sample * L + l) * split.pixels + range.first,
                         attention(0) + l * score_ld, n * sizeof(Acc));
  }

  // Logits and dA of head h -> dS and A.
  void differentiate(int64_t h, Acc* s, Acc* g, int64_t n, const uint8_t* valid) {
    if (call.pooling == Normalize::pixels) return pool_backward(s, g, L, n, lse + h * L, delta + h * L);
    if (valid) fill_invalid(s, L, n, valid, (Acc)0);
    weigh(call.pooling, call.scores.data, weights, joint ? 2 * h * L : h * L, L, n, bias, h * L);
    for (int64_t l = 0; l < L; l += bias.L)
      weigh_backward<true>(call.pooling, s + l * score_ld, g + l * score_ld, bias.L, n, delta + h * L + l);
    fill_padding(s, L, n, (Acc)0);
    fill_padding(g, L, n, (Acc)0);
  }

  // Under a softmax over pixels the bias cancels but in lse.
  void add_to_bias(PixelRange range, int64_t h) {
    Acc* sums = dquery_bias + h * L;
    if (call.pooling != Normalize::pixels)
      return sum_rows(logit_grads(h), L, range.count, sums, fresh_query_bias);
    for (int64_t l = 0; l < L; l++) {
      if (fresh_query_bias) sums[l] = 0;
      const int64_t row = h * L + l;
      const bool none =
          ((const Acc*)call.saved_stats)[sample * num_heads * L + row] == -(Acc)__builtin_inff();
      if (range.first == split.begin_of(sample) && !none) sums[l] += grad_lse(row);
    }
  }

  // out = base + A dT + dS queries: the map's gradient in a tile, where nothing else is pooled.
  void grad_map(PixelRange range, View<const Elem> base, View<Elem> out, Storing storing,
                int64_t ahead) const {
    if (joint || call.pools_values)
      expand(weights, rows, range.count, base, out, storing, ahead);
    else
      grad_values(range, out, storing);
  }
  // out = A dT: the gradient of the values.
  void grad_values(PixelRange range, View<Elem> out, Storing storing) const {
    expand(value_weights, value_rows, range.count, View<const Elem>{nullptr, 0}, out, storing, 0);
  }

  // Writes the sums of one sample's chunk (shared = false), or of a whole unit.
  void emit(bool shared, int64_t unit, int64_t of_sample, int64_t chunk) {
    if (call.dqueries && plan.dqueries.shared == shared) {
      plan.dqueries.put(unit, of_sample, chunk, own_dqueries, [&](Acc* out) {
        for (int64_t h = 0; h < num_heads; h++)
          dqueries.emit(h, out + h * L * rows.depth, rows.depth, nullptr);
      });
      dqueries.fresh = true;
    }
    if (dquery_bias && plan.dquery_bias.shared == shared) {
      plan.dquery_bias.put(unit, of_sample, chunk, own_dquery_bias, [&](Acc* out) {
        for (int64_t row = 0; row < num_heads * L; row++) out[row] = fresh_query_bias ? 0 : dquery_bias[row];
      });
      fresh_query_bias = true;
    }
  }
};

template <class N, bool pixels_innermost>
struct TokenizeBackwardWorker {
  using Elem = typename N::Elem;
  TiledMap<N, pixels_innermost> x, values, dx, dvalues;
  TokenizerBackward<N, pixels_innermost> tokenizer;
  LayerNorm<N, pixels_innermost> norm;
  Storing storing, storing_values;

  TokenizeBackwardWorker(const Call& call, const Split& split,
                         const TokenizeBackwardPlan<N, pixels_innermost>& plan, Arena& arena)
      : x(call.x, Use::read, call, call.channels),
        values(call.pooled_map, Use::read, call, call.out_channels),
        dx(call.dx, Use::write, call, call.channels),
        dvalues(call.dpooled_map, Use::write, call, call.out_channels),
        tokenizer(call, split, plan, arena),
        norm(call, arena) {
    x.in_place &= !norm.on, dx.in_place &= !norm.on;
    storing = storing_of(dx, tokenizer.rows.depth, call, split);
    storing_values = storing_of(dvalues, tokenizer.part, call, split);
    for (auto* each : {&x, &values}) each->take_buffer_if_needed(arena, split.tile, tokenizer.options.any);
    for (auto* each : {&dx, &dvalues}) each->take_buffer_if_needed(arena, split.tile);
  }
  void begin(int64_t sample) { tokenizer.begin(sample); }
  void tile(PixelRange range, Place next) {
    const uint8_t* valid = tokenizer.options.read(range);
    const Call& call = tokenizer.call;
    const bool unused = call.pools_values && !call.queries.data;
    const View<const Elem> tile = unused ? View<const Elem>{nullptr, 0} : x.read(range, valid);
    if (norm.on) norm.normalize({x.buffer, x.buffer_ld}, range.count);
    const int64_t ahead = x.ahead(tile, range, next);
    if (call.pools_values) {
      const View<const Elem> pooled = values.read(range, valid);
      tokenizer.add(range, tile, pooled, valid, ahead, values.ahead(pooled, range, next));
    } else {
      tokenizer.add(range, tile, valid, ahead);
    }
    if (dvalues.map.data) {
      tokenizer.grad_values(range, dvalues.target(range), storing_values);
      if (valid) dvalues.clear_invalid(dvalues.target(range), range.count, valid);
      dvalues.write(range);
    }
    if (!dx.map.data) return;
    tokenizer.grad_map(range, {nullptr, 0}, dx.target(range), storing, 0);
    if (norm.on) norm.differentiate(tile, dx.target(range), range.count);
    if (valid) dx.clear_invalid(dx.target(range), range.count, valid);
    dx.write(range);
  }
  void end_chunk(int64_t unit, int64_t sample, int64_t chunk) { tokenizer.emit(false, unit, sample, chunk); }
  void end_unit(int64_t unit) { tokenizer.emit(true, unit, 0, 0); }
};

template <class N, bool pixels_innermost>
void tokenize_backward(const Call& call, const Host& host) {
  const Split split = split_of<N, pixels_innermost>(call, pooling_width(call), 16 * call.queries_per_head);
  run<TokenizeBackwardPlan<N, pixels_innermost>, TokenizeBackwardWorker<N, pixels_innermost>>(
      call, split, 3 * all_pixels(call) * call.queries_per_head * pooling_width(call), host);
}

}  // namespace
}  // namespace vt::VT_NAMESPACE
