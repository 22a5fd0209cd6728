// A tile of a map in shared memory, TP pixels of one sample, cut into slices of 16 MT channels. Each warp
// copies, multiplies and frees the slice of its own channels, so that tiles need no barrier.
#pragma once

#include "call.h"
#include "numbers.h"

namespace vt {

// A sample of a map: `row` elements lie between two pixels (last), or between two channels.
template <class T>
struct Sample {
  T* data;
  int64_t row;
  int pixels, channels;
};

template <class T, Layout LAYOUT, int MT, int TP>
struct Slice {
  static constexpr int kChannels = 16 * MT;
  static constexpr int kSize = sizeof(T);
  static constexpr int kPer16 = 16 / kSize;
  static constexpr int kRows = LAYOUT == Layout::last ? TP : kChannels;
  static constexpr int kRowBytes = kSize * (LAYOUT == Layout::last ? kChannels : TP);
  // The 8 rows that ldmatrix reads at a time must lie in different banks. Rows of an odd number of 16 bytes
  // do. Rows of `first`, of 1 << kParts times 16 bytes, are not padded: their parts change places instead.
  static constexpr uint32_t kPitch = kRowBytes + (LAYOUT == Layout::first ? 0 : 16);
  static constexpr uint32_t kBytes = kRows * kPitch;
  static constexpr int kParts = kRowBytes / 16 == 2 ? 1 : 2;
  static_assert(LAYOUT != Layout::first || (kRowBytes == 16 << kParts && kSize == 2));

  // Where byte `byte` of a row lies within it.
  static VT_DEVICE uint32_t place(int row, int byte) {
    if constexpr (LAYOUT != Layout::first) return byte;
    return byte ^ ((row >> (3 - kParts) & ((1 << kParts) - 1)) << 4);
  }

  // Bytes between the start of a row in shared memory and its first pixel.
  static VT_DEVICE uint32_t shift(const Sample<T>& map, int channel, int pixel) {
    if constexpr (LAYOUT != Layout::shifted) return 0;
    return kSize * (static_cast<uint32_t>(channel * map.row + pixel) % kPer16);
  }

  // Where an element of a tile that begins at `pixel` lies in a slice.
  static VT_DEVICE uint32_t element(const Sample<T>& map, int c, int p, int pixel) {
    if constexpr (LAYOUT == Layout::last) return p * kPitch + c * kSize;
    return c * kPitch + shift(map, c, pixel) + place(c, p * kSize);
  }

  // How a warp's lanes share the rows of a slice, cut into pieces of BYTES: a lane has the same piece of
  // every kStep-th row, so that addresses advance by the same amount.
  template <int BYTES>
  struct Pieces {
    static constexpr int kPerRow = kRowBytes / BYTES, kStep = 32 / kPerRow, kCount = kRows / kStep;
    static_assert(kPerRow <= 32 && kCount * kStep == kRows &&
                  (LAYOUT != Layout::first || 2 * kStep % 8 == 0));
    int row;         // the first of the lane's rows
    int element;     // the piece's first element in a row
    int inside;      // rows from the lane's first one to the end of the map; none if the piece lies outside
    int64_t offset;  // of the first piece, from the sample's start
    int64_t step;    // to the next one
    uint32_t at[2];  // the places of the first piece and the next one, relative to their rows

    VT_DEVICE Pieces(const Sample<T>& map, int channel, int pixel, int lane) {
      row = lane / kPerRow, element = lane % kPerRow * (BYTES / kSize);
      const bool last = LAYOUT == Layout::last;
      const int first_row = (last ? pixel : channel) + row, first_column = (last ? channel : pixel) + element;
      const int rows = last ? map.pixels : map.channels, columns = last ? map.channels : map.pixels;
      inside = first_column < columns ? rows - first_row : 0;
      offset = first_row * map.row + first_column, step = kStep * map.row;
      at[0] = row * kPitch + place(row, element * kSize);
      at[1] = row * kPitch + place(row + kStep, element * kSize);
    }
    VT_DEVICE bool has(int i) const { return i * kStep < inside; }
    VT_DEVICE uint32_t in_slice(int i) const { return at[i % 2] + i * kStep * kPitch; }
  };

  // Copies channels [channel, channel + 16 MT) of pixels [pixel, pixel + TP) to `to`. What lies outside the
  // map becomes 0, except for `shifted`, where a row is followed by the next bytes in memory.
  static VT_DEVICE void copy(uint32_t to, const Sample<T>& map, int channel, int pixel, int lane) {
    if constexpr (LAYOUT == Layout::last) {
      copy_rows<16>(to, map, channel, pixel, lane);
    } else if constexpr (LAYOUT == Layout::first) {
      if (map.row % 8 == 0) {
        copy_rows<16>(to, map, channel, pixel, lane);
      } else {
        copy_rows<8>(to, map, channel, pixel, lane);
      }
    } else {
      copy_shifted(to, map, channel, pixel, lane);
    }
  }

  template <int BYTES>
  static VT_DEVICE void copy_rows(uint32_t to, const Sample<T>& map, int channel, int pixel, int lane) {
    const Pieces<BYTES> pieces(map, channel, pixel, lane);
    const T* from = map.data + pieces.offset;
    VT_UNROLL
    for (int i = 0; i < Pieces<BYTES>::kCount; ++i) {
      copy_async<BYTES>(to + pieces.in_slice(i), from, pieces.has(i) ? BYTES : 0);
      from += pieces.step;
    }
  }

  // A row has up to kParts16 pieces of 16 bytes, for which there are eight or four lanes. Rows that are a
  // multiple of 8 apart are aligned alike.
  static VT_DEVICE void copy_shifted(uint32_t to, const Sample<T>& map, int channel, int pixel, int lane) {
    constexpr int kParts16 = kRowBytes / 16 + 1, kLanes = kParts16 <= 4 ? 4 : 8, kStep = 32 / kLanes,
                  kKinds = 8 / kStep;
    static_assert(kParts16 <= 8 && kRows % 8 == 0);
    const int taken = map.pixels - pixel < TP ? map.pixels - pixel : TP;
    const int part = lane % kLanes, row = lane / kLanes;
    if (part < kParts16) {
      VT_UNROLL
      for (int kind = 0; kind < kKinds; ++kind) {
        const int first = row + kind * kStep;
        const int64_t begin = (channel + first) * map.row + pixel;
        const int skipped = static_cast<int>(static_cast<uint32_t>(begin) % kPer16);
        const bool wanted = part * kPer16 < skipped + taken;
        const T* from = map.data + (begin - skipped + part * kPer16);
        VT_UNROLL
        for (int i = 0; i < kRows / 8; ++i) {
          const bool inside = wanted && channel + first + i * 8 < map.channels;
          copy_async<16>(to + (first + i * 8) * kPitch + part * 16, from, inside ? 16 : 0);
          from += 8 * map.row;
        }
      }
    }
  }

  // The part of a slice that lies inside the map, to global memory.
  static VT_DEVICE void store(const Sample<T>& map, uint32_t from, int channel, int pixel, int lane) {
    if constexpr (LAYOUT == Layout::last) {
      store_rows<Four>(map, from, channel, pixel, lane);
    } else if constexpr (LAYOUT == Layout::first) {
      if (map.row % 8 == 0) {
        store_rows<Four>(map, from, channel, pixel, lane);
      } else {
        store_rows<Two>(map, from, channel, pixel, lane);
      }
    } else {
      store_shifted(map, from, channel, pixel, lane);
    }
  }

  // Stores COUNT pieces: place(i) is where one lies in shared memory, and where it goes or null. Of four, all
  // are read before one is written.
  template <class Words, int COUNT, class Where>
  static VT_DEVICE void store_pieces(const Where& place) {
    constexpr int kTogether = COUNT < 4 ? COUNT : 4;
    static_assert(COUNT % kTogether == 0);
    [[maybe_unused]] constexpr int kUnrolled =
        LAYOUT == Layout::shifted ? 1 : COUNT / kTogether;  // addresses take registers
    VT_UNROLL_BY(kUnrolled)
    for (int first = 0; first < COUNT; first += kTogether) {
      Words words[kTogether];
      Words* to[kTogether];
      VT_UNROLL
      for (int i = 0; i < kTogether; ++i) words[i] = shared<Words>(place(first + i, to[i]));
      VT_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        if (to[i] != nullptr) set_global(to[i], words[i]);
      }
    }
  }

  // A row lies in shared memory as it does in global memory, relative to multiples of 16 bytes. It is stored
  // by words of 4 bytes, and by elements where it begins or ends within a word.
  static VT_DEVICE void store_shifted(const Sample<T>& map, uint32_t from, int channel, int pixel, int lane) {
    constexpr int kPerWord = 4 / kSize, kWords = TP / kPerWord, kStep = 32 / kWords;
    const int taken = map.pixels - pixel < TP ? map.pixels - pixel : TP;
    const int row = lane / kWords, word = lane % kWords;
    const int64_t begin = (channel + row) * map.row + pixel, step = kStep * map.row;
    store_pieces<uint32_t, kRows / kStep>([&](int i, uint32_t*& to) {
      const int64_t own = begin + i * step;
      const int element = static_cast<int>(own % kPerWord) + word * kPerWord;
      const bool inside = channel + row + i * kStep < map.channels && element + kPerWord <= taken;
      to = inside ? reinterpret_cast<uint32_t*>(map.data + own + element) : nullptr;
      return from + (row + i * kStep) * kPitch + (static_cast<uint32_t>(own) % kPer16 + element) * kSize;
    });
    if constexpr (kPerWord == 2) {
      store_pieces<T, kRows / 16>([&](int i, T*& to) {
        const int row = i * 16 + lane / 2;
        const int64_t begin = (channel + row) * map.row + pixel;
        const bool odd = begin % 2 != 0, last = lane % 2 != 0;
        const int element = last ? taken - 1 : 0;
        const bool inside = channel + row < map.channels && (last ? (taken - odd) % 2 != 0 : odd);
        to = inside ? map.data + begin + element : nullptr;
        return from + row * kPitch + (static_cast<uint32_t>(begin) % kPer16 + element) * kSize;
      });
    }
  }

  template <class Words>
  static VT_DEVICE void store_rows(const Sample<T>& map, uint32_t from, int channel, int pixel, int lane) {
    using Own = Pieces<sizeof(Words)>;
    const Own pieces(map, channel, pixel, lane);
    T* const first = map.data + pieces.offset;
    store_pieces<Words, Own::kCount>([&](int i, Words*& to) {
      to = pieces.has(i) ? reinterpret_cast<Words*>(first + i * pieces.step) : nullptr;
      return from + pieces.in_slice(i);
    });
  }

  // ---- access by fragments: lane 4 g + t ----

  // A slice as an operand of products, and as the place of their results.
  struct View {
    uint32_t at;
    int lane;
    // Of `shifted`, whose rows start at a multiple of 16 channels, so that a row's shift depends on row % 8.
    uint32_t shift_own, shift_even, shift_odd;

    VT_DEVICE View(uint32_t at, int lane, const Sample<T>& map, int pixel) : at(at), lane(lane) {
      shift_own = shift(map, lane / 4, pixel);
      shift_even = shift(map, lane % 4 * 2, pixel);
      shift_odd = shift(map, lane % 4 * 2 + 1, pixel);
    }

    // Rows are pixels from 16 p, columns are channels from 16 m.
    VT_DEVICE void pixels_by_channels(Left<T>& a, int p, int m) const {
      const int g = lane / 4, t = lane % 4;
      if constexpr (LAYOUT == Layout::last && kSize == 2) {
        uint32_t r[4];
        ldmatrix(r, at + (p * 16 + (lane & 15)) * kPitch + m * 32 + (lane >> 4) * 16);
        take(a, r);
      } else if constexpr (LAYOUT == Layout::last) {
        VT_UNROLL
        for (int i = 0; i < 4; ++i) {
          a.pairs[i] = Pair<T>::of(shared<Couple<T>>(at + (p * 16 + g + i % 2 * 8) * kPitch +
                                                     (m * 16 + i / 2 * 8 + t * 2) * kSize));
        }
      } else if constexpr (LAYOUT == Layout::first) {
        uint32_t r[4];
        ldmatrix_transposed(r, at + (m * 16 + (lane & 7) + ((lane >> 4) << 3)) * kPitch +
                                   place(lane & 7, p * 32 + ((lane >> 3) & 1) * 16));
        take(a, r);
      } else {
        VT_UNROLL
        for (int i = 0; i < 4; ++i) {
          const uint32_t row = at + (m * 16 + i / 2 * 8 + t * 2) * kPitch + (p * 16 + i % 2 * 8 + g) * kSize;
          a.pairs[i] = Pair<T>::of(shared<T>(row + shift_even), shared<T>(row + kPitch + shift_odd));
        }
      }
    }

    // Rows are channels from 16 m, columns are pixels from 16 p.
    VT_DEVICE void channels_by_pixels(Left<T>& a, int m, int p) const {
      const int g = lane / 4, t = lane % 4;
      if constexpr (LAYOUT == Layout::last && kSize == 2) {
        uint32_t r[4];
        ldmatrix_transposed(
            r, at + (p * 16 + (lane & 7) + ((lane >> 4) << 3)) * kPitch + m * 32 + ((lane >> 3) & 1) * 16);
        take(a, r);
      } else if constexpr (LAYOUT == Layout::last) {
        VT_UNROLL
        for (int i = 0; i < 4; ++i) {
          const uint32_t row = at + (p * 16 + i / 2 * 8 + t * 2) * kPitch + (m * 16 + i % 2 * 8 + g) * kSize;
          a.pairs[i] = Pair<T>::of(shared<T>(row), shared<T>(row + kPitch));
        }
      } else if constexpr (LAYOUT == Layout::first) {
        uint32_t r[4];
        ldmatrix(r, at + (m * 16 + (lane & 15)) * kPitch + place(lane & 7, p * 32 + (lane >> 4) * 16));
        take(a, r);
      } else {
        VT_UNROLL
        for (int i = 0; i < 4; ++i) {
          const uint32_t row =
              at + shift_own + (m * 16 + i % 2 * 8 + g) * kPitch + (p * 16 + i / 2 * 8 + t * 2) * kSize;
          a.pairs[i] = Pair<T>::of(shared<T>(row), shared<T>(row + kSize));
        }
      }
    }

    // Where the results of a product go. Of `last`, rows are pixels: (pixel, channel) and the next channel.
    // Of the others rows are channels: (channel, pixel) and the next pixel. Rows and columns are those of a
    // 16 x 8 product: row g + 8 half, columns 2 t and 2 t + 1.
    VT_DEVICE uint32_t result(int row_block, int column_block, int half) const {
      const int g = lane / 4, t = lane % 4;
      return at + (row_block * 16 + half * 8 + g) * kPitch + shift_own +
             place(g, (column_block * 8 + t * 2) * kSize);
    }
    // The lane's row of two products' results, see kStoresMatrices.
    VT_DEVICE uint32_t result_row(int row_block, int column_block) const {
      return at + (row_block * 16 + (lane & 15)) * kPitch +
             place(lane & 7, (column_block + (lane >> 4)) * 8 * kSize);
    }
  };

  // Of 16-bit elements: two products' results, those of column blocks `column_block` and the next, as four
  // matrices of 8 x 8, for ldmatrix and stmatrix.
  static constexpr bool kStoresMatrices = kHasStmatrix && LAYOUT != Layout::shifted && kSize == 2;

  static VT_DEVICE Couple<float> load_result(uint32_t at) {
    if constexpr (LAYOUT == Layout::shifted) return {widen(shared<T>(at)), widen(shared<T>(at + kSize))};
    return widen(shared<Couple<T>>(at));
  }
  static VT_DEVICE void add_results(float (&x)[4], float (&y)[4], uint32_t at) {
    uint32_t r[4];
    ldmatrix(r, at);
    const Couple<float> found[4] = {widen(Couple<T>{r[0]}), widen(Couple<T>{r[1]}), widen(Couple<T>{r[2]}),
                                    widen(Couple<T>{r[3]})};
    x[0] += found[0].x, x[1] += found[0].y, x[2] += found[1].x, x[3] += found[1].y;
    y[0] += found[2].x, y[1] += found[2].y, y[2] += found[3].x, y[3] += found[3].y;
  }
  static VT_DEVICE void store_results(uint32_t at, const float (&x)[4], const float (&y)[4]) {
    const uint32_t r[4] = {couple(T{}, x[0], x[1]).bits, couple(T{}, x[2], x[3]).bits,
                           couple(T{}, y[0], y[1]).bits, couple(T{}, y[2], y[3]).bits};
    stmatrix(at, r);
  }
  static VT_DEVICE void store_result(uint32_t at, float x, float y) {
    if constexpr (LAYOUT == Layout::shifted) {
      set_shared(at, narrow<T>(x));
      set_shared(at + kSize, narrow<T>(y));
    } else {
      set_shared(at, couple(T{}, x, y));
    }
  }

 private:
  static VT_DEVICE void take(Left<T>& a, const uint32_t (&r)[4]) {
    VT_UNROLL
    for (int i = 0; i < 4; ++i) a.pairs[i].bits = r[i];
  }
};

}  // namespace vt
