// tokenize: pixels to tokens, in one read of the map.
#pragma once

#include "operands.h"
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

}  // namespace
}  // namespace vt::VT_NAMESPACE
