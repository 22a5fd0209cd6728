// tokenize, project and project_tokenize: the map is read once, and written once where it is a result.
//
// project: Y = [residual] + softmax over tokens of (X K^T + bias), times V, over X in shared memory.
// tokenize: T = softmax over pixels of (Y Q^T + bias), transposed, times Y; Y is X without project. The
// maximum, the sum of weights and the tokens are kept up to date from tile to tile. Weights may also be a
// softmax over tokens, or the logits: then tokens are plain sums, and the sums of weights are a result. A
// sample that lies within one cluster's share is finished by it; of the others it leaves parts, which
// CombineTokens puts together.
#pragma once

#include "kernel.h"

namespace vt {
namespace cuda {

template <class T_, Layout LAYOUT_, int MT_, int NT_, int TP_, bool PROJECT_, bool TOKENIZE_>
struct Forward : Kernel<T_, LAYOUT_, MT_, NT_, TP_, 1> {
  using Base = Kernel<T_, LAYOUT_, MT_, NT_, TP_, 1>;
  using Base::kRows;
  using Base::MT;
  using Base::NT;
  using Base::TP;
  using typename Base::Position;
  using typename Base::T;
  using typename Base::Term;
  using typename Base::Tile;
  using typename Base::View;
  using typename Base::Warp;
  static constexpr bool PROJECT = PROJECT_, TOKENIZE = TOKENIZE_, BACKWARD = false;

  // Without sums, pairs of floats take registers.
  static constexpr int kMostWarps = Base::most_warps(TOKENIZE         ? MT * NT * 4 + 16 * PROJECT
                                                     : sizeof(T) == 4 ? MT * NT * 2
                                                                      : 0);

  // A token's weights are spread over kLanes lanes, one pixel each.
  static constexpr int kLanes = TP, kAtOnce = 32 / kLanes;

  static VT_DEVICE void run(const Call& call) {
    const Warp warp(call);
    const int cluster = block_x() / warp.ranks;
    const Share share = Share::of(call, cluster);
    const int count = static_cast<int>(share.end - share.begin);
    if (count == 0) return;  // the whole cluster
    warp.begin();
    Position at = Position::of(call, share.begin);

    Position ahead = at;
    int ahead_stage = 0;
    const auto copy_next = [&](bool any) {
      if (any) {
        Tile::copy(warp.slot(ahead_stage, 0), Base::sample_of(call, call.x, call.channels, ahead),
                   warp.channel, ahead.pixel(), warp.lane);
        if (PROJECT && call.residual.data != nullptr) {
          Tile::copy(warp.slot(ahead_stage, 1),
                     Base::sample_of(call, call.residual, call.out_channels, ahead), warp.channel,
                     ahead.pixel(), warp.lane);
        }
        ahead.next(call);
      }
      if (++ahead_stage == call.stages) ahead_stage = 0;
      copy_commit();
    };

    float pooled[MT][NT][4] = {};
    int begun = at.tile, stage = 0;
    for (int index = 1 - call.stages; index < count; ++index) {  // below 0, tiles are only copied
      const int pixel = at.pixel();
      uint32_t there = 0;
      if (index >= 0) {
        if (index == 0 || at.tile == 0) begin(warp, at, index == 0);
        if (TOKENIZE) there = Base::taking_part(call, at, warp.lane);
        Base::wait_stage(call.stages);
      }
      copy_next(index + call.stages - 1 < count);
      if (index < 0) continue;
      const Sample<T> x = Base::sample_of(call, call.x, call.channels, at);
      const View view(warp.slot(stage, 0), warp.lane, x, pixel);
      if constexpr (PROJECT) {
        project(warp, view, warp.slot(stage, 1));
        sync_warp();
        if (call.map.data != nullptr) {
          Tile::store(Base::sample_of(call, call.map, call.out_channels, at), view.at, warp.channel, pixel,
                      warp.lane);
        }
      }
      if constexpr (TOKENIZE) tokenize(warp, view, pooled, at, there);
      if (++stage == call.stages) stage = 0;

      const Position here = at;
      at.next(call);
      if (index + 1 == count || at.tile == 0) {
        if constexpr (TOKENIZE)
          finish(warp, pooled, here, begun, at.tile == 0 ? call.tiles_per_sample : at.tile, share, cluster);
        begun = at.tile;
      }
    }
    copy_wait<0>();
  }

  // Small operands of a sample; those that the batch shares stay from the sample before.
  static VT_DEVICE void begin(const Warp& warp, const Position& at, bool first) {
    const Call& call = warp.call;
    const bool keys =
        PROJECT && (first || call.keys.batch != 0 || call.values.batch != 0 || call.token_bias.batch != 0);
    const bool queries =
        TOKENIZE && (first || call.queries.batch != 0 || call.token_bias.batch != 0 || at.b == 0);
    sync_warp();  // a bank is the warp's own
    if (keys) Base::fill_keys(warp, at);
    if (keys || (queries && plain_sums(call)))
      Base::load_token_bias(warp, at);  // last read before a barrier of the last tile
    if (queries) Base::fill_queries(warp, at);
    if (keys || queries) {
      copy_commit();
      copy_wait<0>();
    }
    if constexpr (TOKENIZE) {
      // Each row's statistics belong to one group of lanes, see `tokenize`.
      for (int row = warp.warp * kAtOnce + warp.lane / kLanes; row < kRows; row += warp.warps * kAtOnce) {
        if (warp.lane % kLanes == 0)
          set_shared(call.places.highest + row * 4, plain_sums(call) ? 0.f : minus_infinity());
        set_shared(call.places.totals + (row * kLanes + warp.lane % kLanes) * 8, Totals{0.f, 0.f});
      }
      for (int i = thread(); i < call.queries_count * call.extra_columns; i += threads())
        set_shared(call.places.extra + i * 4, 0.f);
    }
    sync_warp();  // biases are read behind the next barrier
  }

  // Y over X: two barriers.
  static VT_DEVICE void project(const Warp& warp, const View& view, uint32_t residual) {
    const Call& call = warp.call;
    Base::template scores<1>(warp, view, {warp.bank(call.places.keys)});
    warp.template share_scores<0, 1>();
    Base::for_pixels(warp, [&](int p, bool exists) {
      float weight[NT];
      Base::token_weights(warp, p, weight);
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        if (exists) Base::set_by_pixel(call, p, n * 8 + warp.g, weight[n]);
      }
    });
    warp.sync();
    const Term terms[1] = {{0, warp.bank(call.places.values)}};
    Base::spread(warp, view, call.residual_is_input || call.residual.data != nullptr,
                 call.residual_is_input ? view.at : residual, terms);
  }

  // Whether tokens are plain sums over pixels. Nothing is relative to a maximum then, or divided by sums.
  static VT_BOTH bool plain_sums(const Call& call) { return TOKENIZE && !PROJECT && call.plain_sums != 0; }

  // Two sums of weights: of the rounded weights, which normalizes the tokens, and of the exact ones, for lse
  // and for the sums that are a result.
  using Totals = Couple<float>;

  // Adds a tile to the tokens: two barriers. Weights are relative to `highest`, which is raised where a logit
  // exceeds it by more than kSlack: that is rare, and otherwise no maximum over lanes is needed. Each lane
  // has its own sums of weights.
  static VT_DEVICE void tokenize(const Warp& warp, const View& view, float (&pooled)[MT][NT][4],
                                 const Position& at, uint32_t there) {
    const Call& call = warp.call;
    const Places& places = call.places;
    Base::template scores<1>(warp, view, {warp.bank(places.queries)});
    warp.template share_scores<0, 1>();
    if (plain_sums(call)) {
      weigh_tokens(warp, at, there);
      Base::pool(pooled, warp, view, 0, there, Base::may_be_anything(call, there, PROJECT));
      return;
    }
    const int p = warp.lane % kLanes;
    const bool counts = there >> p & 1;
    const float bias = Base::bias_of_pixel(call, at, p, counts);
    for (int from = warp.warp * kAtOnce; from < kRows; from += warp.warps * kAtOnce) {
      const int row = from + warp.lane / kLanes;
      const uint32_t to_totals = places.totals + (row * kLanes + p) * 8;
      const float logit = counts ? warp.score(0, row, p) + bias : minus_infinity();
      const Totals before = shared<Totals>(to_totals);
      float highest = shared<float>(places.highest + row * 4), scale = 1.f;
      float top = logit * kLog2e;
      if (ballot(!(top <= highest + kSlack)) != 0) {
        VT_UNROLL
        for (int mask = kLanes / 2; mask > 0; mask /= 2) top = larger(shuffle_xor(top, mask), top);
        top = larger(top, highest);
        scale = power_of_two(highest - reference_of(top));
        highest = top;
        sync_warp();  // its lanes have read what is written now
        if (p == 0) set_shared(places.highest + row * 4, highest);
      }
      const float exact = power_of_two(multiply_add(logit, kLog2e, -reference_of(highest)));
      const T weight = narrow<T>(exact);
      Totals total = {before.x * scale + widen(weight), before.y * scale + exact};
      if (total.x == 0.f && (counts || is_empty_sum(before.x))) total.x = empty_sum();
      set_shared(to_totals, total);
      set_shared(places.by_token + row * Base::kByToken + p * Base::kSize, weight);
      if (p == 0) set_shared(places.scale + row * 4, scale);
    }
    warp.sync();
    Couple<float> scale[NT];
    bool changes = false;
    VT_UNROLL
    for (int n = 0; n < NT; ++n) {
      scale[n] = shared<Couple<float>>(places.scale + (n * 8 + warp.t * 2) * 4);
      changes = changes || scale[n].x != 1.f || scale[n].y != 1.f;
    }
    if (ballot(changes) != 0) {
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        VT_UNROLL
        for (int m = 0; m < MT; ++m) {
          pooled[m][n][0] *= scale[n].x, pooled[m][n][1] *= scale[n].y;
          pooled[m][n][2] *= scale[n].x, pooled[m][n][3] *= scale[n].y;
        }
      }
    }
    Base::pool(pooled, warp, view, 0, there, Base::may_be_anything(call, there, PROJECT));
    if (call.extra_columns > 0 && warp.rank == 0) add_extra(call, at.pixel(), there);
  }

  // Weights for plain sums, and these sums of weights: a barrier.
  static VT_DEVICE void weigh_tokens(const Warp& warp, const Position& at, uint32_t there) {
    const Places& places = warp.call.places;
    Base::for_pixels(warp, [&](int p, bool exists) {
      float weight[NT];
      const bool counts = there >> p & 1;
      Base::token_weights(warp, p, weight, Base::bias_of_pixel(warp.call, at, p, counts));
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        if (!exists) continue;
        const int row = n * 8 + warp.g;
        const float exact = counts ? weight[n] : 0.f;
        const uint32_t to_totals = places.totals + (row * kLanes + p) * 8;
        const Totals before = shared<Totals>(to_totals);
        set_shared(to_totals, Totals{before.x, before.y + exact});
        Base::set_by_token(warp.call, row, p, exact);
      }
    });
    warp.sync();
  }

  // Weights reach 2^kSlack, far from float16's largest number.
  static constexpr float kSlack = 8.f;

  // The sums of weights of each row, from those of its lanes.
  static VT_DEVICE void add_up_totals(const Warp& warp) {
    const Places& places = warp.call.places;
    for (int from = warp.warp * kAtOnce; from < kRows; from += warp.warps * kAtOnce) {
      const int row = from + warp.lane / kLanes;
      Totals total = shared<Totals>(places.totals + (row * kLanes + warp.lane % kLanes) * 8);
      const uint32_t own = TP == 32 ? 0xffffffffu : 0xffffu << warp.lane / kLanes * 16;
      const bool some = (ballot(is_empty_sum(total.x)) & own) != 0;
      VT_UNROLL
      for (int mask = kLanes / 2; mask > 0; mask /= 2) {
        total.x += shuffle_xor(total.x, mask), total.y += shuffle_xor(total.y, mask);
      }
      if (total.x == 0.f && some) total.x = empty_sum();
      if (warp.lane % kLanes == 0) set_shared(places.total + row * 8, total);
    }
    sync_block();
  }

  // Extra values are few columns: no matrix instructions. Each thread has its own sums.
  static VT_DEVICE void add_extra(const Call& call, int pixel, uint32_t there) {
    const T* values = static_cast<const T*>(call.extra_values.data);
    for (int i = thread(); i < call.queries_count * call.extra_columns; i += threads()) {
      const int row = i / call.extra_columns, column = i % call.extra_columns;
      float sum = shared<float>(call.places.extra + i * 4) * shared<float>(call.places.scale + row * 4);
      for (int p = 0; p < TP; ++p) {
        if (there >> p & 1) {
          sum += widen(shared<T>(call.places.by_token + row * Base::kByToken + p * Base::kSize)) *
                 widen(global(values + static_cast<int64_t>(pixel + p) * call.extra_columns + column));
        }
      }
      set_shared(call.places.extra + i * 4, sum);
    }
  }

  // The floats of a part: highest and totals for each row, then the tokens.
  static VT_BOTH int64_t part_size(const Call& call) {
    return static_cast<int64_t>(3 + call.out_channels + call.extra_columns) * kRows;
  }

  static VT_DEVICE void finish(const Warp& warp, float (&pooled)[MT][NT][4], const Position& at, int begun,
                               int ended, const Share& share, int cluster) {
    const Call& call = warp.call;
    const Places& places = call.places;
    add_up_totals(warp);
    const bool whole = begun == 0 && ended == call.tiles_per_sample;
    const Set set = Set::of(call, at.sample, 1);
    float* part = call.parts + set.part(cluster, share) * part_size(call);
    const int head = at.head, b = at.b;
    const int columns = call.query_heads * call.out_channels + call.extra_columns;
    // Where the sums of a row go, times `scale`: to the tokens, rounded and perhaps not, or to the part.
    const bool exact = !whole || call.exact_out != nullptr;
    struct Row {
      T* rounded;
      float* exact;
      float scale;
    };
    const auto row_of = [&](int row) -> Row {
      T* const tokens = static_cast<T*>(call.tokens);
      if (!whole)
        return {tokens,
                part + 3 * kRows + static_cast<int64_t>(row) * (call.out_channels + call.extra_columns), 1.f};
      const int64_t to =
          (static_cast<int64_t>(b) * call.queries_count + row) * columns + head * call.out_channels;
      const bool removed = plain_sums(call) && shared<float>(places.token_bias + row * 4) == minus_infinity();
      const float scale = removed            ? 0.f
                          : plain_sums(call) ? 1.f
                                             : inverse_of(shared<float>(places.total + row * 8));
      return {tokens + to, exact ? call.exact_out + to : reinterpret_cast<float*>(tokens), scale};
    };
    const auto put = [&](const Row& row, int column, float sum) {
      const float value = row.scale == 0.f ? 0.f : sum * row.scale;
      if (whole) set_global(row.rounded + column, narrow<T>(value));
      if (exact) set_global(row.exact + column, value);
    };
    if (warp.rank == 0) {
      for (int row = thread(); row < call.queries_count; row += threads()) {
        const float highest = shared<float>(places.highest + row * 4);
        const Totals total = shared<Totals>(places.total + row * 8);
        if (whole) {
          set_global(
              call.lse_out + (static_cast<int64_t>(b) * call.query_heads + head) * call.queries_count + row,
              plain_sums(call) ? total.y : lse_of(highest, total.y));
        } else {
          set_global(part + row, highest);
          set_global(part + kRows + row, total.x);
          set_global(part + 2 * kRows + row, total.y);
        }
      }
      for (int i = thread(); i < call.queries_count * call.extra_columns; i += threads()) {
        const int row = i / call.extra_columns, column = i % call.extra_columns;
        put(row_of(row), call.out_channels + column, shared<float>(places.extra + i * 4));
      }
    }
    VT_UNROLL
    for (int n = 0; n < NT; ++n) {
      VT_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int row = n * 8 + warp.t * 2 + i, first = warp.channel + warp.g;
        Row to = row_of(row);
        to.rounded += first, to.exact += first;
        const int channels = row < call.queries_count ? call.out_channels - first : 0;
        VT_UNROLL
        for (int m = 0; m < MT; ++m) {
          VT_UNROLL
          for (int half = 0; half < 2; ++half) {
            float& sum = pooled[m][n][half * 2 + i];
            if (m * 16 + half * 8 < channels) put(to, m * 16 + half * 8, sum);
            sum = 0.f;
          }
        }
      }
    }
    sync_block();  // statistics are read no more
  }
};

// Puts together what several clusters found for one sample. Grid: samples that may be split x pieces of the
// tokens, whose rows are padded to whole warps.
template <class T, int LANES>
struct CombineTokens {
  using Own = Parts<LANES>;
  static constexpr int kThreads = Own::kThreads;

  static VT_BOTH int padded(int columns) {
    return (columns + Own::kElements - 1) / Own::kElements * Own::kElements;
  }
  static VT_BOTH int64_t elements(const Call& call) {
    return static_cast<int64_t>(call.queries_count) * padded(call.out_channels + call.extra_columns) * LANES;
  }

  static VT_DEVICE void run(const Call& call) {
    const int columns = call.out_channels + call.extra_columns, rows = room_for_rows(call);
    const int row = Own::element() / padded(columns), column = Own::element() % padded(columns);
    const int sample = Set::split(call, block_x(), 1);
    if (row >= call.queries_count || sample < 0) return;
    const Own parts(call, Set::of(call, sample, 1));
    if (!parts.several()) return;
    const int64_t size = static_cast<int64_t>(3 + columns) * rows;
    const float* const of_row = call.parts + row;
    const float* const of_element =
        call.parts + 3 * rows + static_cast<int64_t>(row) * columns + (column < columns ? column : 0);
    float highest[Own::kTogether], totals[Own::kTogether], exact[Own::kTogether], sums[Own::kTogether];
    float top = minus_infinity(), total = 0.f, exact_total = 0.f, sum = 0.f;
    bool some = false;
    // Raises `top` to `other` at least.
    const auto raise = [&](float other) {
      const float raised = larger(other, top);
      const float scale = power_of_two(top - reference_of(raised));
      top = raised, total *= scale, exact_total *= scale, sum *= scale;
    };
    parts.for_each(
        [&](int i, int64_t part) {
          highest[i] = part < 0 ? minus_infinity() : global(of_row + part * size);
          totals[i] = part < 0 ? 0.f : global(of_row + part * size + rows);
          exact[i] = part < 0 ? 0.f : global(of_row + part * size + 2 * rows);
          sums[i] = part < 0 ? 0.f : global(of_element + part * size);
        },
        [&] {
          float most = minus_infinity();
          VT_UNROLL
          for (int i = 0; i < Own::kTogether; ++i) most = larger(highest[i], most);
          raise(most);
          const float reference = reference_of(top);
          VT_UNROLL
          for (int i = 0; i < Own::kTogether; ++i) {
            const float scale = power_of_two(highest[i] - reference);
            some = some || is_empty_sum(totals[i]);
            total += scale * totals[i];
            exact_total += scale * exact[i];
            sum += scale * sums[i];
          }
        });
    raise(Own::join(top, [](float a, float b) { return larger(a, b); }));
    total = Own::sum(total), exact_total = Own::sum(exact_total), sum = Own::sum(sum), some = Own::any(some);
    if (column >= columns || !Own::first_lane()) return;
    const int head = sample / call.batch, b = sample % call.batch;
    const bool plain_sums = call.plain_sums != 0;
    const bool removed =
        plain_sums && call.token_bias.data != nullptr &&
        number<T>(call.token_bias, b * call.token_bias.batch + static_cast<int64_t>(head) * call.keys_count +
                                       row) == minus_infinity();
    const float inverse = removed      ? 0.f
                          : plain_sums ? 1.f
                                       : inverse_of(total == 0.f && some ? empty_sum() : total);
    const float value = inverse == 0.f ? 0.f : sum * inverse;
    const int64_t to = (static_cast<int64_t>(b) * call.queries_count + row) *
                           (call.query_heads * call.out_channels + call.extra_columns) +
                       (head * call.out_channels + column);
    set_global(static_cast<T*>(call.tokens) + to, narrow<T>(value));
    if (call.exact_out != nullptr) set_global(call.exact_out + to, value);
    if (column == 0) {
      set_global(
          call.lse_out + (static_cast<int64_t>(b) * call.query_heads + head) * call.queries_count + row,
          plain_sums ? exact_total : lse_of(top, exact_total));
    }
  }
};

}  // namespace cuda
}  // namespace vt
