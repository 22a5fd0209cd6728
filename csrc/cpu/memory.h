// The memory of a call, its split into units, and loops over items on several threads.
#pragma once

#include "call.h"
#include "products.h"
#include "simd.h"

namespace vt::VT_NAMESPACE {
namespace {

// Hands out pieces of one block. Without a block (base == 0) it only adds up their sizes.
struct Arena {
  uintptr_t base = 0;
  size_t used = 0;

  template <class T>
  T* take(int64_t count) {
    const size_t offset = used;
    used += ((size_t)count * sizeof(T) + 63) / 64 * 64;
    return base ? (T*)(base + offset) : nullptr;
  }
};

constexpr int64_t most_units = 64;  // approximately; a limit for the chunks of a sample

// How the pixels of a batch are split into units, each for one thread: several whole samples, or a chunk of
// one. The split depends on the shape alone, so that results do not depend on the number of threads.
//
// Bags are split where the call's offsets say, and have a table of their units. Each is cut into chunks by
// its own size alone, so that its results do not depend on the other bags. A worker adds up the chunks of a
// bag itself, unless the bag is large among all: then several units share it, and its chunks get slots. So
// the number of slots is bounded. Pixels are counted through all bags.
struct Split {
  struct Unit {  // bags [first, end), or chunks [chunk, stop) of the first one where stop > 0
    int64_t first, end, chunk, stop;
  };
  int64_t batch, pixels;
  int64_t tile;     // pixels of a tile at most
  int64_t chunk;    // pixels of a chunk; all of a sample's if chunks is 1; of a bag, the fewest
  int64_t chunks;   // of a sample
  int64_t samples;  // of a unit
  int64_t units;
  int64_t slots;        // chunks of the samples that several units share
  int64_t own_chunks;   // of a bag that a worker adds up itself, at most; 1 where it is not cut
  int64_t workers = 1;  // that share the units; used to guess which unit a worker takes next
  int64_t step;         // chunks are a multiple of it
  const void* offsets;
  int64_t stride;
  bool wide;
  Unit* table = nullptr;          // of bags: their units
  int64_t* first_slot = nullptr;  // of each bag, and the number of all slots; a bag of one worker has none

  // most: pixels of a tile at most; tiles are multiples of `step` of nearly equal size. least: pixels that
  // make a unit's overhead negligible.
  Split(const Call& call, int64_t most, int64_t least, int64_t step)
      : batch(call.batch),
        pixels(call.pixels),
        step(step),
        offsets(call.offsets),
        stride(call.offsets_stride),
        wide(call.offsets_are_wide) {
    most = rounded_up(smaller(most, most_pixels), 32);
    if (offsets) {
      tile = most, chunk = larger(most, least);
      chunks = samples = own_chunks = 1, units = slots = 0;
      for_each_bag_unit([&](Unit unit) {
        units++;
        slots += unit.stop > 0 ? unit.stop - unit.chunk : 0;
        for (int64_t bag = unit.first; unit.stop == 0 && bag < unit.end; bag++)
          own_chunks = larger(own_chunks, chunks_of(bag));
      });
      return;
    }
    const int64_t wanted =
        smaller<int64_t>(most_units, larger<int64_t>(8, batch * pixels / larger<int64_t>(least, 1)));
    chunks = batch >= wanted ? 1 : smaller(divided_up(wanted, batch), divided_up(pixels, most));
    chunk = chunks == 1 ? pixels : rounded_up(divided_up(pixels, chunks), step);
    chunks = divided_up(pixels, chunk);
    tile = rounded_up(divided_up(chunk, divided_up(chunk, most)), step);
    samples = chunks == 1 ? divided_up(batch, smaller(wanted, batch)) : 1;
    units = chunks == 1 ? divided_up(batch, samples) : batch * chunks;
    slots = chunks == 1 ? 0 : batch * chunks, own_chunks = 1;
  }

  int64_t bound(int64_t bag) const {
    const int64_t at = bag * stride;
    return wide ? ((const int64_t*)offsets)[at] : ((const int32_t*)offsets)[at];
  }
  int64_t begin_of(int64_t sample) const { return offsets ? bound(sample) : 0; }
  int64_t end_of(int64_t sample) const { return offsets ? bound(sample + 1) : pixels; }
  // The place of a pixel among those of all samples.
  int64_t flat(int64_t sample, int64_t pixel) const { return offsets ? pixel : sample * pixels + pixel; }
  // Pixels of each chunk of a bag of `count` but the last.
  int64_t cut(int64_t count) const {
    const int64_t parts = smaller(most_units, count / chunk);
    return parts > 1 ? rounded_up(divided_up(count, parts), step) : larger<int64_t>(count, 1);
  }
  int64_t size_of(int64_t bag) const { return bound(bag + 1) - bound(bag); }
  int64_t chunk_of(int64_t sample) const { return offsets ? cut(size_of(sample)) : chunk; }
  int64_t chunks_of(int64_t sample) const {
    return offsets ? larger<int64_t>(divided_up(size_of(sample), chunk_of(sample)), 1) : chunks;
  }
  // The slots of a sample: one for each chunk, or none where one worker computes all of it.
  int64_t slots_of(int64_t sample) const {
    return offsets ? first_slot[sample + 1] - first_slot[sample] : chunks == 1 ? 0 : chunks;
  }
  int64_t slot(int64_t sample, int64_t chunk) const {
    return (offsets ? first_slot[sample] : sample * chunks) + chunk;
  }

  // Bags go together, as each costs about as much as some pixels. Those that are large among all are shared
  // by several units: they are few.
  template <class Body>
  void for_each_bag_unit(Body body) const {
    constexpr int64_t cost = 32;
    const int64_t enough = larger(chunk, (pixels + cost * batch) / most_units);
    const auto large = [&](int64_t bag) { return size_of(bag) > 2 * enough && chunks_of(bag) > 1; };
    for (int64_t bag = 0; bag < batch;) {
      if (large(bag)) {
        const int64_t parts = chunks_of(bag), of_unit = larger<int64_t>(enough / chunk_of(bag), 1);
        for (int64_t j = 0; j < parts; j += of_unit) body(Unit{bag, bag + 1, j, smaller(j + of_unit, parts)});
        bag++;
        continue;
      }
      const int64_t first = bag;
      for (int64_t together = 0; bag < batch; bag++) {
        together += size_of(bag) + cost;
        if (bag > first && (together > enough || large(bag))) break;
      }
      body(Unit{first, bag, 0, 0});
    }
  }
  void make_tables(Arena& arena) {
    if (!offsets) return;
    table = arena.take<Unit>(units), first_slot = arena.take<int64_t>(batch + 1);
    if (!first_slot) return;
    int64_t unit = 0, slot = 0;
    for_each_bag_unit([&](Unit each) {
      table[unit++] = each;
      for (int64_t bag = each.first; each.chunk == 0 && bag < each.end; bag++) first_slot[bag] = slot;
      slot += each.stop - each.chunk;
    });
    first_slot[batch] = slot;
  }
};

// Calls body(worker, claim) on up to `threads` threads; claim() returns the next index of [0, count), or -1.
template <class Body>
void for_each(const Host& host, int64_t count, int64_t threads, const Body& body) {
  struct Claims {
    const Body* body;
    int64_t count, next;
  } claims = {&body, count, 0};
  const auto work = [](void* argument, int64_t worker) {
    Claims& claims = *(Claims*)argument;
    (*claims.body)(worker, [&claims] {
      const int64_t index = __atomic_fetch_add(&claims.next, 1, __ATOMIC_RELAXED);
      return index < claims.count ? index : (int64_t)-1;
    });
  };
  threads = smaller(threads, count);
  if (threads <= 1)
    work(&claims, 0);
  else
    host.parallel(host.self, threads, work, &claims);
}

// A call with fewer multiplications runs on one thread: waking another would take longer.
constexpr int64_t least_shared_work = 1 << 18;

// Where the gradient of a small operand is written: directly to the result if one unit computes all of it,
// otherwise to a slot for each unit or chunk; the slots are summed in order. A bag's chunks that one worker
// computes are summed as they come.
template <class Acc>
struct Sink {
  Acc* out = nullptr;
  Acc* slots = nullptr;
  const Split* split = nullptr;
  int64_t size = 0;  // numbers of one gradient
  bool shared = false, slotted = false;

  Sink() = default;
  Sink(void* out, bool shared, int64_t size, const Split& split, Arena& arena)
      : out((Acc*)out),
        split(&split),
        size(size),
        shared(shared),
        slotted(out && (shared ? split.units > 1 : split.slots > 0)) {
    if (slotted) slots = arena.take<Acc>((shared ? split.units : split.slots) * size);
  }
  // A worker's memory for a chunk of a bag whose chunks it sums up, if there are such.
  Acc* take_own(Arena& arena) const {
    return out && !shared && split->own_chunks > 1 ? arena.take<Acc>(size) : nullptr;
  }
  // Calls write(place) for a unit's sums where the operand is shared, otherwise for those of a chunk.
  template <class Write>
  void put(int64_t unit, int64_t sample, int64_t chunk, Acc* own, const Write& write) const {
    if (shared) return write(slotted ? slots + unit * size : out);
    if (split->slots_of(sample)) return write(slots + split->slot(sample, chunk) * size);
    Acc* to = out + sample * size;
    if (split->chunks_of(sample) == 1) return write(to);
    write(own);
    for (int64_t c = 0; c < size; c += lanes<Acc>) {
      const int64_t columns = smaller<int64_t>(lanes<Acc>, size - c);
      store_part(to + c, (chunk ? load_part(to + c, columns) : Vec<Acc>{}) + load_part(own + c, columns),
                 columns);
    }
  }
  void sum_up(const Split& split, const Host& host, int64_t threads) const {
    if (!slotted) return;
    const int64_t groups = shared ? 1 : split.batch;
    constexpr int64_t slice = 2048;
    const int64_t slices = divided_up(size, slice);
    for_each(host, groups * slices, threads, [&](int64_t, auto claim) {
      for (int64_t i; (i = claim()) >= 0;) {
        const int64_t group = i / slices, first = i % slices * slice, count = smaller(slice, size - first);
        const int64_t terms = shared ? split.units : split.slots_of(group);
        if (terms == 0) continue;
        const Acc* from = slots + (shared ? 0 : split.slot(group, 0)) * size + first;
        Acc* to = out + group * size + first;
        for (int64_t c = 0; c < count; c += lanes<Acc>) {
          const int64_t columns = smaller<int64_t>(lanes<Acc>, count - c);
          Vec<Acc> sum{};
          for (int64_t t = 0; t < terms; t++) sum += load_part(from + t * size + c, columns);
          store_part(to + c, sum, columns);
        }
      }
    });
  }
};

}  // namespace
}  // namespace vt::VT_NAMESPACE
