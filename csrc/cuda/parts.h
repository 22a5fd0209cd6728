// How work is shared out, and how what several clusters found for one sample is put together: in the order of
// the clusters, so that a call gives the same bits each time.
#pragma once

#include "call.h"
#include "numbers.h"

namespace vt {
namespace cuda {

// Equal shares of all tiles of all samples, in order. Shares end at multiples of `unit` tiles: 1, or the
// tiles of a sample, so that no sample is split.
struct Share {
  int64_t begin, end;

  static VT_DEVICE Share of(const Call& call, int cluster) {
    return {start(call, cluster), start(call, cluster + 1)};
  }
  static VT_DEVICE int64_t start(const Call& call, int64_t cluster) {
    return (cluster * call.units_each + (cluster < call.longer ? cluster : call.longer)) * call.unit;
  }
  // The cluster whose share holds a tile.
  static VT_DEVICE int64_t owner(const Call& call, int64_t tile) {
    const int64_t unit = call.unit == 1 ? tile : quotient(tile, call.unit);
    const int64_t in_longer = call.longer * (call.units_each + 1);
    return unit < in_longer ? quotient(unit, call.units_each + 1)
                            : call.longer + quotient(unit - in_longer, call.units_each);
  }
  // Of numbers that are not negative. GPUs divide 64 bits slowly.
  static VT_DEVICE int64_t quotient(int64_t a, int64_t b) {
    return a >> 32 == 0 ? static_cast<uint32_t>(a) / static_cast<uint32_t>(b) : a / b;
  }
};

// A set of samples that one result is a sum over: a sample, or, where the batch shares an operand, the
// samples of a head. A cluster leaves what it found for a set that it shares with others in its first part,
// if the set began before its share did, or in its second.
struct Set {
  int64_t begin, end;  // tiles

  // Of sets of `samples` each.
  static VT_DEVICE Set of(const Call& call, int set, int samples) {
    const int64_t size = static_cast<int64_t>(samples) * call.tiles_per_sample;
    return {set * size, (set + 1) * size};
  }
  // The `index`-th of splits() sets that may be split among clusters, or -1: all sets, or, where they are
  // more than clusters, those in which a share begins. These shares are no shorter than a set.
  static VT_DEVICE int split(const Call& call, int index, int samples) {
    if (index >= splits(call, samples)) return -1;
    if (splits(call, samples) < call.clusters) return index;
    const int64_t size = static_cast<int64_t>(samples) * call.tiles_per_sample,
                  start = Share::start(call, index);
    return start % size == 0 ? -1 : static_cast<int>(start / size);
  }
  static VT_BOTH int64_t splits(const Call& call, int samples) {
    const int64_t sets = static_cast<int64_t>(call.batch) * call.query_heads / samples;
    return sets < call.clusters ? sets : call.clusters;
  }
  VT_DEVICE bool whole(const Share& share) const { return begin >= share.begin && end <= share.end; }
  VT_DEVICE int64_t part(int64_t cluster, const Share& share) const {
    return 2 * cluster + (begin > share.begin ? 1 : 0);
  }
};

// The parts of a set, in the order of the clusters. LANES lanes of a warp, 1 or 4, share an element's, and
// combine them in a fixed order. All lanes of a warp take part.
template <int LANES>
class Parts {
 public:
  static constexpr int kThreads = 256, kElements = 32 / LANES;  // of a block, of a warp

  VT_DEVICE Parts(const Call& call, const Set& set)
      : first_(static_cast<int>(Share::owner(call, set.begin))),
        last_(static_cast<int>(Share::owner(call, set.end - 1))),
        after_(set.begin > Share::start(call, first_)) {}

  // Of the grid's elements.
  static VT_DEVICE int element() {
    return (block_y() * kThreads + thread()) / 32 * kElements + lane() % kElements;
  }
  static VT_DEVICE bool first_lane() { return lane() < kElements; }

  VT_DEVICE bool several() const { return first_ < last_; }

  // Calls load(i, part) for kTogether parts and then add() for all of them, until it was called for all parts
  // of the lane.
  template <class Load, class Add>
  VT_DEVICE void for_each(const Load& load, const Add& add) const {
    for (int from = first_ + lane() / kElements; from <= last_; from += kTogether * LANES) {
      VT_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        const int cluster = from + i * LANES;
        load(i, cluster <= last_ ? 2 * static_cast<int64_t>(cluster) + (cluster == first_ && after_) : -1);
      }
      add();
    }
  }
  static constexpr int kTogether = LANES == 1 ? 4 : 8;  // loads that are under way at once

  // Joins what the lanes of an element have.
  template <class Join>
  static VT_DEVICE float join(float value, const Join& of_two) {
    VT_UNROLL
    for (int mask = kElements; mask < 32; mask *= 2) value = of_two(value, shuffle_xor(value, mask));
    return value;
  }
  static VT_DEVICE float sum(float value) {
    return join(value, [](float a, float b) { return a + b; });
  }
  // Whether it holds for any of an element's lanes.
  static VT_DEVICE bool any(bool own) {
    return LANES == 1 ? own : (ballot(own) & 0x01010101u << lane() % kElements) != 0;
  }

 private:
  static VT_DEVICE int lane() { return thread() & 31; }

  int first_, last_;
  bool after_;  // the first cluster's share begins before the set
};
// From so many parts on, four lanes share an element's.
constexpr int kManyParts = 16;

}  // namespace cuda
}  // namespace vt
