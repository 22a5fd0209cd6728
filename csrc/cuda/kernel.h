// What the kernels share: who does what, and the products of a tile.
//
// A block, or a cluster of blocks, walks over its share of tiles. A warp owns 16 MT channels in everything:
// it copies them, multiplies them with its copy of the rows, pools them, writes results over them and stores
// them. Only scores cross warps: each leaves its part in shared memory, and they are added in a fixed order.
// Copies of later tiles are in flight all the while.
#pragma once

#include "call.h"
#include "parts.h"
#include "rows.h"
#include "tile.h"

namespace vt {
namespace cuda {

// A number of an operand that may be float or T.
template <class T>
VT_DEVICE float number(const Biases& from, int64_t at) {
  return from.is_float ? global(static_cast<const float*>(from.data) + at)
                       : widen(global(static_cast<const T*>(from.data) + at));
}
template <class T>
VT_DEVICE void set_number(const Biases& to, int64_t at, float value) {
  if (to.is_float) {
    set_global(static_cast<float*>(to.data) + at, value);
  } else {
    set_global(static_cast<T*>(to.data) + at, narrow<T>(value));
  }
}

// MATRICES: of scores, that are there at the same time.
template <class T_, Layout LAYOUT_, int MT_, int NT_, int TP_, int MATRICES>
struct Kernel {
  using T = T_;
  static constexpr Layout LAYOUT = LAYOUT_;
  static constexpr int MT = MT_, NT = NT_, TP = TP_;
  using Tile = Slice<T, LAYOUT, MT, TP>;
  using View = typename Tile::View;
  using RowBank = Bank<T, MT, NT>;
  static constexpr int kSize = sizeof(T);
  static constexpr int kRows = 8 * NT;                          // of scores
  static constexpr int kSteps = NT / 2;                         // of 16 rows
  static constexpr int kBlocks = TP / 16;                       // of 16 pixels
  static constexpr uint32_t kScorePitch = (TP + 4) * 4;         // of a row of scores
  static constexpr uint32_t kByToken = TP * kSize + 16;         // of a row
  static constexpr uint32_t kByPixel = 2 * kRows * kSize + 16;  // of a pixel, with room for two matrices
  static_assert(TP == 16 || TP == 32);

  // Of a block: a multiprocessor has 128 registers for each thread of 16 warps, `sums` of which stay in use.
  static constexpr int most_warps(int sums) { return sums + 4 * NT <= (kSize == 2 ? 72 : 36) ? 16 : 8; }

  // ---- threads ----

  struct Warp {
    const Call& call;
    int lane, g, t;
    int warp, warps;  // of the block
    int rank, ranks;  // of the cluster
    int channel;      // the first of its own

    explicit VT_DEVICE Warp(const Call& call) : call(call) {
      lane = thread() & 31, g = lane / 4, t = lane % 4;
      warp = thread() / 32, warps = threads() / 32;
      rank = cluster_rank(), ranks = cluster_size();
      channel = (rank * warps + warp) * Tile::kChannels;
    }

    VT_DEVICE void sync() const {
      if (ranks == 1) {
        sync_block();
      } else {
        sync_cluster();
      }
    }

    VT_DEVICE uint32_t bank(uint32_t at) const { return at + warp * RowBank::kBytes; }
    VT_DEVICE uint32_t slice(uint32_t at) const { return at + warp * Tile::kBytes; }
    VT_DEVICE uint32_t slot(int stage, int map) const {
      return slice(call.places.ring + stage * call.places.stage + map * call.places.map);
    }

    // The warp's part of scores, with room for `matrices` of them.
    static VT_DEVICE uint32_t part(int warp, int matrix, int row, int pixel) {
      return ((warp * MATRICES + matrix) * kRows + row) * kScorePitch + pixel * 4;
    }
    // The sum of the block's parts of a score, in order.
    VT_DEVICE float of_block(int matrix, int row, int pixel) const {
      const uint32_t at = call.places.scores + part(0, matrix, row, pixel);
      constexpr uint32_t kStep = MATRICES * kRows * kScorePitch;  // to the next warp's
      float sum = 0.f;
      // Four loads are under way at once. There is room for as many parts, of which those of no warp are 0.
      VT_ROLLED
      for (int from = 0; from < warps; from += 4) {
        float found[4];
        VT_UNROLL
        for (int w = 0; w < 4; ++w) found[w] = shared<float>(at + (from + w) * kStep);
        VT_UNROLL
        for (int w = 0; w < 4; ++w) sum += found[w];
      }
      return sum;
    }
    // Clears the parts of absent warps. They are read behind the next barrier.
    VT_DEVICE void begin() const {
      const int size = MATRICES * kRows * static_cast<int>(kScorePitch) / 4;
      for (int i = warps * size + thread(); i < (warps + 3) / 4 * 4 * size; i += threads()) {
        set_shared(call.places.scores + i * 4, 0.f);
      }
    }
    // Makes COUNT matrices of scores from FIRST known to all warps. Each block of a cluster adds up its own
    // parts before others read the sum in place of the first one.
    template <int FIRST, int COUNT>
    VT_DEVICE void share_scores() const {
      sync_block();
      if (ranks == 1) return;
      for (int i = thread(); i < COUNT * kRows * TP; i += threads()) {
        const int matrix = FIRST + i / (kRows * TP), row = i / TP % kRows, pixel = i % TP;
        set_shared(call.places.scores + part(0, matrix, row, pixel), of_block(matrix, row, pixel));
      }
      sync_cluster();
    }
    // A score.
    VT_DEVICE float score(int matrix, int row, int pixel) const {
      if (ranks == 1) return of_block(matrix, row, pixel);
      float sum = 0.f;
      VT_UNROLL_BY(4)
      for (int from = 0; from < ranks; ++from)
        sum += shared_of(from, call.places.scores + part(0, matrix, row, pixel));
      return sum;
    }
  };
  static constexpr int kScoreMatrices = MATRICES;

  // ---- positions ----

  struct Position {
    int sample, head, b;  // the sample is that of head `head` and of the batch's sample `b`
    int tile;             // of tiles_per_sample

    static VT_DEVICE Position of(const Call& call, int64_t tile) {
      const int sample = static_cast<int>(tile / call.tiles_per_sample);
      return {sample, sample / call.batch, sample % call.batch,
              static_cast<int>(tile % call.tiles_per_sample)};
    }
    VT_DEVICE void next(const Call& call) {
      if (++tile < call.tiles_per_sample) return;
      tile = 0, ++sample;
      if (++b == call.batch) b = 0, ++head;
    }
    VT_DEVICE int pixel() const { return tile * TP; }
  };

  // The sample of a position in a map of `channels` channels. Heads of tokenize are blocks of channels.
  static VT_DEVICE Sample<T> sample_of(const Call& call, const Map& map, int channels, const Position& at) {
    const int64_t of_head = static_cast<int64_t>(at.head) * channels * (LAYOUT == Layout::last ? 1 : map.row);
    return {static_cast<T*>(map.data) + at.b * map.batch + of_head, map.row, call.pixels, channels};
  }

  // Which pixels of a tile take part, a bit each.
  static VT_DEVICE uint32_t inside(const Call& call, int pixel) {
    const int count = call.pixels - pixel;
    return count >= 32 || (TP == 16 && count >= 16) ? (TP == 16 ? 0xffffu : 0xffffffffu) : (1u << count) - 1;
  }
  static constexpr uint32_t kAllPixels = TP == 16 ? 0xffffu : 0xffffffffu;
  // Whether a tile may hold NaN where pixels take no part: there is a mask, or project wrote behind the
  // sample's end.
  static VT_DEVICE bool may_be_anything(const Call& call, uint32_t there, bool projected) {
    return call.mask != nullptr || call.pixel_bias.data != nullptr || (projected && there != kAllPixels);
  }
  static VT_DEVICE uint32_t taking_part(const Call& call, const Position& at, int lane) {
    if (call.mask == nullptr && call.pixel_bias.data == nullptr) return inside(call, at.pixel());
    const int n = at.pixel() + lane;
    bool part = lane < TP && n < call.pixels;
    if (part) {
      if (call.mask != nullptr) part = global(call.mask + static_cast<int64_t>(at.b) * call.pixels + n) != 0;
      if (call.pixel_bias.data != nullptr) {
        part = part && number<T>(call.pixel_bias, at.b * call.pixel_bias.batch + n) != minus_infinity();
      }
    }
    return ballot(part);
  }

  // Waits for the oldest stage.
  static VT_DEVICE void wait_stage(int stages) {
    if (stages == 2) {
      copy_wait<0>();
    } else if (stages == 3) {
      copy_wait<1>();
    } else {
      copy_wait<2>();
    }
    sync_warp();
  }

  // ---- products ----

  // The warp's part of scores: the slice times each of the rows in each of the banks, for matrices from
  // `first`.
  template <int BANKS>
  static VT_DEVICE void scores(const Warp& warp, const View& view, const uint32_t (&banks)[BANKS],
                               int first = 0) {
    float sum[BANKS][kBlocks][NT][4] = {};
    VT_UNROLL
    for (int m = 0; m < MT; ++m) {
      Left<T> a[kBlocks];
      VT_UNROLL
      for (int p = 0; p < kBlocks; ++p) view.pixels_by_channels(a[p], p, m);
      VT_UNROLL
      for (int bank = 0; bank < BANKS; ++bank) {
        Right<T> b[NT];
        RowBank::channels_by_rows(b, banks[bank], m, warp.lane);
        VT_UNROLL
        for (int p = 0; p < kBlocks; ++p) {
          VT_UNROLL
          for (int n = 0; n < NT; ++n) multiply(sum[bank][p][n], a[p], b[n]);
        }
      }
    }
    VT_UNROLL
    for (int bank = 0; bank < BANKS; ++bank) {
      const uint32_t own = warp.call.places.scores + Warp::part(warp.warp, first + bank, 0, 0);
      VT_UNROLL
      for (int p = 0; p < kBlocks; ++p) {
        VT_UNROLL
        for (int n = 0; n < NT; ++n) {
          VT_UNROLL
          for (int i = 0; i < 4; ++i) {
            set_shared(own + (n * 8 + warp.t * 2 + i % 2) * kScorePitch + (p * 16 + warp.g + i / 2 * 8) * 4,
                       sum[bank][p][n][i]);
          }
        }
      }
    }
  }

  // Weights from row `row` of by_token: the result's rows are pixels from 16 k, its columns are rows.
  static VT_DEVICE void weights_of_pixels(Right<T> (&b)[NT], const Warp& warp, int row, int k) {
    if constexpr (kSize == 2) {
      const uint32_t at = warp.call.places.by_token +
                          (row + (warp.lane & 7) + ((warp.lane >> 4) << 3)) * kByToken + k * 32 +
                          ((warp.lane >> 3) & 1) * 16;
      VT_UNROLL
      for (int n = 0; n < NT; n += 2) {
        uint32_t r[4];
        ldmatrix(r, at + n * 8 * kByToken);
        b[n].pairs[0].bits = r[0], b[n].pairs[1].bits = r[1];
        b[n + 1].pairs[0].bits = r[2], b[n + 1].pairs[1].bits = r[3];
      }
    } else {
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        VT_UNROLL
        for (int i = 0; i < 2; ++i) {
          b[n].pairs[i] =
              Pair<T>::of(shared<Couple<T>>(warp.call.places.by_token + (row + n * 8 + warp.g) * kByToken +
                                            (k * 16 + i * 8 + warp.t * 2) * kSize));
        }
      }
    }
  }

  // sum += slice^T times the weights from row `row` of by_token. Pixels without their bit in `there` are
  // cleared where `clear` says that they may hold anything: a weight of 0 does not undo NaN.
  static VT_DEVICE void pool(float (&sum)[MT][NT][4], const Warp& warp, const View& view, int row,
                             uint32_t there, bool clear) {
    VT_UNROLL
    for (int k = 0; k < kBlocks; ++k) {
      Right<T> b[NT];
      weights_of_pixels(b, warp, row, k);
      const uint32_t bits = there >> (k * 16 + warp.t * 2);
      VT_UNROLL
      for (int m = 0; m < MT; ++m) {
        Left<T> a;
        view.channels_by_pixels(a, m, k);
        if (LAYOUT == Layout::shifted || clear) {
          VT_UNROLL
          for (int i = 0; i < 4; ++i) a.pairs[i].keep(bits >> (i / 2 * 8) & 1, bits >> (i / 2 * 8) & 2);
        }
        VT_UNROLL
        for (int n = 0; n < NT; ++n) multiply(sum[m][n], a, b[n]);
      }
    }
  }

  // Of results: 16 rows and 8 columns.
  struct Block {
    int row, column;
  };

  // One of the terms of a spread: weights in by_pixel from column `column`, times the rows of a bank.
  struct Term {
    int column;
    uint32_t bank;
  };

  // Results at `to` = base + sums, the loads first: what follows a store waits for it. block(i) has the row
  // block and the column block of sum[i]; `to_base` leads from a result to its base.
  template <int N, class Block>
  static VT_DEVICE void store_sums(float (&sum)[N][4], bool has_base, uint32_t to_base, const View& to,
                                   const Block& block) {
    if constexpr (Tile::kStoresMatrices) {
      static_assert(N % 2 == 0);
      if (has_base) {
        VT_UNROLL
        for (int i = 0; i < N; i += 2) {
          Tile::add_results(sum[i], sum[i + 1], to.result_row(block(i).row, block(i).column) + to_base);
        }
      }
      VT_UNROLL
      for (int i = 0; i < N; i += 2)
        Tile::store_results(to.result_row(block(i).row, block(i).column), sum[i], sum[i + 1]);
    } else {
      const auto place = [&](int i, int half) { return to.result(block(i).row, block(i).column, half); };
      if (has_base) {
        VT_UNROLL
        for (int i = 0; i < N; ++i) {
          VT_UNROLL
          for (int half = 0; half < 2; ++half) {
            const Couple<float> base = Tile::load_result(place(i, half) + to_base);
            sum[i][2 * half] += base.x, sum[i][2 * half + 1] += base.y;
          }
        }
      }
      VT_UNROLL
      for (int i = 0; i < N; ++i) {
        VT_UNROLL
        for (int half = 0; half < 2; ++half)
          Tile::store_result(place(i, half), sum[i][2 * half], sum[i][2 * half + 1]);
      }
    }
  }

  // to = base + the terms, for the slice: `base` is a slice, or none. As many products at a time as there are
  // registers for.
  template <int TERMS>
  static VT_DEVICE void spread(const Warp& warp, const View& to, bool has_base, uint32_t base,
                               const Term (&terms)[TERMS]) {
    constexpr int kSums = MATRICES == 1 ? 8 : 4;  // at a time
    const uint32_t weights = warp.call.places.by_pixel;
    if constexpr (LAYOUT == Layout::last) {
      constexpr int kTogether = kSums / 2 < MT ? kSums / 2 : MT;
      VT_UNROLL
      for (int p = 0; p < kBlocks; ++p) {
        Left<T> a[TERMS][kSteps];
        VT_UNROLL
        for (int term = 0; term < TERMS; ++term) {
          VT_UNROLL
          for (int k = 0; k < kSteps; ++k) {
            if constexpr (kSize == 2) {
              uint32_t r[4];
              ldmatrix(r, weights + (p * 16 + (warp.lane & 15)) * kByPixel +
                              (terms[term].column + k * 16 + (warp.lane >> 4) * 8) * kSize);
              VT_UNROLL
              for (int i = 0; i < 4; ++i) a[term][k].pairs[i].bits = r[i];
            } else {
              VT_UNROLL
              for (int i = 0; i < 4; ++i) {
                a[term][k].pairs[i] = Pair<T>::of(
                    shared<Couple<T>>(weights + (p * 16 + warp.g + i % 2 * 8) * kByPixel +
                                      (terms[term].column + k * 16 + i / 2 * 8 + warp.t * 2) * kSize));
              }
            }
          }
        }
        VT_UNROLL
        for (int first = 0; first < MT; first += kTogether) {
          float sum[2 * kTogether][4] = {};
          VT_UNROLL
          for (int term = 0; term < TERMS; ++term) {
            VT_UNROLL
            for (int k = 0; k < kSteps; ++k) {
              VT_UNROLL
              for (int m = 0; m < kTogether; ++m) {
                Right<T> b[2];
                RowBank::rows_by_channels(b, terms[term].bank, k, first + m, warp.lane);
                multiply(sum[2 * m], a[term][k], b[0]);
                multiply(sum[2 * m + 1], a[term][k], b[1]);
              }
            }
          }
          store_sums(sum, has_base, base - to.at, to, [&](int i) { return Block{p, 2 * first + i}; });
        }
      }
    } else {
      constexpr int kEach = TP / 8, kTogether = kSums / kEach < MT ? kSums / kEach : MT;
      Right<T> b[kEach][TERMS][kSteps];
      const auto load_weights = [&](int p) {
        VT_UNROLL
        for (int term = 0; term < TERMS; ++term) {
          VT_UNROLL
          for (int k = 0; k < kSteps; ++k) {
            VT_UNROLL
            for (int i = 0; i < 2; ++i) {
              b[p][term][k].pairs[i] =
                  Pair<T>::of(shared<Couple<T>>(weights + (p * 8 + warp.g) * kByPixel +
                                                (terms[term].column + k * 16 + i * 8 + warp.t * 2) * kSize));
            }
          }
        }
      };
      // They are the same for all channels, and kept if they are few.
      constexpr bool kKept = sizeof(b) <= 16 * 4;
      if (kKept) {
        VT_UNROLL
        for (int p = 0; p < kEach; ++p) load_weights(p);
      }
      VT_UNROLL
      for (int first = 0; first < MT; first += kTogether) {
        Left<T> a[kTogether][TERMS][kSteps];
        VT_UNROLL
        for (int m = 0; m < kTogether; ++m) {
          VT_UNROLL
          for (int term = 0; term < TERMS; ++term) {
            VT_UNROLL
            for (int k = 0; k < kSteps; ++k) {
              RowBank::channels_by_rows(a[m][term][k], terms[term].bank, first + m, k, warp.lane);
            }
          }
        }
        float sum[kTogether * kEach][4] = {};
        VT_UNROLL
        for (int p = 0; p < kEach; ++p) {
          if (!kKept) load_weights(p);
          VT_UNROLL
          for (int term = 0; term < TERMS; ++term) {
            VT_UNROLL
            for (int k = 0; k < kSteps; ++k) {
              VT_UNROLL
              for (int m = 0; m < kTogether; ++m) multiply(sum[m * kEach + p], a[m][term][k], b[p][term][k]);
            }
          }
        }
        store_sums(sum, has_base, base - to.at, to,
                   [&](int i) { return Block{first + i / kEach, i % kEach}; });
      }
    }
  }

  // ---- weights of a pixel's tokens ----

  // The place of the first bias of a sample's keys.
  static VT_DEVICE int64_t token_bias_of(const Call& call, const Position& at) {
    return at.b * call.token_bias.batch + static_cast<int64_t>(at.head) * call.keys_count;
  }

  // Biases of keys, and minus infinity where there is no key. All warps take part.
  static VT_DEVICE void load_token_bias(const Warp& warp, const Position& at) {
    const Call& call = warp.call;
    for (int row = thread(); row < kRows; row += threads()) {
      float bias = minus_infinity();
      if (row < call.keys_count) {
        bias =
            call.token_bias.data == nullptr ? 0.f : number<T>(call.token_bias, token_bias_of(call, at) + row);
      }
      set_shared(call.places.token_bias + row * 4, bias);
    }
  }

  // The keys that a bias takes out of this sample, a bit each.
  static VT_DEVICE uint64_t absent_keys(const Call& call, const Position& at) {
    uint64_t absent = 0;
    if (call.token_bias.data == nullptr) return absent;
    for (int row = 0; row < call.keys_count; ++row) {
      if (number<T>(call.token_bias, token_bias_of(call, at) + row) == minus_infinity())
        absent |= uint64_t{1} << row;
    }
    return absent;
  }

  // What a lane adds up over the lanes that share its pixel.
  static VT_DEVICE float sum_of_pixel(float value) {
    VT_UNROLL
    for (int mask = 4; mask < 32; mask *= 2) value += shuffle_xor(value, mask);
    return value;
  }

  // Calls body(pixel, exists, weights) for four pixels of each warp at a time. A lane has rows g + 8 n.
  template <class Body>
  static VT_DEVICE void for_pixels(const Warp& warp, const Body& body) {
    for (int from = 0; from < TP; from += 4 * warp.warps) {
      const int p = from + warp.warp * 4 + warp.t;
      body(p < TP ? p : TP - 1, p < TP);
    }
  }

  // The bias of a pixel of a tile, 0 unless it counts.
  static VT_DEVICE float bias_of_pixel(const Call& call, const Position& at, int pixel, bool counts) {
    if (call.pixel_bias.data == nullptr || !counts) return 0.f;
    return number<T>(call.pixel_bias, at.b * call.pixel_bias.batch + at.pixel() + pixel);
  }

  // Weights of a pixel's tokens, from scores in matrix 0 and a bias of the pixel.
  static VT_DEVICE void token_weights(const Warp& warp, int pixel, float (&weight)[NT], float shift = 0.f) {
    const Call& call = warp.call;
    float logit[NT];
    uint32_t removed = 0;
    VT_UNROLL
    for (int n = 0; n < NT; ++n) {
      const int row = n * 8 + warp.g;
      const float bias = shared<float>(call.places.token_bias + row * 4);
      const float sum = warp.score(0, row, pixel) + shift;
      removed |= static_cast<uint32_t>(bias == minus_infinity()) << n;
      logit[n] = bias == minus_infinity() ? bias : sum + bias;
      weight[n] = 0.f;
    }
    if (call.weights != Weights::softmax) {
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        if ((removed >> n & 1) == 0)
          weight[n] = call.weights == Weights::exp ? power_of_two(logit[n] * kLog2e) : logit[n];
      }
      return;
    }
    const int each = rows_of_head(call);
    for (int first = 0; first < call.keys_count; first += each) {
      float top = minus_infinity();
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        if (in_head(n, warp.g, first, each)) top = larger(logit[n], top);
      }
      VT_UNROLL
      for (int mask = 4; mask < 32; mask *= 2) top = larger(shuffle_xor(top, mask), top);
      // Where it is -inf, weights are NaN, but 0 where a bias removes all keys.
      const float reference = top * kLog2e;
      float sum = 0.f;
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        if (in_head(n, warp.g, first, each) && (removed >> n & 1) == 0) {
          weight[n] = power_of_two(multiply_add(logit[n], kLog2e, -reference));
          sum += weight[n];
        }
      }
      sum = sum_of_pixel(sum);
      const float inverse = sum == 0.f ? 0.f : reciprocal(sum);
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        if (in_head(n, warp.g, first, each)) weight[n] *= inverse;
      }
    }
  }

  // The gradients of the logits, from those of the weights; 0 unless the pixel is used.
  static VT_DEVICE void token_weights_backward(const Warp& warp, const float (&weight)[NT],
                                               const float (&grad)[NT], bool used, float (&dlogit)[NT]) {
    const Call& call = warp.call;
    if (call.weights != Weights::softmax) {
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        const bool removed = shared<float>(call.places.token_bias + (n * 8 + warp.g) * 4) == minus_infinity();
        if (used && !removed) dlogit[n] = call.weights == Weights::exp ? weight[n] * grad[n] : grad[n];
      }
      return;
    }
    const int each = rows_of_head(call);
    for (int first = 0; first < call.keys_count; first += each) {
      float product = 0.f;
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        if (in_head(n, warp.g, first, each) && weight[n] != 0.f) product += weight[n] * grad[n];
      }
      product = sum_of_pixel(product);
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        if (in_head(n, warp.g, first, each) && weight[n] != 0.f && used)
          dlogit[n] = weight[n] * (grad[n] - product);
      }
    }
  }

  // Rows from `first`. Of one head they are all rows: where there is no key, weights are 0.
  static VT_DEVICE int rows_of_head(const Call& call) {
    return call.num_heads == 1 ? kRows : call.keys_count / call.num_heads;
  }
  static VT_DEVICE bool in_head(int n, int g, int first, int each) {
    return each == kRows || (n * 8 + g >= first && n * 8 + g < first + each);
  }

  static VT_DEVICE void set_by_pixel(const Call& call, int pixel, int column, float value) {
    set_shared(call.places.by_pixel + pixel * kByPixel + column * kSize, narrow<T>(value));
  }
  static VT_DEVICE void set_by_token(const Call& call, int row, int pixel, float value) {
    set_shared(call.places.by_token + row * kByToken + pixel * kSize, narrow<T>(value));
  }

  // ---- small operands of a sample ----

  static VT_DEVICE RowsOf<T> rows_of(const Rows& rows, int64_t offset, int count, int channels) {
    return {static_cast<const T*>(rows.data) + offset, channels, count, channels, count, channels};
  }

  static VT_DEVICE void fill_keys(const Warp& warp, const Position& at) {
    const Call& call = warp.call;
    const uint64_t absent = absent_keys(call, at);
    RowsOf<T> keys = rows_of(call.keys, at.b * call.keys.batch, call.keys_count, call.channels);
    keys.each = call.keys_count / call.key_blocks;
    keys.width = call.channels / call.key_blocks;
    keys.stride = keys.width, keys.packed = true;
    RowBank::fill(warp.bank(call.places.keys), keys, absent, warp.channel, warp.lane);
    RowsOf<T> values = rows_of(call.values, at.b * call.values.batch, call.keys_count, call.out_channels);
    values.each = call.keys_count / call.value_blocks;
    values.width = call.out_channels / call.value_blocks;
    RowBank::fill(warp.bank(call.places.values), values, absent, warp.channel, warp.lane);
  }

  static VT_DEVICE void fill_queries(const Warp& warp, const Position& at) {
    const Call& call = warp.call;
    const int64_t of_head = static_cast<int64_t>(at.head) * call.queries_count * call.out_channels;
    RowBank::fill(
        warp.bank(call.places.queries),
        rows_of(call.queries, at.b * call.queries.batch + of_head, call.queries_count, call.out_channels),
        call.plain_sums != 0 ? absent_keys(call, at) : 0, warp.channel, warp.lane);
  }
};

}  // namespace cuda
}  // namespace vt
