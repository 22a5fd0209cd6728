// The driver of an op: it splits the call, allocates its memory and hands units to workers.
#pragma once

#include "call.h"
#include "expand.h"
#include "memory.h"
#include "tiles.h"

namespace vt::VT_NAMESPACE {
namespace {

// Pixels of a tile: few enough that its data (`width` elements a pixel) stays in the second-level cache
// between the products, and at least `fewest`, so that loading the small operand pays.
template <class N, bool pixels_innermost>
int64_t tile_pixels(int64_t width, int64_t pixels, int64_t fewest) {
  // With whole rows of a small map the tile is contiguous, which matters more than the second-level cache.
  const bool small = pixels <= most_pixels && width * pixels * (int64_t)sizeof(typename N::Elem) <= 4 << 20;
  if (pixels_innermost && small) return most_pixels;
  const int64_t fitting = (512 << 10) / (width * (int64_t)sizeof(typename N::Elem)) / 32 * 32;
  return smaller<int64_t>(larger<int64_t>(fitting, fewest), pixels_innermost ? most_pixels : 128);
}

// `least`: pixels of a unit at least; `fewest`: of a tile.
template <class N, bool pixels_innermost>
Split split_of(const Call& call, int64_t width, int64_t least, int64_t fewest = 64) {
  // Where pixels lie innermost: half a block of a product's columns, or whole cache lines where rows are made
  // of them.
  const int64_t step = pixels_innermost ? (call.offsets || call.pixels % 32 ? 16 : 32) : 4;
  const int64_t pixels = call.offsets ? most_pixels + 1 : call.pixels;  // tiles of bags are all alike
  return {call, tile_pixels<N, pixels_innermost>(width, pixels, fewest), least, step};
}

// Where the chunk begins that a worker probably continues with after `last`, the last tile of a chunk.
VT_INLINE Place next_chunk(const Split& split, int64_t unit, PixelRange last) {
  const int64_t next = unit + split.workers;
  if (split.offsets) {
    const Split::Unit& here = split.table[unit];
    const int64_t behind = last.first + last.count, end = split.bound(here.end);
    const int64_t stop =
        here.stop > 0 ? smaller(split.bound(here.first) + here.stop * split.chunk_of(here.first), end) : end;
    if (behind < stop) return {last.sample, behind};
    if (next >= split.units) return {last.sample, last.first};
    const Split::Unit& of = split.table[next];
    return {last.sample, split.bound(of.first) + of.chunk * split.chunk_of(of.first)};
  }
  if (split.chunks == 1 && last.sample + 1 < smaller((unit + 1) * split.samples, split.batch))
    return {last.sample + 1, 0};
  if (next >= split.units) return {last.sample, last.first};
  if (split.chunks == 1) return {next * split.samples, 0};
  return {next / split.chunks, next % split.chunks * split.chunk};
}

// Calls body(range, next) for each tile of a chunk; next: where the worker's next tile begins, or this one if
// there is none.
template <class Body>
VT_INLINE void for_each_tile(const Split& split, int64_t unit, int64_t sample, int64_t chunk, Body body) {
  const int64_t size = split.chunk_of(sample), begin = split.begin_of(sample) + chunk * size,
                end = smaller(begin + size, split.end_of(sample));
  for (int64_t first = begin; first < end; first += split.tile) {
    const PixelRange range = {sample, first, smaller(split.tile, end - first)};
    body(range,
         first + split.tile < end ? Place{sample, first + split.tile} : next_chunk(split, unit, range));
  }
}
// Calls body(sample, chunk) for each chunk of a unit.
template <class Body>
VT_INLINE void for_each_chunk(const Split& split, int64_t unit, Body body) {
  if (split.offsets) {
    const Split::Unit& of = split.table[unit];
    for (int64_t bag = of.first; bag < of.end; bag++)
      for (int64_t chunk = of.chunk, stop = of.stop > 0 ? of.stop : split.chunks_of(bag); chunk < stop;
           chunk++)
        body(bag, chunk);
    return;
  }
  if (split.chunks > 1) return body(unit / split.chunks, unit % split.chunks);
  const int64_t first = unit * split.samples;
  for (int64_t sample = first; sample < smaller(first + split.samples, split.batch); sample++)
    body(sample, (int64_t)0);
}

// Plan: constructed from (call, split, arena); what the workers share; finish(host, threads) runs after them.
//
// Worker: constructed from (call, split, plan, arena), one for each thread. For each chunk of a unit it gets
// begin(sample), tile(range, next) for each tile, where `next` is the place of the worker's next tile, and
// end_chunk(unit, sample, chunk); after the unit, end_unit(unit).
//
// Both are first constructed with an empty arena, which measures their memory.
template <class Plan, class Worker>
void run(const Call& call, Split split, int64_t work, const Host& host) {
  int64_t threads = work < least_shared_work ? 1 : larger<int64_t>(1, host.threads);
  Arena measured;
  split.make_tables(measured);
  const Plan unused(call, split, measured);
  const size_t shared = measured.used;
  Arena one;
  {
    const Worker unused_worker(call, split, unused, one);
  }
  const int64_t workers = split.workers = smaller(threads, split.units);
  const uintptr_t memory = (uintptr_t)host.allocate(host.self, shared + workers * one.used + 64);
  const uintptr_t base = (memory + 63) / 64 * 64;
  Arena arena{base, 0};
  split.make_tables(arena);
  const Plan plan(call, split, arena);
  for_each(host, split.units, workers, [&](int64_t index, auto claim) {
    Arena own{base + shared + (size_t)index * one.used, 0};
    Worker worker(call, split, plan, own);
    for (int64_t unit; (unit = claim()) >= 0;) {
      for_each_chunk(split, unit, [&](int64_t sample, int64_t chunk) {
        worker.begin(sample);
        for_each_tile(split, unit, sample, chunk,
                      [&](PixelRange range, Place next) { worker.tile(range, next); });
        worker.end_chunk(unit, sample, chunk);
      });
      worker.end_unit(unit);
    }
    fence_streaming();
  });
  plan.finish(host, threads);
}

// The pixels of all samples.
VT_INLINE int64_t all_pixels(const Call& call) {
  return call.offsets ? call.pixels : call.batch * call.pixels;
}

// The sample whose operands are packed; operands that the batch shares are packed once.
struct Current {
  int64_t sample = -1;
  bool is(int64_t wanted, bool shared) {
    if (sample >= 0 && (shared || sample == wanted)) return true;
    sample = wanted;
    return false;
  }
};

// Larger results leave the caches before they are read again, so they are stored past them.
constexpr int64_t streamed_bytes = 12 << 20;

// `part`: channels that a product writes at once.
template <class N, bool pixels_innermost>
Storing storing_of(const TiledMap<N, pixels_innermost>& map, int64_t part, const Call& call,
                   const Split& split) {
  const int64_t bytes = all_pixels(call) * map.channels * (int64_t)sizeof(typename N::Elem);
  if (!map.in_place || bytes < streamed_bytes) return Storing::cached;
  if (map.aligned(split.tile) && map.aligned(split.chunk) &&
      (pixels_innermost ? !call.offsets : part * sizeof(typename N::Elem) % VT_BYTES == 0))
    return Storing::streamed;
  return pixels_innermost ? Storing::assembled : Storing::cached;
}

// The extra values as a map of P channels that all samples share.
VT_INLINE Map extra_values_map(const Call& call) {
  const Rows& extra = call.extra_values;
  return {extra.data, 0, call.width * extra.row, extra.row, extra.column};
}

}  // namespace
}  // namespace vt::VT_NAMESPACE
