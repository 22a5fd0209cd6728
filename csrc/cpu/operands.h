// Small operands, packed for products, and the sums over pixels that become tokens or gradients.
#pragma once

#include "expand.h"
#include "memory.h"
#include "products.h"
#include "tiles.h"

namespace vt::VT_NAMESPACE {
namespace {

// Elements of two rows as lanes, with zeros for a missing second row. `split`: in the order of the columns
// that expand writes, see Bfloat16Pairs::base.
template <bool split>
void pair_rows(const Bfloat16* first, const Bfloat16* second, int64_t columns, uint32_t* to) {
  constexpr int64_t W = lanes<uint32_t>;
  for (int64_t c = 0; c < columns; c += W) {
    if (split && columns - c > W) {
      const Vec<uint32_t> a = load<uint32_t>(first + c);
      const Vec<uint32_t> b = second ? load<uint32_t>(second + c) : Vec<uint32_t>{};
      store<uint32_t>(to + c, (a & 0xffff) | (b << 16));
      c += W;
      store<uint32_t>(to + c, (a >> 16) | (b & 0xffff0000u));
    } else {
      const Vec<uint32_t> low = (Vec<uint32_t>)widen(first + c) >> 16;
      store<uint32_t>(to + c, second ? low | (Vec<uint32_t>)widen(second + c) : low);
    }
  }
}

// Packs rows of elements, `ld` apart, by columns: lanes [depth][`to_ld` columns], which are folded or not.
template <class N, bool folded>
void pack_columns(const typename N::Elem* from, int64_t ld, int64_t rows, int64_t depth, typename N::Lane* to,
                  int64_t to_ld) {
  // Whole lanes are moved, as numbers of their size.
  using Moved = std::conditional_t<folded && folds<N>, double, typename N::Acc>;
  constexpr int64_t group = sizeof(Moved) / sizeof(typename N::Elem);
  transpose((const Moved*)from, ld / group, rows, divided_up(depth, group), (Moved*)to, to_ld);
}

// A bank: `count` matrices (one for each head) of `rows` x `depth` in a product's elements, packed in the
// forms that products take: by columns for scores, by rows for expand.
template <class N, bool pixels_innermost>
struct Bank {
  using Elem = typename N::Elem;
  using Lane = typename N::Lane;

  int64_t count = 0, rows = 0, depth = 0;
  int64_t ld = 0, columns_ld = 0;
  Elem* staged = nullptr;
  Lane* columns = nullptr;
  Lane* pairs = nullptr;

  Bank() = default;
  Bank(int64_t count, int64_t rows, int64_t depth, bool scores, bool expands, Arena& arena)
      : count(count), rows(rows), depth(depth) {
    constexpr int64_t padding = 64;
    ld = rounded_up(depth, padding) + 64 / (int64_t)sizeof(Elem);
    columns_ld = pixels_innermost ? rounded_up(rows, lanes<typename N::Acc>) : padded_lanes<N>(rows);
    staged = arena.take<Elem>(count * staged_size());
    if (scores) columns = arena.take<Lane>(count * columns_size());
    if (expands && N::group > 1) pairs = arena.take<Lane>(count * divided_up(rows, 2) * ld);
  }
  int64_t staged_size() const { return rounded_up(rows, 16) * ld; }
  // Folded lanes are twice as wide and half as many.
  int64_t columns_size() const {
    return rounded_up(divided_up(depth, N::group), 16) * larger<int64_t>(columns_ld, 16);
  }

  Elem* row(int64_t matrix, int64_t index) const { return staged + matrix * staged_size() + index * ld; }

  // Reads a row, or sets it to zeros if it must not be read.
  VT_INLINE void set_row(int64_t matrix, int64_t index, const Rows& from, Dtype dtype, int64_t sample,
                         int64_t from_row, int64_t first_column, bool zero = false) const {
    Elem* to = row(matrix, index);
    if (zero)
      for (int64_t c = 0; c < depth; c++) to[c] = Elem{};
    else
      gather(from.data, dtype, sample * from.batch + from_row * from.row + first_column * from.column,
             from.column, to, depth);
    for (int64_t c = depth; c < ld; c++) to[c] = Elem{};
  }

  // Sets `given` rows of each matrix, from row `index` on. In `from`, those of matrix m begin at row
  // m * row_step and column m * column_step. removed(row): whether it must not be read; rows are counted
  // through all matrices.
  template <class Removed>
  void set_rows(int64_t index, int64_t given, const Rows& from, Dtype dtype, int64_t sample, int64_t row_step,
                int64_t column_step, Removed removed) const {
    for (int64_t m = 0; m < count; m++)
      for (int64_t l = 0; l < given; l++)
        set_row(m, index + l, from, dtype, sample, m * row_step + l, m * column_step, removed(m * given + l));
  }

  // The dot product of a row and `numbers`, in double.
  double dot(int64_t matrix, int64_t index, const typename N::Acc* numbers) const {
    constexpr int64_t W = lanes<double>;
    const Elem* from = row(matrix, index);  // padded with zeros
    Vec<double> sums[4] = {};               // independent, to hide their latency
    int64_t c = 0;
    for (; c + 4 * W <= depth; c += 4 * W) VT_UNROLL
    for (int64_t i = 0; i < 4; i++) sums[i] += doubles(from + c + i * W) * doubles(numbers + c + i * W);
    for (; c < depth; c += W) {
      typename N::Acc some[W] = {};
      for (int64_t i = 0; i < smaller(W, depth - c); i++) some[i] = numbers[c + i];
      sums[0] += doubles(from + c) * doubles(some);
    }
    return total<double>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }

  // After all rows are set.
  void pack() const {
    for (int64_t matrix = 0; matrix < count; matrix++) {
      Elem* from = row(matrix, 0);
      if (columns)
        pack_columns<N, !pixels_innermost>(from, ld, rows, depth, columns + matrix * columns_size(),
                                           columns_ld);
      if (pairs)
        if constexpr (N::group == 2) {
          Lane* to = pairs + matrix * divided_up(rows, 2) * ld;
          for (int64_t r = 0; r < rows; r += 2)
            pair_rows<!pixels_innermost>(from + r * ld, r + 1 < rows ? from + (r + 1) * ld : nullptr, depth,
                                         to + r / 2 * ld);
        }
    }
  }
  const Lane* by_columns(int64_t matrix) const { return columns + matrix * columns_size(); }
  const Lane* by_rows(int64_t matrix) const {
    if constexpr (N::group > 1)
      return pairs + matrix * divided_up(rows, 2) * ld;
    else
      return (const Lane*)row(matrix, 0);
  }
};

// The weights of a tile's pixels, rows [l][pixel] of score_ld, in the forms that products take.
template <class N, bool pixels_innermost>
struct Weights {
  using Acc = typename N::Acc;
  using Elem = typename N::Elem;
  using Lane = typename N::Lane;

  Acc* data = nullptr;
  Elem* rounded = nullptr;  // the same in a product's elements, if these are narrower
  Lane* pairs = nullptr;    // `rounded` by pairs of rows, for expand
  Lane* columns = nullptr;  // by columns, to pool where pixels lie innermost

  Weights() = default;
  // `matrices` of `rows` each.
  Weights(int64_t matrices, int64_t rows, bool expands, Arena& arena) {
    const int64_t room = matrices * rows + 16;
    data = arena.take<Acc>(room * score_ld);
    if (N::group > 1) rounded = arena.take<Elem>(room * score_ld);
    if (N::group > 1 && expands) pairs = arena.take<Lane>((matrices * divided_up(rows, 2) + 1) * score_ld);
    if (pixels_innermost) columns = arena.take<Lane>(score_ld * larger<int64_t>(16, rounded_up(rows, 16)));
  }
  Acc* row(int64_t index) const { return data + index * score_ld; }

  // Rounds two vectors of a row and stores them; `both` become the rounded values.
  VT_INLINE void round_to(int64_t index, int64_t pixel, Vec<Acc> (&both)[2]) const {
    if constexpr (N::group > 1) N::round(rounded + index * score_ld + pixel, both);
  }
  // Rounds rows [first, first + count).
  void round(int64_t first, int64_t count, int64_t pixels) const {
    if constexpr (N::group > 1)
      for (int64_t l = first; l < first + count; l++)
        for (int64_t i = 0; i < pixels; i += 2 * lanes<Acc>) {
          Vec<Acc> both[2] = {load<Acc>(row(l) + i), load<Acc>(row(l) + i + lanes<Acc>)};
          round_to(l, i, both);
        }
  }
  // Rows [first, first + count) of a matrix for expand, after they were rounded.
  const Lane* for_expand(int64_t matrix, int64_t first, int64_t count, int64_t pixels) const {
    if constexpr (N::group == 1) {
      return (const Lane*)row(first);
    } else {
      Lane* to = pairs + matrix * divided_up(count, 2) * score_ld;
      for (int64_t l = 0; l < count; l += 2) {
        const Elem* from = rounded + (first + l) * score_ld;
        pair_rows<pixels_innermost>(from, l + 1 < count ? from + score_ld : nullptr, pixels,
                                    to + l / 2 * score_ld);
      }
      return to;
    }
  }
  // Rows [first, first + count) for pooling, after they were rounded.
  const Lane* for_pool(int64_t first, int64_t count, int64_t pixels) const {
    const Elem* from;
    if constexpr (N::group == 1)
      from = row(first);
    else
      from = rounded + first * score_ld;
    if (!pixels_innermost) return (const Lane*)from;
    pack_columns<N, true>(from, score_ld, count, pixels, columns, padded_lanes<N>(count));
    return columns;
  }
};

// Sums over pixels, `count` matrices of rows x columns: tokens, or gradients of queries, keys and values.
template <class N, bool pixels_innermost>
struct Sums {
  using Acc = typename N::Acc;
  int64_t rows = 0, columns = 0, ld = 0, size = 0;
  Acc* data = nullptr;
  Acc* turned = nullptr;
  bool fresh = true;  // nothing has been added yet, and data is uninitialised

  Sums() = default;
  Sums(int64_t count, int64_t rows, int64_t columns, Arena& arena) : rows(rows), columns(columns) {
    const int64_t columns_room = rounded_up(columns, 32) + 16, rows_room = rounded_up(rows, 16);
    // Channels innermost: in blocks of columns, so that a product walks through memory in order.
    ld = pixels_innermost ? padded_sums<N>(rows) : block_columns<N>;
    size = pixels_innermost ? columns_room * ld + 16 : rounded_up(columns, ld) * rows;
    data = arena.take<Acc>(count * size);
    if (pixels_innermost) turned = arena.take<Acc>(rows_room * columns_room);
  }

  // sum = scale * sum + weights^T times a tile. `scale`: a factor for each row, padded; nullptr: 1. `ahead`:
  // to the next tile, where channels lie innermost.
  void add(int64_t matrix, View<const typename N::Elem> x, int64_t pixels, const typename N::Lane* weights,
           const Acc* scale, int64_t ahead = 0) const {
    const Onto onto = fresh ? Onto::nothing : scale ? Onto::scaled : Onto::sum;
    Acc* out = data + matrix * size;
    if (pixels_innermost)
      broadcast_product<N>(x.data, x.ld, columns, pixels, weights, rows, out, ld, onto, scale);
    else
      accumulate_product<N, score_ld / N::group>(weights, 1, rows, x.data, x.ld, pixels, columns, most_pixels,
                                                 out, ld, rows * ld, onto, scale, ahead);
  }

  // to[row][column] = factor[row] * sum; factor == nullptr: 1. Rows of `to` are to_ld apart.
  void emit(int64_t matrix, Acc* to, int64_t to_ld, const Acc* factor) const {
    if (fresh) {
      for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < columns; c++) to[r * to_ld + c] = 0;
      return;
    }
    const Acc* from = data + matrix * size;
    int64_t from_ld = ld;
    if (pixels_innermost) {
      from_ld = rounded_up(columns, 32) + 16;
      transpose(from, ld, columns, rows, turned, from_ld);
      from = turned;
    }
    // Blocks of columns, `next` apart.
    const int64_t block = pixels_innermost ? columns : ld, next = pixels_innermost ? 0 : rows * ld;
    for (int64_t r = 0; r < rows; r++, from += from_ld) {
      const Acc* at = from;
      for (int64_t first = 0; first < columns; first += block, at += next)
        emit_run(at, to + r * to_ld + first, smaller(block, columns - first), factor ? factor[r] : (Acc)1);
    }
  }
  static VT_INLINE void emit_run(const Acc* from, Acc* to, int64_t count, Acc factor) {
    for (int64_t c = 0; c < count; c += lanes<Acc>) {
      const Vec<Acc> v = load<Acc>(from + c) * factor;
      if (count - c >= lanes<Acc>)
        store<Acc>(to + c, v);
      else
        store_part(to + c, v, count - c);
    }
  }
};

// scores[l][pixel] of a tile with the rows of a bank's matrix, in rows of score_ld. `scratch` has room for
// score_ld rows of padded columns. Up to 15 rows behind the last one are overwritten, so heads are scored in
// order.
template <class N, bool pixels_innermost>
void score(View<const typename N::Elem> x, int64_t pixels, const Bank<N, pixels_innermost>& bank,
           int64_t matrix, typename N::Acc* scores, typename N::Acc* scratch, int64_t ahead = 0) {
  if (pixels_innermost) {
    // The next block of channels is read next, or the first one of the next tile.
    const int64_t block = bank.depth * x.ld;
    if (matrix + 1 < bank.count)
      ahead = block;
    else if (ahead)
      ahead -= matrix * block;
    accumulate_product<N, 1>(bank.by_columns(matrix), bank.columns_ld, bank.rows, x.data, x.ld, bank.depth,
                             pixels, 64, scores, score_ld, block_columns<N>, Onto::nothing,
                             (const typename N::Acc*)nullptr, ahead, true);
  } else {
    const int64_t ld = padded_sums<N>(bank.rows);
    broadcast_product<N>(x.data, x.ld, pixels, bank.depth, bank.by_columns(matrix), bank.rows, scratch, ld,
                         Onto::nothing, (const typename N::Acc*)nullptr, ahead);
    transpose(scratch, ld, pixels, bank.rows, scores, score_ld);
  }
}

// out = base + weights^T times a bank: a tile of a map, of which each matrix makes its own block of channels.
template <class N, bool pixels_innermost>
void expand(const Weights<N, pixels_innermost>& weights, const Bank<N, pixels_innermost>& bank,
            int64_t pixels, View<const typename N::Elem> base, View<typename N::Elem> out, Storing storing,
            int64_t ahead) {
  const int64_t groups = divided_up(bank.rows, N::group);
  // Where channels lie innermost, scores prefetch the first lines and leave the second ones. Of a base that
  // has no scores, only half is prefetched. Where pixels do, nothing is left.
  ahead = ahead && !pixels_innermost ? ahead + second_line<N>(base.ld) : 0;
  for (int64_t matrix = 0; matrix < bank.count; matrix++) {
    const auto b = base.template from_channel<pixels_innermost>(matrix * bank.depth);
    const auto o = out.template from_channel<pixels_innermost>(matrix * bank.depth);
    const typename N::Lane *w = weights.for_expand(matrix, matrix * bank.rows, bank.rows, pixels),
                           *rows = bank.by_rows(matrix);
    if (pixels_innermost)
      expand_product<N>(
          {rows, w, bank.ld, score_ld, groups, b.data, b.ld, o.data, o.ld, ahead, true, storing}, bank.depth,
          pixels);
    else
      expand_product<N>(
          {w, rows, score_ld, bank.ld, groups, b.data, b.ld, o.data, o.ld, ahead, false, storing}, pixels,
          bank.depth);
  }
}

}  // namespace
}  // namespace vt::VT_NAMESPACE
