// The matrix products of all kernels, blocked for registers and the first-level cache.
//
// Each multiplies a tile of a map with a small operand (queries, keys, values or weights). The rows of a tile
// have unit stride: pixels of C channels where channels lie innermost, channels of n pixels where pixels do.
// One case mirrors the other, so that a product takes its tile either way, and no tile is transposed.
//
// broadcast: out[r][l] = sum_k x[r][k] w[k][l], an element of the tile times a vector of the small operand.
// accumulate: out[m][c] = sum_k a[m][k] x[k][c], an element of the small operand times a vector of the tile.
// expand, in expand.h: out[r][c] = base[r][c] + sum_k a[k][r] b[k][c], the result is a tile.
#pragma once

#include <type_traits>

#include "simd.h"
#include "numbers.h"

namespace vt::VT_NAMESPACE {
namespace {

// The most pixels of a tile, and the distance between rows of scores: not a power of two, so that the rows do
// not share cache sets.
constexpr int64_t most_pixels = 256;
constexpr int64_t score_ld = most_pixels + 16;

// What a product adds its sums to: nothing, the contents of `out`, or these times a scale.
enum class Onto { nothing, sum, scaled };

template <class N>
constexpr int block_columns = 2 * lanes<typename N::Acc>;  // two vectors of sums

// Prefetching. Where channels lie innermost, the products of a tile prefetch the next one, `ahead` elements
// further. Processors drop prefetches that come faster than memory answers, so they are spread over the two
// products of each tile. Of each pair of cache lines (neighbours in a row, or in two rows where a block's row
// is one line), broadcast prefetches the first and accumulate the second; expand, where it is the second
// product, prefetches the line that the first left out.
//
// Where pixels lie innermost, processors do not prefetch on their own, as rows lie far apart. Scores are then
// an accumulate product and prefetch all lines, but no further ahead than the next slice of channels: the
// next tile can be as large as the second-level cache, and then some of its lines are evicted before they are
// read. How many varies from second to second, and so did the time of a call, by half. The other products
// prefetch nothing but the rows that expand reads and writes next; see expand_block.
template <class N>
constexpr int lines = larger<int>(1, smaller<int>(2, block_columns<N> * sizeof(typename N::Elem) / 64));
constexpr int block_rows = VT_BYTES == 64 ? 8 : 4;  // of accumulate and expand
// Whether accumulate reads its tile in such pairs. Otherwise it reads line by line, and prefetches each.
template <class N>
constexpr bool has_pairs = lines<N> == 2 || N::group == 2;
template <class N>
VT_INLINE int64_t second_line(int64_t ld) {
  return lines<N> == 2 ? 64 / sizeof(typename N::Elem) : ld;
}

template <class Lane, class Packed>
VT_INLINE Packed splat_lane(const void* x) {
  if constexpr (sizeof(Lane) == 8) {
    int64_t bits;
    __builtin_memcpy(&bits, x, 8);
    return (Packed)splat(bits);
  } else {
    // Floats are loaded as floats, so that compilers fold the load into the instruction that uses it. Pairs
    // of bfloat16 are not, as arithmetic changes the bits of signalling NaNs.
    using Whole = std::conditional_t<std::is_same_v<Packed, Vec<float>>, float, int32_t>;
    Whole value;
    __builtin_memcpy(&value, x, 4);
    return (Packed)splat(value);
  }
}

// The same for the last, incomplete lane: missing elements are 0.
template <class N, class Lane, class Packed>
VT_INLINE Packed splat_part(const typename N::Elem* x, int64_t count) {
  typename N::Elem group[sizeof(Lane) / sizeof(typename N::Elem)] = {};
  for (int64_t i = 0; i < count; i++) group[i] = x[i];
  return splat_lane<Lane, Packed>(group);
}

// Where the columns fill only half a vector, a lane takes two groups of the tile's elements, and the sums of
// its halves are added at the end, so that no part of the vector is idle.
template <class N>
constexpr bool can_fold = VT_BYTES == 64 && sizeof(typename N::Acc) == 4;
template <class N>
VT_INLINE bool folds(int64_t columns) {
  return can_fold<N> && columns <= lanes<typename N::Acc> / 2;
}

// Whether only half of the last of several vectors is computed where no more columns are needed: it saves
// time on processors that take 64 bytes in two steps, and costs none on others.
constexpr bool halves_vectors = VT_BYTES == 64;

// The padded length of a row of `columns` sums.
template <class N>
VT_INLINE int64_t padded(int64_t columns) {
  constexpr int64_t W = lanes<typename N::Acc>;
  return folds<N>(columns) ? W / 2 : rounded_up(columns, W);
}

// `scale` from element `offset` on; it is nullptr unless Onto::scaled needs it.
template <class T>
VT_INLINE const T* from_offset(const T* scale, int64_t offset) {
  return scale ? scale + offset : nullptr;
}

// Adds to `sum`, a vector or a half of columns from `column` on, what is there, and stores it.
template <class Acc, class V>
VT_INLINE void put_onto(V sum, Acc* out, int64_t column, Onto onto, const Acc* scale) {
  V held, factor;
  out += column;
  if (onto != Onto::nothing) __builtin_memcpy(&held, out, sizeof held);
  if (onto == Onto::sum) sum += held;
  if (onto == Onto::scaled) {
    __builtin_memcpy(&factor, scale + column, sizeof factor);
    sum += held * factor;  // one expression, which compilers fuse in every block
  }
  __builtin_memcpy(out, &sum, sizeof sum);
}

// Stores the sums of a broadcast block, with `half` those of half a vector too.
template <class N, bool folded, bool half, int rows, int vectors>
VT_INLINE void put_broadcast(Vec<typename N::Acc> (&sums)[rows][vectors],
                             Half<typename N::Acc> (&halves)[rows], typename N::Acc* out, int64_t ldo,
                             Onto onto, const typename N::Acc* scale) {
  using Acc = typename N::Acc;
  constexpr int64_t W = lanes<Acc>;
  if constexpr (folded) {
    // Adds neighbouring lanes: the lower half of the result has the sums.
    VT_UNROLL
    for (int r = 0; r < rows; r++) {
      const Vec<Acc> a = sums[r][0];
      const Vec<Acc> both =
          __builtin_shufflevector(a, a, 0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14) +
          __builtin_shufflevector(a, a, 1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
      put_onto(lower_half<Acc>(both), out + r * ldo, 0, onto, scale);
    }
  } else {
    VT_UNROLL
    for (int r = 0; r < rows; r++) {
      VT_UNROLL
      for (int v = 0; v < vectors; v++) put_onto(sums[r][v], out + r * ldo, v * W, onto, scale);
      if (half) put_onto(halves[r], out + r * ldo, vectors * W, onto, scale);
    }
  }
}

constexpr int64_t sum_depth = 64;  // lanes that are summed in a register at a time

// `half`: of the last vector, only the lower half is computed; see halves_vectors. Not inlined: with its
// callers' variables alive, GCC would run out of registers for addresses.
template <class N, class Lane, int rows, int vectors, bool half>
__attribute__((noinline)) void broadcast_block(const typename N::Elem* x, int64_t ldx, int64_t depth,
                                               const Lane* w, int64_t ldw, typename N::Acc* out, int64_t ldo,
                                               Onto onto, const typename N::Acc* scale, int64_t ahead) {
  using Acc = typename N::Acc;
  using Elem = typename N::Elem;
  using Packed = typename N::Packed;
  constexpr int64_t group = sizeof(Lane) / sizeof(Elem);
  constexpr int64_t step = VT_BYTES / sizeof(Lane);  // lanes of w in a vector
  constexpr bool folded = sizeof(Lane) > sizeof(typename N::Lane);
  // The prefetches of a stretch of lanes, from every row or every second one, are issued one a lane; where a
  // lane takes many instructions, all at once.
  constexpr int64_t stretch = block_columns<N> / group, row_step = 3 - lines<N>, fetched = rows / row_step;
  constexpr int64_t at_once = larger<int64_t>(1, vectors > 2 ? fetched : divided_up(fetched, stretch));
  const int64_t fetching = ahead ? fetched / at_once : 0;
  const Elem* at[(rows + 2) / 3];  // one for three rows: addressing modes express 0, 1 and 2 times ldx
  VT_UNROLL
  for (int i = 0; i < (rows + 2) / 3; i++) at[i] = x + 3 * i * ldx;
  const int64_t groups = depth / group;
  constexpr int whole = vectors - half;
  using Unit = typename N::Lane;
  Vec<Acc> sums[rows][whole] = {};
  Half<Acc> halves[rows] = {};
  const auto multiply = [&](int r, Packed a, const Packed(&b)[whole], Half<Unit> last) {
    VT_UNROLL
    for (int v = 0; v < whole; v++) N::madd(sums[r][v], a, b[v]);
    if constexpr (half) N::madd(halves[r], lower_half<Unit>(a), last);
  };
  const auto load_row = [&](const Lane* from, Packed(&b)[whole], Half<Unit>& last) {
    VT_UNROLL
    for (int v = 0; v < whole; v++) b[v] = load<Unit>(from + v * step);
    if constexpr (half) last = load_half<Unit>(from + whole * step);
  };
  const Elem* next = x;
  for (int64_t k = 0; k < groups; k++) {
    const int64_t phase = k % stretch;
    if (phase < fetching) {
      if (phase == 0) next = x + k * group + ahead;
      VT_UNROLL
      for (int i = 0; i < at_once; i++) prefetch(next + i * row_step * ldx);
      next += at_once * row_step * ldx;
    }
    Packed b[whole];
    Half<Unit> last{};
    load_row(w + k * ldw, b, last);
    VT_UNROLL
    for (int r = 0; r < rows; r++)
      multiply(r, splat_lane<Lane, Packed>(at[r / 3] + r % 3 * ldx + k * group), b, last);
  }
  if (group > 1 && groups * group < depth) {
    Packed b[whole];
    Half<Unit> last{};
    load_row(w + groups * ldw, b, last);
    VT_UNROLL
    for (int r = 0; r < rows; r++)
      multiply(r, splat_part<N, Lane, Packed>(x + r * ldx + groups * group, depth - groups * group), b, last);
  }
  put_broadcast<N, folded, half>(sums, halves, out, ldo, onto, scale);
}

template <class N, class Lane, int vectors, bool half = false>
void broadcast_rows(const typename N::Elem* x, int64_t ldx, int64_t rows, int64_t depth, const Lane* w,
                    int64_t ldw, typename N::Acc* out, int64_t ldo, Onto onto, const typename N::Acc* scale,
                    int64_t ahead) {
  // As many rows as fit into the registers beside the vectors; with 32 registers, enough to hide latency.
  constexpr int most = VT_BYTES == 64 ? (vectors == 1   ? 12
                                         : vectors == 4 ? 6
                                                        : 8)
                                      : (vectors == 1   ? 8
                                         : vectors == 2 ? 4
                                                        : 2);
  // Slices have the same depth for any number of columns: a backward computes scores beside more columns than
  // the forward, and they must have the same bits. Folded lanes are not sliced.
  constexpr bool folded = sizeof(Lane) > sizeof(typename N::Lane);
  constexpr int64_t slice = folded ? INT64_MAX : sum_depth * N::group;
  int64_t r = 0;
  const auto block = [&](auto count) {
    for (int64_t k = 0; k < depth;) {
      const int64_t here = smaller(slice, depth - k);
      broadcast_block<N, Lane, count(), vectors, half>(x + r * ldx + k, ldx, here, w + k / N::group * ldw,
                                                       ldw, out + r * ldo, ldo, k ? Onto::sum : onto, scale,
                                                       ahead);
      k += here;
    }
    r += count();
  };
  while (r + most <= rows) block(std::integral_constant<int, most>());
  if constexpr (most > 8)
    if (r + 8 <= rows) block(std::integral_constant<int, 8>());
  if constexpr (most > 4)
    if (r + 4 <= rows) block(std::integral_constant<int, 4>());
  while (r < rows) block(std::integral_constant<int, 1>());
}

// out[r][l] = sum_k x[r][k] w[k][l]: rows of a tile (ldx) times `columns` columns packed as lanes
// [depth / group][padded columns]. Of the padding of `out`, half may stay unwritten. `ahead`: the distance at
// which to prefetch, in elements; 0: not at all.
template <class N>
void broadcast_product(const typename N::Elem* x, int64_t ldx, int64_t rows, int64_t depth,
                       const void* packed, int64_t columns, typename N::Acc* out, int64_t ldo, Onto onto,
                       const typename N::Acc* scale = nullptr, int64_t ahead = 0) {
  using Acc = typename N::Acc;
  using Lane = typename N::Lane;
  constexpr int64_t W = lanes<Acc>, group = N::group;
  if constexpr (can_fold<N>)
    if (folds<N>(columns))
      return broadcast_rows<N, uint64_t, 1>(x, ldx, rows, depth, (const uint64_t*)packed, W / 2, out, ldo,
                                            onto, scale, ahead);
  const int64_t ldw = padded<N>(columns);
  // A slice of w that stays in the first-level cache while all rows pass over it.
  constexpr int64_t unit = sum_depth * group;
  const int64_t slice = larger<int64_t>(1, 20480 / (ldw * (int64_t)sizeof(Lane)) / sum_depth) * unit;
  for (int64_t k = 0; k < depth; k += slice) {
    const int64_t count = smaller(slice, depth - k);
    const Onto so_far = k ? Onto::sum : onto;
    for (int64_t l = 0; l < ldw; l += 4 * W) {
      const Lane* w = (const Lane*)packed + k / group * ldw + l;
      const Acc* s = from_offset(scale, l);
      const int64_t fetch = l ? 0 : ahead, left = columns - l;
      const auto rows_of = [&](auto vectors, auto half) {
        broadcast_rows<N, Lane, vectors(), half()>(x + k, ldx, rows, count, w, ldw, out + l, ldo, so_far, s,
                                                   fetch);
      };
      const auto either = [&](auto vectors) {
        if constexpr (halves_vectors && vectors() > 1)
          if (left <= vectors() * W - W / 2) return rows_of(vectors, std::true_type());
        rows_of(vectors, std::false_type());
      };
      switch (smaller<int64_t>(4, divided_up(left, W))) {
        case 1:
          either(std::integral_constant<int, 1>());
          break;
        case 2:
          either(std::integral_constant<int, 2>());
          break;
        case 3:
          either(std::integral_constant<int, 3>());
          break;
        default:
          either(std::integral_constant<int, 4>());
      }
    }
  }
}

// What the first block of rows of accumulate prefetches: for each k, a line at `first + k * ld` and one at
// `second + k * ld`; nullptr: none.
template <class Elem>
struct Fetch {
  const Elem *first = nullptr, *second = nullptr;
  int64_t ld = 0;
};

template <class N, int rows, int a_row, int vectors, bool part>
void accumulate_block(const typename N::Lane* a, int64_t a_depth, const typename N::Elem* x, int64_t ldx,
                      int64_t depth, int64_t columns, typename N::Acc* out, int64_t ldo, Onto onto,
                      const typename N::Acc* scale, Fetch<typename N::Elem> fetch) {
  using Acc = typename N::Acc;
  using Packed = typename N::Packed;
  constexpr int64_t W = lanes<Acc>, group = N::group;
  Vec<Acc> sums[rows][vectors] = {};
  for (int64_t k = 0; k < depth; k += group) {
    Packed b[vectors];
    N::template rows<vectors, part>(x + k * ldx, ldx, k + 1 < depth, columns, b);
    if (fetch.first) prefetch(fetch.first + k * fetch.ld);
    if (fetch.second) prefetch(fetch.second + k * fetch.ld);
    const typename N::Lane* ak = a + k / group * a_depth;
    VT_UNROLL
    for (int m = 0; m < rows; m++) {
      const Packed am = splat_lane<typename N::Lane, Packed>(ak + m * a_row);
      VT_UNROLL
      for (int v = 0; v < vectors; v++) N::madd(sums[m][v], am, b[v]);
    }
  }
  VT_UNROLL
  for (int m = 0; m < rows; m++) {
    N::in_order(sums[m]);
    VT_UNROLL
    for (int v = 0; v < vectors; v++) {
      Acc* o = out + m * ldo + v * W;
      if (onto == Onto::sum) sums[m][v] += load<Acc>(o);
      if (onto == Onto::scaled && scale) sums[m][v] += load<Acc>(o) * scale[m];
      store<Acc>(o, sums[m][v]);
    }
  }
}

template <class N, int a_row, int vectors, bool part>
void accumulate_rows(const typename N::Lane* a, int64_t a_depth, int64_t rows, const typename N::Elem* x,
                     int64_t ldx, int64_t depth, int64_t columns, typename N::Acc* out, int64_t ldo,
                     Onto onto, const typename N::Acc* scale, Fetch<typename N::Elem> fetch) {
  int64_t m = 0;
  const auto block = [&](auto count) {
    accumulate_block<N, count(), a_row, vectors, part>(a + m * a_row, a_depth, x, ldx, depth, columns,
                                                       out + m * ldo, ldo, onto, from_offset(scale, m),
                                                       fetch);
    m += count(), fetch = {};
  };
  while (m + block_rows <= rows) block(std::integral_constant<int, block_rows>());
  if (block_rows > 4 && m + 4 <= rows) block(std::integral_constant<int, 4>());
  while (m < rows) block(std::integral_constant<int, 1>());
}

// out[m][c] = sum_k a[m][k] x[k][c]: `rows` of the small operand times rows of a tile (ldx) with `columns`
// columns. `a` holds lanes, `a_row` and `a_depth` apart; `out` holds blocks of block_columns columns,
// out_block apart, all with room for whole blocks. The depth is sliced, so that the tile's rows in one slice
// stay in the first-level cache and TLB. `ahead`: the distance to what is read next, or 0. `first`: the
// product is the first to read the tile; it prefetches its next slice, and with the last one the first slice
// of what is read next.
template <class N, int a_row>
void accumulate_product(const typename N::Lane* a, int64_t a_depth, int64_t rows, const typename N::Elem* x,
                        int64_t ldx, int64_t depth, int64_t columns, int64_t slice, typename N::Acc* out,
                        int64_t ldo, int64_t out_block, Onto onto, const typename N::Acc* scale = nullptr,
                        int64_t ahead = 0, bool first = false) {
  constexpr int64_t step = block_columns<N>;
  // With many rows of the small operand, a block of columns is copied out of rows that may share cache sets.
  constexpr int64_t many = 32, most_packed = 128;
  typename N::Elem packed[most_packed * step];
  if (rows >= many) slice = smaller(slice, most_packed);
  // Even slices, as each prefetches as many rows as it has.
  if (first && depth > 0) slice = rounded_up(divided_up(depth, divided_up(depth, slice)), 2);
  // After a broadcast product, the second lines of the pairs; with many rows both, as there is time.
  const auto fetch = [&](int64_t k, int64_t c) -> Fetch<typename N::Elem> {
    int64_t distance = ahead;
    if (first) distance = k + slice < depth ? slice * ldx : ahead ? ahead - k * ldx : 0;
    if (!distance) return {};
    const typename N::Elem* line = x + k * ldx + c + distance;
    if (!has_pairs<N>) return {line, nullptr, ldx};
    return {line + second_line<N>(ldx), first || rows >= many ? line : nullptr, ldx};
  };
  for (int64_t k = 0; k < depth; k += slice) {
    const int64_t count = smaller(slice, depth - k);
    const typename N::Lane* ak = a + k / N::group * a_depth;
    const Onto so_far = k ? Onto::sum : onto;
    int64_t c = 0;
    if (rows >= many)
      for (; c + step <= columns; c += step) {
        for (int64_t i = 0; i < count; i++) {
          const typename N::Elem* from = x + (k + i) * ldx + c;
          __builtin_memcpy(packed + i * step, from, step * sizeof(*from));
        }
        accumulate_rows<N, a_row, 2, false>(ak, a_depth, rows, packed, step, count, step,
                                            out + c / step * out_block, ldo, so_far, scale, fetch(k, c));
      }
    for (; c + step <= columns; c += step)
      accumulate_rows<N, a_row, 2, false>(ak, a_depth, rows, x + k * ldx + c, ldx, count, step,
                                          out + c / step * out_block, ldo, so_far, scale, fetch(k, c));
    const auto rest = [&](auto vectors) {
      accumulate_rows<N, a_row, vectors(), true>(ak, a_depth, rows, x + k * ldx + c, ldx, count, columns - c,
                                                 out + c / step * out_block, ldo, so_far, scale, fetch(k, c));
    };
    if (columns - c > step / 2)
      rest(std::integral_constant<int, 2>());
    else if (c < columns)
      rest(std::integral_constant<int, 1>());
  }
}

}  // namespace
}  // namespace vt::VT_NAMESPACE
