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

// Where vectors are wide, a lane of a broadcast product's small operand takes two groups of the tile's
// elements, and neighbouring lanes of the sums are added at the end. So elements of the tile are loaded two
// groups at a time: processors that multiply two vectors a cycle would otherwise wait for these loads. A
// vector has half as many columns then, and few of its lanes are idle.
template <class N>
constexpr bool folds = VT_BYTES == 64 && sizeof(typename N::Acc) == 4;
template <class N>
using Folded = std::conditional_t<folds<N>, uint64_t, typename N::Lane>;
template <class N>
constexpr int64_t vector_columns = VT_BYTES / sizeof(Folded<N>);

// The length of a row of the packed small operand, and of a row of sums, half of whose last vector may stay
// unwritten.
template <class N>
VT_INLINE int64_t padded_lanes(int64_t columns) {
  return rounded_up(columns, vector_columns<N>);
}
template <class N>
VT_INLINE int64_t padded_sums(int64_t columns) {
  return rounded_up(columns, columns <= vector_columns<N> ? vector_columns<N> : lanes<typename N::Acc>);
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

// Stores the sums of a broadcast block.
template <class N, int rows, int vectors>
VT_INLINE void put_broadcast(Vec<typename N::Acc> (&sums)[rows][vectors], typename N::Acc* out, int64_t ldo,
                             Onto onto, const typename N::Acc* scale) {
  using Acc = typename N::Acc;
  VT_UNROLL
  for (int r = 0; r < rows; r++) {
    if constexpr (folds<N>) {
      VT_UNROLL
      for (int v = 0; v < vectors; v += 2) {
        const Vec<Acc> a = sums[r][v], b = sums[r][v + 1 < vectors ? v + 1 : v];
        const Vec<Acc> both =
            __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
            __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        if (v + 1 < vectors)
          put_onto(both, out + r * ldo, v * vector_columns<N>, onto, scale);
        else
          put_onto(lower_half<Acc>(both), out + r * ldo, v * vector_columns<N>, onto, scale);
      }
    } else {
      VT_UNROLL
      for (int v = 0; v < vectors; v++)
        put_onto(sums[r][v], out + r * ldo, v * vector_columns<N>, onto, scale);
    }
  }
}

// Lanes that are summed in a register at a time. The depth is the same for any number of columns: a backward
// computes scores beside more columns than the forward, and they must have the same bits.
constexpr int64_t sum_depth = 64;

// Not inlined: with its callers' variables alive, GCC would run out of registers for addresses.
template <class N, int rows, int vectors>
__attribute__((noinline)) void broadcast_block(const typename N::Elem* x, int64_t ldx, int64_t depth,
                                               const Folded<N>* w, int64_t ldw, typename N::Acc* out,
                                               int64_t ldo, Onto onto, const typename N::Acc* scale,
                                               int64_t ahead) {
  using Acc = typename N::Acc;
  using Elem = typename N::Elem;
  using Packed = typename N::Packed;
  constexpr int64_t group = sizeof(Folded<N>) / sizeof(Elem);
  // The prefetches of a stretch of lanes, from every row or every second one, are issued one a lane; where a
  // lane takes many instructions, all at once.
  constexpr int64_t stretch = block_columns<N> / group, row_step = 3 - lines<N>, fetched = rows / row_step;
  constexpr int64_t at_once = larger<int64_t>(1, vectors > 2 ? fetched : divided_up(fetched, stretch));
  const int64_t fetching = ahead ? fetched / at_once : 0;
  const Elem* at[(rows + 2) / 3];  // one for three rows: addressing modes express 0, 1 and 2 times ldx
  VT_UNROLL
  for (int i = 0; i < (rows + 2) / 3; i++) at[i] = x + 3 * i * ldx;
  const int64_t groups = depth / group;
  Vec<Acc> sums[rows][vectors] = {};
  Packed b[vectors];
  const auto load_columns = [&](int64_t k) {
    VT_UNROLL
    for (int v = 0; v < vectors; v++) b[v] = load<typename N::Lane>(w + k * ldw + v * vector_columns<N>);
  };
  const auto multiply = [&](int r, Packed a) {
    VT_UNROLL
    for (int v = 0; v < vectors; v++) N::madd(sums[r][v], a, b[v]);
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
    load_columns(k);
    VT_UNROLL
    for (int r = 0; r < rows; r++)
      multiply(r, splat_lane<Folded<N>, Packed>(at[r / 3] + r % 3 * ldx + k * group));
  }
  if (group > 1 && groups * group < depth) {
    load_columns(groups);
    VT_UNROLL
    for (int r = 0; r < rows; r++)
      multiply(r, splat_part<N, Folded<N>, Packed>(x + r * ldx + groups * group, depth - groups * group));
  }
  put_broadcast<N>(sums, out, ldo, onto, scale);
}

template <class N, int vectors>
void broadcast_rows(const typename N::Elem* x, int64_t ldx, int64_t rows, int64_t depth, const Folded<N>* w,
                    int64_t ldw, typename N::Acc* out, int64_t ldo, Onto onto, const typename N::Acc* scale,
                    int64_t ahead) {
  // As many rows as fit into the registers beside the vectors; with 32 registers, enough to hide latency.
  constexpr int most = VT_BYTES == 64 ? (vectors <= 2   ? 12
                                         : vectors == 4 ? 6
                                                        : 8)
                                      : (vectors == 1   ? 8
                                         : vectors == 2 ? 4
                                                        : 2);
  constexpr int64_t group = sizeof(Folded<N>) / sizeof(typename N::Elem);
  int64_t r = 0;
  const auto block = [&](auto count) {
    for (int64_t k = 0; k < depth; k += sum_depth * group)
      broadcast_block<N, count(), vectors>(x + r * ldx + k, ldx, smaller(sum_depth * group, depth - k),
                                           w + k / group * ldw, ldw, out + r * ldo, ldo, k ? Onto::sum : onto,
                                           scale, ahead);
    r += count();
  };
  while (r + most <= rows) block(std::integral_constant<int, most>());
  if constexpr (most > 8)
    if (r + 8 <= rows) block(std::integral_constant<int, 8>());
  if constexpr (most > 4)
    if (r + 4 <= rows) block(std::integral_constant<int, 4>());
  while (r < rows) block(std::integral_constant<int, 1>());
}

// out[r][l] = sum_k x[r][k] w[k][l]: rows of a tile (ldx) times `columns` columns, packed as [lanes of the
// depth][padded_lanes]; rows of `out` are padded_sums long or longer. `ahead`: the distance at which to
// prefetch, in elements; 0: not at all.
template <class N>
void broadcast_product(const typename N::Elem* x, int64_t ldx, int64_t rows, int64_t depth,
                       const void* packed, int64_t columns, typename N::Acc* out, int64_t ldo, Onto onto,
                       const typename N::Acc* scale = nullptr, int64_t ahead = 0) {
  using Lane = Folded<N>;
  constexpr int64_t group = sizeof(Lane) / sizeof(typename N::Elem), most = 4 * vector_columns<N>;
  const int64_t ldw = padded_lanes<N>(columns);
  // What all rows pass over at a time stays in the first-level cache.
  const int64_t fitting = 20480 / (smaller(ldw, most) * (int64_t)sizeof(Lane)) / sum_depth;
  const int64_t slice = larger<int64_t>(1, fitting) * sum_depth * group;
  for (int64_t k = 0; k < depth; k += slice)
    for (int64_t l = 0; l < ldw; l += most) {
      const auto rows_of = [&](auto vectors) {
        broadcast_rows<N, vectors()>(x + k, ldx, rows, smaller(slice, depth - k),
                                     (const Lane*)packed + k / group * ldw + l, ldw, out + l, ldo,
                                     k ? Onto::sum : onto, from_offset(scale, l), l ? 0 : ahead);
      };
      switch (smaller(most, ldw - l) / vector_columns<N>) {
        case 1:
          rows_of(std::integral_constant<int, 1>());
          break;
        case 2:
          rows_of(std::integral_constant<int, 2>());
          break;
        case 3:
          rows_of(std::integral_constant<int, 3>());
          break;
        default:
          rows_of(std::integral_constant<int, 4>());
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
