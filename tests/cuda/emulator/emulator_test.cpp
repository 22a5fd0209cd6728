// Checks the emulator: small kernels with one fault each, which it must notice in every order of threads, and
// the same kernels without the fault, which must pass. Prints what went wrong and returns 1, or returns 0.
#include "device.h"
#include "fragments.h"

#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using emulator::Copies;
using emulator::Grid;
using emulator::Options;
using emulator::Report;
using namespace vt;

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("%s\n", what.c_str());
}

struct Shape {
  Grid grid{1, 1};
  int cluster = 1, threads = 32;
};
constexpr Shape kWarp{}, kTwoWarps{{1, 1}, 1, 64}, kTwoBlocks{{2, 1}, 1, 32}, kCluster{{2, 1}, 2, 64};
constexpr uint32_t kSharedBytes = 4096;

// Runs body(fixed) in many orders: without faults if `fixed`, otherwise with one that says `text`.
template <class Body>
void check(const std::string& name, const Shape& shape, const std::string& text, const Body& body) {
  for (const bool fixed : {true, false}) {
    for (const Copies copies : {Copies::late, Copies::early, Copies::random}) {
      for (uint64_t seed = 1; seed <= 12; ++seed) {
        const Report report = emulator::launch(shape.grid, shape.cluster, shape.threads, kSharedBytes, {seed, copies},
                                               [&] { body(fixed); });
        const bool good = fixed ? report.fault.empty() : report.fault.find(text) != std::string::npos;
        if (good) continue;
        expect(false, name + (fixed ? ", fixed" : "") + ", seed " + std::to_string(seed) + ": " +
                          (report.fault.empty() ? "nothing noticed" : report.fault));
        return;
      }
    }
  }
}

// Keeps what was read alive.
volatile float sink;

void set_own(float value) { set_shared(4 * thread(), value); }
float get(int index) { return shared<float>(4 * index); }

alignas(16) float input[256];
alignas(16) float output[256];
emulator::Range *input_range, *output_range;

void announce() {
  emulator::forget();
  input_range = &emulator::announce("input", input, sizeof(input), false);
  output_range = &emulator::announce("output", output, sizeof(output), true);
}

// ---- races in shared memory ----

void check_races() {
  check("read after a write of another warp", kTwoWarps, "with no sync_block since", [](bool fixed) {
    set_own(1.f);
    if (fixed) sync_block();
    sink = get(thread() ^ 32);
    sync_block();
  });
  check("write after a read of another warp", kTwoWarps, "with no sync_block since", [](bool fixed) {
    set_own(1.f);
    sync_block();
    sink = get(thread() ^ 32);
    if (fixed) sync_block();
    set_own(2.f);
  });
  check("sync_warp between warps", kTwoWarps, "with no sync_block since", [](bool fixed) {
    set_own(1.f);
    if (fixed) {
      sync_block();
    } else {
      sync_warp();
    }
    sink = get(thread() ^ 32);
  });
  check("two warps write", kTwoWarps, "with no sync_block since", [](bool fixed) {
    if (thread() == 0) set_shared(0, 1.f);
    if (fixed) sync_block();
    if (thread() == 40) set_shared(0, 1.f);
  });
  check("write after reads of two warps", kTwoWarps, "several warps", [](bool fixed) {
    set_own(1.f);
    sync_block();
    if (thread() % 32 == 0) sink = get(0);
    if (fixed) sync_block();
    sync_warp();
    if (thread() == 0) set_own(2.f);
    // The second warp reads before the first writes, whatever the order: it is the first's only chance.
    if (!fixed && thread() == 0) sink = 0.f;
  });
  check("read after a write of another lane", kWarp, "with no sync_warp since", [](bool fixed) {
    set_own(1.f);
    if (fixed) sync_warp();
    sink = get(thread() ^ 1);
    sync_warp();
  });
  check("write after a read of another lane", kWarp, "with no sync_warp since", [](bool fixed) {
    set_own(1.f);
    sync_warp();
    sink = get(thread() ^ 1);
    if (fixed) sync_warp();
    set_own(2.f);
  });
  check("write after reads of two lanes", kWarp, "several lanes", [](bool fixed) {
    set_own(1.f);
    sync_warp();
    sink = get(0);
    if (fixed) sync_warp();
    ballot(true);  // all have read
    if (thread() == 0) set_own(2.f);
  });
  check("two lanes write", kWarp, "with no sync_warp since", [](bool fixed) {
    if (thread() == 3) set_shared(0, 1.f);
    if (fixed) sync_warp();
    if (thread() == 4) set_shared(0, 1.f);
  });
  check("a shuffle and a vote order no memory", kWarp, "with no sync_warp since", [](bool fixed) {
    set_own(1.f);
    if (fixed) sync_warp();
    sink = shuffle_xor(1.f, 1);
    ballot(true);
    sink = get(thread() ^ 1);
  });
  check("ldmatrix of what other lanes wrote", kWarp, "with no sync_warp since", [](bool fixed) {
    set_shared(16 * thread(), Four{1, 2, 3, 4});
    if (fixed) sync_warp();
    uint32_t r[4];
    ldmatrix(r, 16 * (31 - thread()));
  });
  check("write after ldmatrix", kWarp, "with no sync_warp since", [](bool fixed) {
    set_shared(16 * thread(), Four{1, 2, 3, 4});
    sync_warp();
    uint32_t r[4];
    ldmatrix(r, 16 * (31 - thread()));
    if (fixed) sync_warp();
    set_shared(16 * thread(), Four{1, 2, 3, 4});
  });
  check("halves of a word belong to different lanes", kWarp, "with no sync_warp since", [](bool fixed) {
    set_shared<uint16_t>(2 * thread(), 1);
    if (fixed) sync_warp();
    if (fixed || thread() % 2 == 0) sink = shared<uint16_t>(2 * thread()) + shared<uint32_t>(2 * (thread() & ~1));
  });
}

// ---- copies ----

void check_copies() {
  announce();
  const auto copy = [] { copy_async<4>(4 * thread(), input + thread(), 4); };
  check("read before the wait", kWarp, "under a copy", [&](bool fixed) {
    copy();
    copy_commit();
    if (fixed) copy_wait<0>();
    sink = get(thread());
    copy_wait<0>();
  });
  check("write under a copy", kWarp, "under a copy", [&](bool fixed) {
    copy();
    copy_commit();
    if (fixed) copy_wait<0>();
    set_own(1.f);
    copy_wait<0>();
  });
  check("copy of another lane without sync_warp", kWarp, "race: reads", [&](bool fixed) {
    copy();
    copy_commit();
    copy_wait<0>();
    if (fixed) sync_warp();
    sink = get(thread() ^ 1);
    sync_warp();
  });
  check("sync_warp before the wait", kWarp, "race: reads", [&](bool fixed) {
    copy();
    copy_commit();
    if (!fixed) sync_warp();
    copy_wait<0>();
    if (fixed) sync_warp();
    sink = get(thread() ^ 1);
    sync_warp();
  });
  check("only one lane waits", kWarp, "under a copy", [&](bool fixed) {
    copy();
    copy_commit();
    if (fixed || thread() == 0) copy_wait<0>();
    sync_warp();
    sink = get(thread() ^ 1);
    sync_warp();
    copy_wait<0>();
  });
  check("copy of another warp without a barrier", kTwoWarps, "race: reads", [&](bool fixed) {
    copy();
    copy_commit();
    copy_wait<0>();
    if (fixed) {
      sync_block();
    } else {
      sync_warp();
    }
    sink = get(thread() ^ 32);
    sync_block();
  });
  check("copy over what another lane reads", kWarp, "race: writes", [&](bool fixed) {
    set_own(1.f);
    sync_warp();
    sink = get(thread() ^ 1);
    if (fixed) sync_warp();
    copy();
    copy_commit();
    copy_wait<0>();
  });
  check("wait for too few groups", kWarp, "under a copy", [&](bool fixed) {
    copy();
    copy_commit();
    copy_async<4>(1024 + 4 * thread(), input + thread(), 4);
    copy_commit();
    copy_wait<1>();
    sink = get(thread());
    if (fixed) copy_wait<0>();
    sink = get(256 + thread());
    copy_wait<0>();
  });
  check("a copy that is never committed", kWarp, "never committed", [&](bool fixed) {
    copy();
    if (fixed) copy_commit();
    copy_wait<0>();
  });
  check("a copy that is never waited for", kWarp, "never waited for", [&](bool fixed) {
    copy();
    copy_commit();
    if (fixed) copy_wait<0>();
  });
  check("copy of what another lane wrote", kWarp, "race: reads", [&](bool fixed) {
    set_global(output + thread(), 1.f);
    if (fixed) sync_warp();
    copy_async<4>(4 * thread(), output + (thread() ^ 1), 4);
    copy_commit();
    copy_wait<0>();
  });

  for (int i = 0; i < 256; ++i) input[i] = static_cast<float>(i);
  for (const Copies copies : {Copies::late, Copies::early, Copies::random}) {
    const Report report = emulator::launch({1, 1}, 1, 32, kSharedBytes, {1, copies}, [&] {
      copy_async<16>(16 * thread(), input + 4 * thread(), thread() % 2 == 0 ? 16 : 4);
      copy_commit();
      copy_wait<0>();
      for (int i = 0; i < 4; ++i) set_global(output + 4 * thread() + i, get(4 * thread() + i));
    });
    expect(report.fault.empty(), report.fault);
    expect(report.counters.bytes_copied == 16 * 16 + 16 * 4, "bytes copied");
    for (int i = 0; i < 128; ++i) {
      const bool filled = i / 4 % 2 == 0 || i % 4 == 0;
      expect(output[i] == (filled ? static_cast<float>(i) : 0.f), "a copy fills the rest with zeros");
    }
  }
}

// ---- bounds and alignment ----

void check_bounds() {
  announce();
  const auto index = [](bool fixed, int wrong) { return fixed ? 0 : wrong; };
  check("shared memory, read past the end", kWarp, "out of bounds", [&](bool fixed) {
    sink = shared<float>(index(fixed, kSharedBytes));
  });
  check("shared memory, write past the end", kTwoWarps, "out of bounds", [&](bool fixed) {
    if (thread() == 0) set_shared(index(fixed, 4294967280u), Four{});
  });
  check("shared memory, ldmatrix past the end", kWarp, "out of bounds", [&](bool fixed) {
    uint32_t r[4];
    ldmatrix(r, kSharedBytes - 16 * (thread() + (fixed ? 1 : 0)));
  });
  check("shared memory, read not aligned", kWarp, "not aligned to 8", [&](bool fixed) {
    sink = static_cast<float>(shared<Two>(index(fixed, 4)).x);
  });
  check("shared memory, write not aligned", kWarp, "not aligned to 16", [&](bool fixed) {
    if (thread() == 0) set_shared(index(fixed, 8), Four{});
  });
  check("shared memory, ldmatrix not aligned", kWarp, "not aligned to 16", [&](bool fixed) {
    uint32_t r[4];
    ldmatrix(r, 16 * thread() + index(fixed, 8));
  });
  check("global memory, read past the end", kWarp, "4 bytes past the end of `input`", [&](bool fixed) {
    sink = global(input + index(fixed, 256));
  });
  check("global memory, read before the start", kWarp, "8 bytes before the start of `input`", [&](bool fixed) {
    sink = global(input + index(fixed, -2));
  });
  check("global memory, write past the end", kWarp, "out of bounds", [&](bool fixed) {
    if (thread() == 0) set_global(output + index(fixed, 256), 1.f);
  });
  check("global memory, write to what is read-only", kWarp, "`input`, which is read-only", [&](bool fixed) {
    if (thread() == 0) set_global(fixed ? output : input, 1.f);
  });
  check("global memory, read not aligned", kWarp, "not aligned to 16", [&](bool fixed) {
    sink = static_cast<float>(global(reinterpret_cast<const Four*>(input + index(fixed, 2))).x);
  });
  check("global memory, write not aligned", kWarp, "not aligned to 8", [&](bool fixed) {
    if (thread() == 0) set_global(reinterpret_cast<Two*>(output + index(fixed, 1)), Two{});
  });
  const auto copy = [](uint32_t to, const float* from, int filled) {
    if (thread() == 0) copy_async<16>(to, from, filled);
    copy_commit();
    copy_wait<0>();
  };
  check("copy past the end", kWarp, "copies 8 bytes out of bounds, 4 bytes past the end of `short`", [&](bool fixed) {
    copy(0, input, fixed ? 4 : 8);
  });
  check("copy to past the end", kWarp, "out of bounds", [&](bool fixed) { copy(index(fixed, kSharedBytes), output, 16); });
  check("copy from what is not aligned", kWarp, "not aligned to 16", [&](bool fixed) {
    copy(0, output + index(fixed, 2), fixed ? 16 : 0);
  });
  check("copy to what is not aligned", kWarp, "not aligned to 16", [&](bool fixed) { copy(index(fixed, 8), output, 16); });
}

}  // namespace
