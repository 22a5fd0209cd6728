// Rows of numbers, one for each token, in shared memory: a warp's own copy of its channels.
#pragma once

#include "tile.h"

namespace vt {

// A matrix of rows (row, channel) in global memory, some of which are left out.
template <class T>
struct RowsOf {
  const T* data;
  int64_t stride;      // elements between rows
  int rows, channels;  // of the result; what lies beyond is 0
  // Rows of heads: row r holds only the channels of head r / each, `width` of them. In memory, heads are
  // side by side in the same rows, or `packed`: below each other.
  int each, width;
  bool packed = false;
};

template <class T, int MT, int NT>
struct Bank {
  static constexpr int kRows = 8 * NT;
  static constexpr int kSize = sizeof(T);
  static constexpr int kPerRow = 16 * MT * kSize / 16;
  static constexpr uint32_t kPitch = 16 * MT * kSize + 16;
  static constexpr uint32_t kBytes = kRows * kPitch;

  // `absent` has a bit for each row that is to be 0.
  static VT_DEVICE void fill(uint32_t to, const RowsOf<T>& from, uint64_t absent, int channel, int lane) {
    constexpr int kAll = kRows * kPerRow, kPer16 = 16 / kSize;
    VT_ROLLED  // once a sample
    for (int i = 0; i < kAll / 32; ++i) {
      const int row = (i * 32 + lane) / kPerRow, part = (i * 32 + lane) % kPerRow;
      const int c = channel + part * kPer16;
      bool inside = row < from.rows && c < from.channels && !(absent >> row & 1);
      int source = row, column = c;
      if (from.each < from.rows) {
        const int head = row / from.each;
        inside = inside && c / from.width == head;
        if (from.packed) {
          column -= head * from.width;
        } else {
          source -= head * from.each;
        }
      }
      copy_async<16>(to + row * kPitch + part * 16,
                     inside ? from.data + source * from.stride + column : from.data, inside ? 16 : 0);
    }
  }

  // Columns of the result are rows 8 n and on, its rows are channels from 16 m.
  static VT_DEVICE void channels_by_rows(Right<T> (&b)[NT], uint32_t at, int m, int lane) {
    const int g = lane / 4, t = lane % 4;
    if constexpr (kSize == 2) {
      VT_UNROLL
      for (int n = 0; n < NT; n += 2) {
        uint32_t r[4];  // in the order of fragments: instructions take consecutive registers
        ldmatrix(r,
                 at + (n * 8 + (lane & 7) + ((lane >> 4) << 3)) * kPitch + m * 32 + ((lane >> 3) & 1) * 16);
        VT_UNROLL
        for (int h = 0; h < 2; ++h) b[n + h].pairs[0].bits = r[2 * h], b[n + h].pairs[1].bits = r[2 * h + 1];
      }
    } else {
      VT_UNROLL
      for (int n = 0; n < NT; ++n) {
        VT_UNROLL
        for (int i = 0; i < 2; ++i) {
          b[n].pairs[i] =
              Pair<T>::of(shared<Couple<T>>(at + (n * 8 + g) * kPitch + (m * 16 + i * 8 + t * 2) * kSize));
        }
      }
    }
  }

  // Rows of the result are rows 16 k and on, its columns channels 16 m + 8 h and on.
  static VT_DEVICE void rows_by_channels(Right<T> (&b)[2], uint32_t at, int k, int m, int lane) {
    const int g = lane / 4, t = lane % 4;
    if constexpr (kSize == 2) {
      uint32_t r[4];
      ldmatrix_transposed(r, at + (k * 16 + (lane & 15)) * kPitch + m * 32 + (lane >> 4) * 16);
      VT_UNROLL
      for (int h = 0; h < 2; ++h) b[h].pairs[0].bits = r[2 * h], b[h].pairs[1].bits = r[2 * h + 1];
    } else {
      VT_UNROLL
      for (int h = 0; h < 2; ++h) {
        VT_UNROLL
        for (int i = 0; i < 2; ++i) {
          const uint32_t row = at + (k * 16 + i * 8 + t * 2) * kPitch + (m * 16 + h * 8 + g) * kSize;
          b[h].pairs[i] = Pair<T>::of(shared<T>(row), shared<T>(row + kPitch));
        }
      }
    }
  }

  // Rows of the result are channels from 16 m, its columns rows 16 k and on.
  static VT_DEVICE void channels_by_rows(Left<T>& a, uint32_t at, int m, int k, int lane) {
    const int g = lane / 4, t = lane % 4;
    if constexpr (kSize == 2) {
      uint32_t r[4];
      ldmatrix_transposed(
          r, at + (k * 16 + (lane & 7) + ((lane >> 4) << 3)) * kPitch + m * 32 + ((lane >> 3) & 1) * 16);
      VT_UNROLL
      for (int i = 0; i < 4; ++i) a.pairs[i].bits = r[i];
    } else {
      VT_UNROLL
      for (int i = 0; i < 4; ++i) {
        const uint32_t row = at + (k * 16 + i / 2 * 8 + t * 2) * kPitch + (m * 16 + i % 2 * 8 + g) * kSize;
        a.pairs[i] = Pair<T>::of(shared<T>(row), shared<T>(row + kPitch));
      }
    }
  }
};

}  // namespace vt
