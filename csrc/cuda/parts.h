// How work is shared out, and how what several clusters found for one sample is put together: in the order of
// the clusters, so that a call gives the same bits each time.
#pragma once

#include "call.h"
#include "numbers.h"

namespace vt {
namespace cuda {

// The rows of scores that the kernel of a call has room for, and its parts too.
VT_BOTH int room_for_rows(const Call& call) {
  const int rows = call.keys_count > call.queries_count ? call.keys_count : call.queries_count;
  return rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
}

// Equal shares of all tiles of all samples, in order. Shares end at multiples of `unit` tiles: 1, or the tiles
// of a sample, so that no sample is split.
struct Share {
  int64_t begin, end;

  static VT_DEVICE Share of(const Call& call, int cluster) {
    return {start(call, cluster), start(call, cluster + 1)};
  }
  static VT_DEVICE int64_t start(const Call& call, int64_t cluster) {
    return cluster * (tiles(call) / call.unit) / call.clusters * call.unit;
  }
  // The cluster whose share holds a tile.
  static VT_DEVICE int64_t owner(const Call& call, int64_t tile) {
    return ((tile / call.unit + 1) * call.clusters - 1) / (tiles(call) / call.unit);
  }
  static VT_DEVICE int64_t tiles(const Call& call) {
    return static_cast<int64_t>(call.batch) * call.query_heads * call.tiles_per_sample;
  }
};

// A set of samples that one result is a sum over: each sample, or, where all rows are shared by the batch, the
// samples of a head. A cluster leaves what it found for a set that it shares with others in its first part, if
// the set began before its share did, or in its second.
struct Set {
  int64_t begin, end;  // tiles

  static VT_DEVICE Set of(const Call& call, int set, int samples) {
    const int64_t size = static_cast<int64_t>(samples) * call.tiles_per_sample;
    return {set * size, (set + 1) * size};
  }
  VT_DEVICE bool whole(const Share& share) const { return begin >= share.begin && end <= share.end; }
  VT_DEVICE int64_t part(const Call&, int64_t cluster, const Share& share) const {
    return 2 * cluster + (begin > share.begin ? 1 : 0);
  }
  VT_DEVICE int64_t part(const Call& call, int64_t cluster) const {
    return 2 * cluster + (begin > Share::start(call, cluster) ? 1 : 0);
  }
};

}  // namespace cuda
}  // namespace vt
