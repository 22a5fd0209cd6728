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
struct Split {
  int64_t batch, pixels;
  int64_t tile;     // pixels of a tile
  int64_t chunk;    // pixels of a chunk; all of a sample's if chunks is 1
  int64_t chunks;   // of a sample
  int64_t samples;  // of a unit
  int64_t units;
  int64_t workers = 1;  // that share the units; used to guess which unit a worker takes next

  // most: pixels of a tile at most; tiles are multiples of `step` of nearly equal size. least: pixels that
  // make a unit's overhead negligible.
  Split(int64_t batch, int64_t pixels, int64_t most, int64_t least, int64_t step)
      : batch(batch), pixels(pixels) {
    const int64_t wanted =
        smaller<int64_t>(most_units, larger<int64_t>(8, batch * pixels / larger<int64_t>(least, 1)));
    most = rounded_up(smaller(most, most_pixels), 32);
    chunks = batch >= wanted ? 1 : smaller(divided_up(wanted, batch), divided_up(pixels, most));
    chunk = chunks == 1 ? pixels : rounded_up(divided_up(pixels, chunks), step);
    chunks = divided_up(pixels, chunk);
    tile = rounded_up(divided_up(chunk, divided_up(chunk, most)), step);
    samples = chunks == 1 ? divided_up(batch, smaller(wanted, batch)) : 1;
    units = chunks == 1 ? divided_up(batch, samples) : batch * chunks;
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
// otherwise to a slot for each unit; the slots are summed in order.
template <class Acc>
struct Sink {
  Acc* out = nullptr;
  Acc* slots = nullptr;
  int64_t size = 0;  // numbers of one gradient
  bool shared = false, slotted = false;

  Sink() = default;
  Sink(void* out, bool shared, int64_t size, const Split& split, Arena& arena)
      : out((Acc*)out),
        size(size),
        shared(shared),
        slotted(out && (shared ? split.units : split.chunks) > 1) {
    if (slotted) slots = arena.take<Acc>(split.units * size);
  }
  // The result or the slot of a unit, and of a sample where the operand is not shared.
  Acc* place(int64_t unit, int64_t sample) const {
    return slotted ? slots + unit * size : shared ? out : out + sample * size;
  }
  void sum_up(const Split& split, const Host& host, int64_t threads) const {
    if (!slotted) return;
    const int64_t groups = shared ? 1 : split.batch, terms = shared ? split.units : split.chunks;
    constexpr int64_t slice = 2048;
    const int64_t slices = divided_up(size, slice);
    for_each(host, groups * slices, threads, [&](int64_t, auto claim) {
      for (int64_t i; (i = claim()) >= 0;) {
        const int64_t group = i / slices, first = i % slices * slice, count = smaller(slice, size - first);
        const Acc* from = slots + group * terms * size + first;
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
