// The product whose result is a tile of a map: out[r][c] = base[r][c] + sum_k a[k][r] b[k][c].
#pragma once

#include "products.h"

namespace vt::VT_NAMESPACE {
namespace {

// How a result is stored: through the caches, or past them. Only aligned vectors can be streamed directly;
// other rows are assembled in a buffer first, contiguous rows in one piece.
enum class Storing { cached, streamed, assembled };

template <class N>
struct Expand {  // operands of a block, see expand_product
  const typename N::Lane *a, *b;
  int64_t a_depth, b_depth, groups;
  const typename N::Elem* base;
  int64_t ld_base;
  typename N::Elem* out;
  int64_t ldo;
  int64_t ahead;  // in the base, to the tile that is prefetched; 0: none
  // Rows of `a`, of the base and of the result are channels: they lie far apart, where processors do not
  // prefetch on their own.
  bool pixels_innermost;
  Storing storing;
};

// Not inlined, and with few pointers: GCC would keep one for each row of the base and of the result, and move
// all of them through memory in every block. `next`: whether a whole block of rows follows in the tile, whose
// lines of the result are prefetched for writing. Lines behind the tile may be another thread's.
template <class N, int rows, int vectors, bool part>
__attribute__((noinline)) void expand_block(const Expand<N>& e, int64_t r, int64_t c, int64_t columns,
                                            bool next) {
  using Acc = typename N::Acc;
  using Elem = typename N::Elem;
  using Packed = typename N::Packed;
  constexpr int64_t step = VT_BYTES / sizeof(typename N::Lane), line = 64 / sizeof(Elem);
  constexpr int threes = (rows + 2) / 3;  // addressing modes express 0, 1 and 2 times a row
  Vec<Acc> sums[rows][vectors] = {};
  const Elem* base[threes];
  if (e.base) {
    base[0] = e.base + r * e.ld_base + c;
    VT_UNROLL
    for (int i = 1; i < threes; i++) base[i] = base[i - 1] + 3 * e.ld_base;
    if (e.ahead) {
      VT_UNROLL
      for (int m = 0; m < rows; m += 3 - lines<N>) prefetch(base[m / 3] + m % 3 * e.ld_base + e.ahead);
    }
    if (next && e.pixels_innermost) {
      VT_UNROLL
      for (int m = 0; m < rows; m++) VT_UNROLL
      for (int i = 0; i < lines<N>; i++)
        if (!part || i * line < columns)
          prefetch(base[m / 3] + m % 3 * e.ld_base + block_rows * e.ld_base + i * line);
    }
  }
  Elem* out[threes];
  out[0] = e.out + r * e.ldo + c;
  VT_UNROLL
  for (int i = 1; i < threes; i++) out[i] = out[i - 1] + 3 * e.ldo;
  if (next && e.storing == Storing::cached) {
    VT_UNROLL
    for (int m = 0; m < rows; m++) VT_UNROLL
    for (int i = 0; i < lines<N>; i++)
      if (!part || i * line < columns)
        prefetch_for_writing(out[m / 3] + m % 3 * e.ldo + block_rows * e.ldo + i * line);
  }
  const typename N::Lane *a = e.a + r, *b = e.b + c;
  for (int64_t k = 0; k < e.groups; k++, a += e.a_depth, b += e.b_depth) {
    Packed bk[vectors];
    VT_UNROLL
    for (int v = 0; v < vectors; v++) bk[v] = load<typename N::Lane>(b + v * step);
    VT_UNROLL
    for (int m = 0; m < rows; m++) {
      const Packed am = splat_lane<typename N::Lane, Packed>(a + m);
      VT_UNROLL
      for (int v = 0; v < vectors; v++) N::madd(sums[m][v], am, bk[v]);
    }
  }
  // The base is added last: a sum that starts from a large base would lose small terms.
  if (e.base) {
    VT_UNROLL
    for (int m = 0; m < rows; m++) {
      Vec<Acc> row[vectors];
      N::template base<vectors, part>(base[m / 3] + m % 3 * e.ld_base, columns, row);
      VT_UNROLL
      for (int v = 0; v < vectors; v++) sums[m][v] += row[v];
    }
  }
  VT_UNROLL
  for (int m = 0; m < rows; m++)
    N::template put<vectors, part>(out[m / 3] + m % 3 * e.ldo, columns, sums[m],
                                   e.storing == Storing::streamed);
}

template <class N, int vectors, bool part>
VT_INLINE void expand_rows(const Expand<N>& e, int64_t r, int64_t rows, int64_t c, int64_t columns,
                           bool next) {
  if (rows == block_rows) return expand_block<N, block_rows, vectors, part>(e, r, c, columns, next);
  const int64_t end = r + rows;
  if (r + 4 <= end) expand_block<N, 4, vectors, part>(e, r, c, columns, false), r += 4;
  for (; r < end; r++) expand_block<N, 1, vectors, part>(e, r, c, columns, false);
}

// Copies to any address past the caches: in whole cache lines except for the first and the last.
template <class Elem>
void stream_run(const Elem* from, Elem* to, int64_t count) {
  const int64_t bytes = count * sizeof(Elem), head = smaller<int64_t>(-(uintptr_t)to % 64, bytes);
  __builtin_memcpy(to, from, head);
  const char* p = (const char*)from;
  char* q = (char*)to;
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64) VT_UNROLL
  for (int64_t j = 0; j < 64; j += VT_BYTES)
    store_streaming<int32_t>((int32_t*)(q + i + j), load<int32_t>(p + i + j));
  __builtin_memcpy(q + i, p + i, bytes - i);
}

// out[r][c] = base[r][c] + sum_k a[k][r] b[k][c] for `rows` rows and `columns` columns of a tile; a missing
// base is 0. a and b hold lanes [groups of k][..], b with room for columns rounded up to block_columns. The
// loop over columns is the inner one, so that memory is read and written in order.
template <class N>
void expand_product(Expand<N> e, int64_t rows, int64_t columns) {
  using Elem = typename N::Elem;
  using Lane = typename N::Lane;
  constexpr int64_t step = block_columns<N>;
  // Lanes that all blocks of these rows read again, next to each other. Measured with 16 and 64 rows of
  // tokens; more than 128 would take too much of the first-level cache.
  constexpr int64_t fewest_copied = 16, most_copied = 128;
  const int64_t whole = columns / step * step;
  Elem assembled[block_rows * most_pixels];
  Lane copied[block_rows * most_copied];
  const Lane* const a = e.a;
  const int64_t a_depth = e.a_depth, ldo = e.ldo;
  Elem* const out = e.out;
  const bool copies = e.pixels_innermost && e.groups >= fewest_copied && e.groups <= most_copied;
  for (int64_t r = 0; r < rows; r += block_rows) {
    const int64_t count = smaller<int64_t>(block_rows, rows - r);
    const bool next = r + 2 * block_rows <= rows;
    if (copies) {
      for (int64_t k = 0; k < e.groups; k++)
        __builtin_memcpy(copied + k * block_rows, a + k * a_depth + r, block_rows * sizeof(Lane));
      e.a = copied - r, e.a_depth = block_rows;
    }
    if (e.storing == Storing::assembled) e.out = assembled - r * columns, e.ldo = columns;
    for (int64_t c = 0; c < whole; c += step) expand_rows<N, 2, false>(e, r, count, c, step, next);
    if (columns - whole > step / 2)
      expand_rows<N, 2, true>(e, r, count, whole, columns - whole, next);
    else if (whole < columns)
      expand_rows<N, 1, true>(e, r, count, whole, columns - whole, next);
    if (e.storing != Storing::assembled) continue;
    if (ldo == columns)
      stream_run(assembled, out + r * ldo, count * columns);
    else
      for (int64_t i = 0; i < count; i++) stream_run(assembled + i * columns, out + (r + i) * ldo, columns);
  }
}

}  // namespace
}  // namespace vt::VT_NAMESPACE
