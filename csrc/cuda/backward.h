// clang-format off
// The gradients of tokenize, project and project_tokenize, in one pass over the maps. With
// A = exp(Y Q^T + bias - lse), dA = Y dT^T and dS = A * (dA - delta), delta = sum over channels of dT * T,
// minus dlse, and with P = softmax over tokens of (X K^T + bias), dP = H V^T and
// dZ = P * (dP - sum over tokens of P * dP); where tokens are plain sums, A and dS are as P and dZ, with
// dA = Y dT^T + the gradient of the sums of weights:
//
//   tokenize:          Y = X;                   dX = A dT + dS Q;  dQ = dS^T X
//   project:           H = G;                   dX = [H] + dZ K;   dK = dZ^T X;  dV = P^T H;  dbias: sum of dZ
//   project_tokenize:  Y = [residual] + P V;    H = [G] + A dT + dS Q, then as project;       dQ = dS^T Y
// clang-format on
//
// Sums of gradients of rows are kept in registers for a sample, or for all samples of a head where the batch
// shares the rows (parts.h).
#pragma once

#include "kernel.h"

namespace vt {
namespace cuda {

// What gradients of rows a part has, and where, in floats.
struct Part {
  int64_t queries, keys, values, token_bias, size;

  // `rows`: how many rows each matrix has room for.
  static VT_BOTH Part of(const Call& call, bool project, bool tokenize, int rows) {
    Part part{};
    if (tokenize) part.size += static_cast<int64_t>(rows) * call.out_channels;
    part.keys = part.size;
    if (project) part.size += static_cast<int64_t>(rows) * call.channels;
    part.values = part.size;
    if (project) part.size += static_cast<int64_t>(rows) * call.out_channels;
    part.token_bias = part.size;
    if (project || call.plain_sums != 0) part.size += rows;
    return part;
  }
};

template <class T_, Layout LAYOUT_, int MT_, int NT_, int TP_, bool PROJECT_, bool TOKENIZE_>
struct Backward : Kernel<T_, LAYOUT_, MT_, NT_, TP_, 2> {
  using Base = Kernel<T_, LAYOUT_, MT_, NT_, TP_, 2>;
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
  static constexpr bool PROJECT = PROJECT_, TOKENIZE = TOKENIZE_, BACKWARD = true;
  static constexpr bool BOTH = PROJECT && TOKENIZE;
  static constexpr int kMostWarps = Base::most_warps(MT * NT * 4 * (TOKENIZE + 2 * PROJECT));
  static constexpr uint32_t kWeightPitch = kRows * 4 + 16;  // of a pixel

  // Gradients of rows.
  struct Sums {
    float queries[TOKENIZE ? MT : 1][NT][4] = {};
    float keys[PROJECT ? MT : 1][NT][4] = {}, values[PROJECT ? MT : 1][NT][4] = {};
    float token_bias[NT] = {};
  };

  static VT_DEVICE void run(const Call& call) {
    const Warp warp(call);
    const int cluster = block_x() / warp.ranks;
    const Share share = Share::of(call, cluster);
    const int count = static_cast<int>(share.end - share.begin);
    if (count == 0) return;  // the whole cluster
    warp.begin();
    Position at = Position::of(call, share.begin);
    const bool has_grad = PROJECT && call.grad_map.data != nullptr;
    const bool has_residual = BOTH && call.residual.data != nullptr;

    Position ahead = at;
    int ahead_stage = 0;
    const auto copy_next = [&](bool any) {
      if (any) {
        int map = 0;
        const auto copy = [&](const Map& of, int channels) {
          Tile::copy(warp.slot(ahead_stage, map++), Base::sample_of(call, of, channels, ahead), warp.channel,
                     ahead.pixel(), warp.lane);
        };
        copy(call.x, call.channels);
        if (has_grad) copy(call.grad_map, call.out_channels);
        if (has_residual) copy(call.residual, call.out_channels);
        ahead.next(call);
      }
      if (++ahead_stage == call.stages) ahead_stage = 0;
      copy_commit();
    };

    Sums sums;
    int stage = 0;
    for (int index = 1 - call.stages; index < count; ++index) {  // below 0, tiles are only copied
      const int pixel = at.pixel();
      uint32_t there = 0;
      if (index >= 0) {
        if (index == 0 || at.tile == 0) begin(warp, at, index == 0);
        there = TOKENIZE ? Base::taking_part(call, at, warp.lane) : Base::inside(call, pixel);
        Base::wait_stage(call.stages);
      }
      copy_next(index + call.stages - 1 < count);
      if (index < 0) continue;
      const Sample<T> x = Base::sample_of(call, call.x, call.channels, at);
      const View view(warp.slot(stage, 0), warp.lane, x, pixel);
      const uint32_t grad = has_grad ? warp.slot(stage, 1) : 0;
      if constexpr (!PROJECT) {
        pixel_gradients(warp, view, sums, at, there);
        if (call.dx.data != nullptr) spread_tokens(warp, view, x, pixel, there, false, 0);
      } else if constexpr (!TOKENIZE) {
        Base::template scores<1>(warp, view, {warp.bank(call.places.keys)});
        const View of_grad(grad, warp.lane, x, pixel);
        token_gradients(warp, view, of_grad, sums, pixel, there);
        if (call.dx.data != nullptr) spread_keys(warp, view, grad);
      } else {
        const View again(warp.slice(call.places.again), warp.lane, x, pixel);
        project(warp, again, view.at, has_residual ? warp.slot(stage, has_grad ? 2 : 1) : 0);
        pixel_gradients(warp, again, sums, at, there);
        spread_tokens(warp, again, x, pixel, there, has_grad, grad);
        sync_warp();
        token_gradients(warp, view, again, sums, pixel, there);
        if (call.dresidual.data != nullptr) {
          Tile::store(Base::sample_of(call, call.dresidual, call.out_channels, at), again.at, warp.channel,
                      pixel, warp.lane);
        }
        if (call.dx.data != nullptr) spread_keys(warp, view, again.at);
      }
      sync_warp();
      if (call.dx.data != nullptr) {
        Tile::store(Base::sample_of(call, call.dx, call.channels, at), view.at, warp.channel, pixel,
                    warp.lane);
      }
      if (++stage == call.stages) stage = 0;

      const Position here = at;
      at.next(call);
      const bool last = index + 1 == count;
      if (last || at.tile == 0) finish(warp, sums, here, {last, at.b == 0, share, cluster});
    }
    copy_wait<0>();
  }

  // Small operands of a sample.
  static VT_DEVICE void begin(const Warp& warp, const Position& at, bool first) {
    const Call& call = warp.call;
    const int head = at.head, b = at.b;
    sync_warp();  // a bank is the warp's own
    const bool keys =
        PROJECT && (first || call.keys.batch != 0 || call.values.batch != 0 || call.token_bias.batch != 0);
    const bool queries =
        TOKENIZE && (first || call.queries.batch != 0 || call.token_bias.batch != 0 || b == 0);
    if (keys) Base::fill_keys(warp, at);
    if (keys || (queries && plain_sums(call)))
      Base::load_token_bias(warp, at);  // last read before a barrier of the last tile
    if constexpr (TOKENIZE) {
      if (queries) Base::fill_queries(warp, at);
      const int64_t stride = static_cast<int64_t>(call.query_heads) * call.out_channels;
      const int64_t from = static_cast<int64_t>(b) * call.queries_count * stride +
                           static_cast<int64_t>(head) * call.out_channels;
      RowsOf<T> grad = {static_cast<const T*>(call.grad_tokens) + from,
                        stride,
                        call.queries_count,
                        call.out_channels,
                        call.queries_count,
                        call.out_channels};
      Base::RowBank::fill(warp.bank(call.places.grad_tokens), grad,
                          plain_sums(call) ? Base::absent_keys(call, at) : 0, warp.channel, warp.lane);
      load_statistics(warp, grad.data, stride, head, b);
    }
    if (keys || TOKENIZE) {
      copy_commit();
      copy_wait<0>();
    }
    sync_warp();  // statistics are read behind the next barrier
  }

  // Whether tokens are plain sums over pixels.
  static VT_BOTH bool plain_sums(const Call& call) { return TOKENIZE && !PROJECT && call.plain_sums != 0; }

  // Delta and lse. They were last read before a barrier of the last tile.
  static VT_DEVICE void load_statistics(const Warp& warp, const T* grad, int64_t stride, int head, int b) {
    const Call& call = warp.call;
    const int64_t columns = static_cast<int64_t>(call.query_heads) * call.out_channels + call.extra_columns;
    for (int row = warp.warp; row < kRows; row += warp.warps) {
      float sum = 0.f, lse = minus_infinity();
      if (row < call.queries_count) {
        const float* exact = call.exact + (static_cast<int64_t>(b) * call.queries_count + row) * columns;
        const float* own = exact + static_cast<int64_t>(head) * call.out_channels;
        VT_UNROLL_BY(8)  // so that many loads are under way at once
        for (int c = warp.lane; c < call.out_channels && !plain_sums(call); c += 32)
          sum += widen(global(grad + row * stride + c)) * global(own + c);
        const T* extra = static_cast<const T*>(call.grad_extra) +
                         (static_cast<int64_t>(b) * call.queries_count + row) * call.extra_columns;
        for (int c = warp.lane; c < call.extra_columns; c += 32)
          sum += widen(global(extra + c)) * global(exact + call.out_channels + c);
      }
      VT_UNROLL
      for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
      if (row < call.queries_count) {
        const int64_t at = (static_cast<int64_t>(b) * call.query_heads + head) * call.queries_count + row;
        lse = global(call.lse + at);
        if (call.grad_lse != nullptr) sum -= global(call.grad_lse + at);
      }
      if (warp.lane == 0) {
        set_shared(call.places.delta + row * 4, sum);
        set_shared(call.places.lse + row * 4, lse);
      }
    }
  }

  // The map of project again, and its weights: two barriers.
  static VT_DEVICE void project(const Warp& warp, const View& again, uint32_t x, uint32_t residual) {
    const Call& call = warp.call;
    View view = again;
    view.at = x;
    Base::template scores<1>(warp, view, {warp.bank(call.places.keys)});
    warp.template share_scores<0, 1>();
    Base::for_pixels(warp, [&](int p, bool exists) {
      float weight[NT];
      Base::token_weights(warp, p, weight);
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        if (exists) {
          set_shared(call.places.weights + p * kWeightPitch + (n * 8 + warp.g) * 4, weight[n]);
          Base::set_by_pixel(call, p, n * 8 + warp.g, weight[n]);
        }
      }
    });
    warp.sync();
    const Term terms[1] = {{0, warp.bank(call.places.values)}};
    Base::spread(warp, again, call.residual_is_input || residual != 0, call.residual_is_input ? x : residual,
                 terms);
    sync_warp();
  }

  // A and dS of a tile, and what is summed over pixels: two barriers.
  static VT_DEVICE void pixel_gradients(const Warp& warp, const View& view, Sums& sums, const Position& at,
                                        uint32_t there) {
    const Call& call = warp.call;
    const Places& places = call.places;
    Base::template scores<2>(warp, view, {warp.bank(places.queries), warp.bank(places.grad_tokens)});
    warp.template share_scores<0, 2>();
    const int b = at.b, pixel = at.pixel();
    if (plain_sums(call)) {
      Base::for_pixels(warp, [&](int p, bool exists) {
        float weight[NT], grad[NT], ds[NT] = {};
        const bool counts = there >> p & 1;
        Base::token_weights(warp, p, weight, Base::bias_of_pixel(call, at, p, counts));
        VT_UNROLL
        for (int n = 0; n < NT; ++n) {
          const int row = n * 8 + warp.g;
          grad[n] = warp.score(1, row, p) - shared<float>(places.delta + row * 4);
        }
        Base::token_weights_backward(warp, weight, grad, counts, ds);
        VT_UNROLL
        for (int n = 0; n < NT; ++n) {
          if (!exists) continue;
          const int row = n * 8 + warp.g;
          sums.token_bias[n] += ds[n];
          Base::set_by_token(call, row, p, ds[n]);
          Base::set_by_pixel(call, p, row, ds[n]);
          Base::set_by_pixel(call, p, kRows + row, counts ? weight[n] : 0.f);
          if (call.dpixel_bias.data != nullptr) set_shared(places.dlogits + (row * TP + p) * 4, ds[n]);
        }
      });
      pool_queries(warp, view, sums, at, there);
      return;
    }
    for (int item = thread(); item < TP * kRows; item += threads()) {
      const int p = item % TP, row = item / TP;
      const float lse = shared<float>(places.lse + row * 4);
      float a = 0.f, ds = 0.f;
      if ((there >> p & 1) && row < call.queries_count) {
        const float logit = warp.score(0, row, p) + Base::bias_of_pixel(call, at, p, true);
        float da = warp.score(1, row, p);
        for (int column = 0; column < call.extra_columns; ++column) {
          const int64_t of_token =
              (static_cast<int64_t>(b) * call.queries_count + row) * call.extra_columns + column;
          da += widen(global(static_cast<const T*>(call.extra_values.data) +
                             static_cast<int64_t>(pixel + p) * call.extra_columns + column)) *
                widen(global(static_cast<const T*>(call.grad_extra) + of_token));
        }
        a = power_of_two((logit - lse) * kLog2e);
        ds = a * (da - shared<float>(places.delta + row * 4));
      }
      Base::set_by_token(call, row, p, ds);
      Base::set_by_pixel(call, p, row, ds);
      Base::set_by_pixel(call, p, kRows + row, a);
      if (call.dpixel_bias.data != nullptr) set_shared(places.dlogits + item * 4, ds);
    }
    pool_queries(warp, view, sums, at, there);
  }

  // What dS is summed to: a barrier.
  static VT_DEVICE void pool_queries(const Warp& warp, const View& view, Sums& sums, const Position& at,
                                     uint32_t there) {
    warp.sync();
    Base::pool(sums.queries, warp, view, 0, there, Base::may_be_anything(warp.call, there, BOTH));
    if (warp.rank == 0) add_pixels(warp.call, at);
    sync_warp();
  }

  // Gradients of what belongs to pixels.
  static VT_DEVICE void add_pixels(const Call& call, const Position& at) {
    const int head = at.head, b = at.b, pixel = at.pixel();
    if (call.dpixel_bias.data != nullptr) {
      const int p = thread();
      if (p < TP && pixel + p < call.pixels) {
        float sum = 0.f;
        for (int row = 0; row < call.queries_count; ++row) {
          sum += shared<float>(call.places.dlogits + (row * TP + p) * 4);
        }
        if (call.query_heads > 1) {
          set_global(
              call.pixel_parts + (static_cast<int64_t>(head) * call.batch + b) * call.pixels + pixel + p,
              sum);
        } else {
          set_number<T>(call.dpixel_bias, static_cast<int64_t>(b) * call.pixels + pixel + p, sum);
        }
      }
    }
    if (call.dextra_values != nullptr) {
      for (int item = thread(); item < TP * call.extra_columns; item += threads()) {
        const int p = item / call.extra_columns, column = item % call.extra_columns;
        if (pixel + p >= call.pixels) continue;
        float sum = 0.f;
        for (int row = 0; row < call.queries_count; ++row) {
          const int64_t of_token =
              (static_cast<int64_t>(b) * call.queries_count + row) * call.extra_columns + column;
          sum += widen(shared<T>(call.places.by_pixel + p * Base::kByPixel + (kRows + row) * Base::kSize)) *
                 widen(global(static_cast<const T*>(call.grad_extra) + of_token));
        }
        set_global(call.extra_parts +
                       (static_cast<int64_t>(b) * call.pixels + pixel + p) * call.extra_columns + column,
                   sum);
      }
    }
  }

  // A dT + dS Q, and a base. Pixels that take no part get the base alone: a weight of 0 does not undo
  // infinity.
  static VT_DEVICE void spread_tokens(const Warp& warp, const View& to, const Sample<T>& x, int pixel,
                                      uint32_t there, bool has_base, uint32_t base) {
    const Term terms[2] = {{0, warp.bank(warp.call.places.queries)},
                           {kRows, warp.bank(warp.call.places.grad_tokens)}};
    Base::spread(warp, to, has_base, base, terms);
    const bool masked = warp.call.mask != nullptr || warp.call.pixel_bias.data != nullptr;
    if (!masked || there == Base::inside(warp.call, pixel)) return;
    sync_warp();
    for (int i = warp.lane; i < Tile::kChannels * TP; i += 32) {
      const int c = i / TP, p = i % TP;
      if (there >> p & 1) continue;
      const uint32_t at = Tile::element(x, c, p, pixel);
      set_shared(to.at + at, has_base ? shared<T>(base + at) : narrow<T>(0.f));
    }
  }

  // dZ K, and H where the residual is X, over X.
  static VT_DEVICE void spread_keys(const Warp& warp, const View& to, uint32_t of_map) {
    const Term terms[1] = {{0, warp.bank(warp.call.places.keys)}};
    Base::spread(warp, to, warp.call.residual_is_input && of_map != 0, of_map, terms);
  }

  // P and dZ of a tile, and what is summed over pixels: two barriers. Scores of keys are in matrix 0, or
  // weights are known.
  static VT_DEVICE void token_gradients(const Warp& warp, const View& x, const View& of_map, Sums& sums,
                                        int pixel, uint32_t there) {
    const Call& call = warp.call;
    const uint32_t inside = Base::inside(call, pixel);
    Base::template scores<1>(warp, of_map, {warp.bank(call.places.values)}, 1);
    warp.template share_scores<BOTH ? 1 : 0, BOTH ? 1 : 2>();
    Base::for_pixels(warp, [&](int p, bool exists) {
      float weight[NT], dp[NT], dz[NT] = {};
      if constexpr (BOTH) {
        VT_UNROLL
        for (int n = 0; n < NT; ++n)
          weight[n] = shared<float>(call.places.weights + p * kWeightPitch + (n * 8 + warp.g) * 4);
      } else {
        Base::token_weights(warp, p, weight);
      }
      bool used = inside >> p & 1;
      VT_UNROLL
      for (int n = 0; n < NT; ++n) dp[n] = warp.score(1, n * 8 + warp.g, p);
      if constexpr (BOTH) {
        // A pixel that takes no part may hold NaN; it counts only if a gradient arrives at its map.
        bool arrives = false, finite = true;
        VT_UNROLL
        for (int n = 0; n < NT; ++n) {
          arrives = arrives || dp[n] != 0.f;
          finite = finite && weight[n] == weight[n];
        }
        const uint32_t own = 0x11111111u << warp.t;  // lanes with the same pixel
        const bool any = (ballot(arrives) & own) != 0, all = (ballot(!finite) & own) == 0;
        used = used && ((there >> p & 1) || any || all);
      }
      Base::token_weights_backward(warp, weight, dp, used, dz);
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        if (!exists) continue;
        const int row = n * 8 + warp.g;
        sums.token_bias[n] += dz[n];
        Base::set_by_token(call, row, p, dz[n]);
        Base::set_by_token(call, kRows + row, p, used ? weight[n] : 0.f);
        Base::set_by_pixel(call, p, row, dz[n]);
      }
      if (BOTH && exists && warp.g == 0) set_shared(call.places.used + p * 4, used ? 1u : 0u);
    });
    warp.sync();
    const bool masked = BOTH && (call.mask != nullptr || call.pixel_bias.data != nullptr);
    uint32_t used = inside;
    if (masked) used = ballot(shared<uint32_t>(call.places.used + warp.lane % TP * 4) != 0 && warp.lane < TP);
    Base::pool(sums.keys, warp, x, 0, used, masked);
    Base::pool(sums.values, warp, of_map, kRows, inside, BOTH && inside != Base::kAllPixels);
    sync_warp();
  }

  // A sample of the cluster's share ends, or the share.
  struct End {
    bool of_share, of_batch;
    Share share;
    int cluster;

    // Whether gradients of an operand are complete.
    VT_DEVICE bool ends(int64_t batch_stride) const { return of_share || of_batch || batch_stride != 0; }
  };

  // Where a gradient of rows goes: the result, or a part. `offset`: of the operand in a part.
  struct Target {
    T* result;
    float* part;
  };
  static VT_DEVICE Target target(const Call& call, const Rows& operand, void* result, int64_t elements,
                                 int64_t offset, const Position& at, const End& end) {
    if (result == nullptr) return {nullptr, nullptr};
    const bool shared = operand.batch == 0;
    const Set set = Set::of(call, shared ? at.head : at.sample, shared ? call.batch : 1);
    if (set.whole(end.share)) {
      const int64_t index = shared ? at.head : static_cast<int64_t>(at.b) * call.query_heads + at.head;
      return {static_cast<T*>(result) + index * elements, nullptr};
    }
    const int64_t size = Part::of(call, PROJECT, TOKENIZE, kRows).size;
    return {nullptr, call.parts + set.part(end.cluster, end.share) * size + offset};
  }

  static VT_DEVICE void finish(const Warp& warp, Sums& sums, const Position& at, const End& end) {
    const Call& call = warp.call;
    const Part part = Part::of(call, PROJECT, TOKENIZE, kRows);
    // Where a row's sums go, in channels [first, end): the result, the part, or neither.
    struct Row {
      T* result;
      float* part;
      int first, end;
    };
    const auto put = [&](auto& of, const auto& row_of) {
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        VT_UNROLL
        for (int i = 0; i < 2; ++i) {
          const Row to = row_of(n * 8 + warp.t * 2 + i);
          VT_UNROLL
          for (int m = 0; m < MT; ++m) {
            VT_UNROLL
            for (int half = 0; half < 2; ++half) {
              const int c = warp.channel + m * 16 + half * 8 + warp.g;
              float& sum = of[m][n][half * 2 + i];
              if (c >= to.first && c < to.end) {
                if (to.result != nullptr) {
                  set_global(to.result + c, narrow<T>(sum));
                } else if (to.part != nullptr) {
                  set_global(to.part + c, sum);
                }
              }
              sum = 0.f;
            }
          }
        }
      }
    };
    // `offset`: where channel 0 of the row would be in the result.
    const auto row_of = [](const Target& to, int64_t offset, int row, int channels, int first,
                           int end) -> Row {
      return {to.result == nullptr ? nullptr : to.result + offset,
              to.part == nullptr ? nullptr : to.part + static_cast<int64_t>(row) * channels, first, end};
    };
    if constexpr (TOKENIZE) {
      if (end.ends(call.queries.batch)) {
        const int channels = call.out_channels;
        const Target to = target(call, call.queries, call.dqueries,
                                 static_cast<int64_t>(call.queries_count) * channels, part.queries, at, end);
        put(sums.queries, [&](int row) {
          return row_of(to, static_cast<int64_t>(row) * channels, row, channels, 0,
                        row < call.queries_count ? channels : 0);
        });
      }
    }
    if constexpr (PROJECT) {
      if (end.ends(call.keys.batch)) {
        const int each = opaque(call.keys_count / call.key_blocks),
                  width = opaque(call.channels / call.key_blocks);
        const Target keys = target(call, call.keys, call.dkeys, static_cast<int64_t>(call.keys_count) * width,
                                   part.keys, at, end);
        put(sums.keys, [&](int row) {
          const int head = row / each, last = row < call.keys_count ? (head + 1) * width : 0;
          return row_of(keys, static_cast<int64_t>(row - head) * width, row, call.channels, head * width,
                        last);
        });
      }
      if (end.ends(call.values.batch)) {
        const int each = opaque(call.keys_count / call.value_blocks),
                  width = opaque(call.out_channels / call.value_blocks);
        const Target values = target(call, call.values, call.dvalues,
                                     static_cast<int64_t>(each) * call.out_channels, part.values, at, end);
        put(sums.values, [&](int row) {
          const int head = row / each, last = row < call.keys_count ? (head + 1) * width : 0;
          return row_of(values, static_cast<int64_t>(row - head * each) * call.out_channels, row,
                        call.out_channels, head * width, last);
        });
      }
    }
    if (call.dtoken_bias.data != nullptr && end.ends(call.token_bias.batch))
      finish_token_bias(warp, sums, part, at, end);
  }

  static VT_DEVICE void finish_token_bias(const Warp& warp, Sums& sums, const Part& part, const Position& at,
                                          const End& end) {
    const Call& call = warp.call;
    VT_UNROLL
    for (int n = 0; n < NT; ++n) {
      float sum = sums.token_bias[n];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      if (warp.t == 0) set_shared(call.places.dtoken_bias + (warp.warp * kRows + n * 8 + warp.g) * 4, sum);
      sums.token_bias[n] = 0.f;
    }
    sync_block();
    if (warp.rank == 0) {
      const bool shared = call.token_bias.batch == 0;
      const Set set = Set::of(call, shared ? at.head : at.sample, shared ? call.batch : 1);
      const bool whole = set.whole(end.share);
      float* const to =
          whole ? nullptr : call.parts + set.part(end.cluster, end.share) * part.size + part.token_bias;
      for (int row = thread(); row < call.keys_count; row += threads()) {
        float sum = 0.f;
        for (int w = 0; w < warp.warps; ++w)
          sum += vt::shared<float>(call.places.dtoken_bias + (w * kRows + row) * 4);
        if (whole) {
          const int64_t index = shared ? at.head : static_cast<int64_t>(at.b) * call.query_heads + at.head;
          set_number<T>(call.dtoken_bias, index * call.keys_count + row, sum);
        } else {
          set_global(to + row, sum);
        }
      }
    }
    sync_block();  // before they are written again
  }
};

// Gradients of rows that the batch shares, or of the others, from their parts. Grid: sets that may have
// several x pieces of Part::size.
template <class T, bool PROJECT, bool TOKENIZE, bool SHARED, int LANES>
struct CombineRows {
  using Own = Parts<LANES>;
  static constexpr int kThreads = Own::kThreads;

  static VT_DEVICE void run(const Call& call) {
    const Part part = Part::of(call, PROJECT, TOKENIZE, room_for_rows(call));
    const int index = Own::element();
    if (index / Own::kElements * Own::kElements >= part.size) return;  // the whole warp
    // Which operand's gradient, of which row and column, and whether the batch shares it.
    void* result;
    int row, c, channels = call.out_channels, rows = call.keys_count;
    bool shared, exists;
    if (TOKENIZE && index < part.keys) {
      result = call.dqueries, shared = call.queries.batch == 0, rows = call.queries_count;
      row = index / channels, c = index % channels, exists = row < rows;
    } else if (index < part.values) {
      const int of_keys = index - static_cast<int>(part.keys), each = rows / call.key_blocks;
      result = call.dkeys, shared = call.keys.batch == 0, channels = call.channels;
      row = of_keys / channels, c = of_keys % channels, channels /= call.key_blocks;
      exists = row < rows && c / channels == row / each;
      c %= channels;
    } else if (index < part.token_bias) {
      const int of_values = index - static_cast<int>(part.values), each = rows / call.value_blocks;
      result = call.dvalues, shared = call.values.batch == 0;
      row = of_values / channels, c = of_values % channels;
      exists = row < rows && c / (channels / call.value_blocks) == row / each;
      row %= each, rows = each;
    } else {
      result = call.dtoken_bias.data, shared = call.token_bias.batch == 0, channels = 1;
      row = index - static_cast<int>(part.token_bias), c = 0, exists = row < rows;
    }
    // A warp's elements are all of one operand: matrices are multiples of 32.
    constexpr int kNone = -1;
    const int samples = SHARED ? call.batch : 1;
    const int set = result == nullptr || shared != SHARED ? kNone : Set::split(call, block_x(), samples);
    if (set == kNone) return;
    const Own parts(call, Set::of(call, set, samples));
    if (!parts.several()) return;
    float sums[Own::kTogether], sum = 0.f;
    parts.for_each(
        [&](int i, int64_t of) {
          sums[i] = of < 0 || !exists ? 0.f : global(call.parts + of * part.size + index);
        },
        [&] {
          VT_UNROLL
          for (int i = 0; i < Own::kTogether; ++i) sum += sums[i];
        });
    sum = Own::sum(sum);
    if (!exists || !Own::first_lane()) return;
    const int head = shared ? set : set / call.batch, b = shared ? 0 : set % call.batch;
    const int64_t to = ((static_cast<int64_t>(b) * call.query_heads + head) * rows + row) * channels + c;
    if (index >= part.token_bias) {
      set_number<T>(call.dtoken_bias, to, sum);
    } else {
      set_global(static_cast<T*>(result) + to, narrow<T>(sum));
    }
  }
};

// Gradients of what belongs to pixels: of pixel_bias over heads (grid: pieces of B N), of extra values over
// the batch (grid: pieces of N P).
template <class T>
struct SumPixels {
  static constexpr int kThreads = 256;

  static VT_DEVICE void run(const Call& call) {
    const int64_t index = static_cast<int64_t>(block_x()) * kThreads + thread();
    const int64_t biases = static_cast<int64_t>(call.batch) * call.pixels;
    if (call.dpixel_bias.data != nullptr && call.query_heads > 1 && index < biases) {
      float sum = 0.f;
      for (int head = 0; head < call.query_heads; ++head)
        sum += global(call.pixel_parts + head * biases + index);
      set_number<T>(call.dpixel_bias, index, sum);
    }
    const int64_t values = static_cast<int64_t>(call.pixels) * call.extra_columns;
    if (call.dextra_values != nullptr && index < values) {
      float sum = 0.f;
      for (int b = 0; b < call.batch; ++b) sum += global(call.extra_parts + b * values + index);
      set_global(static_cast<T*>(call.dextra_values) + index, narrow<T>(sum));
    }
  }
};

}  // namespace cuda
}  // namespace vt
