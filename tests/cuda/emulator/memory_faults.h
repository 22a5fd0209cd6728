// Faults of accesses to memory and of copies.
#pragma once

#include "check.h"

namespace {

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
    if (thread() < 32) set_own(1.f);
    if (fixed) {
      sync_block();
    } else {
      sync_warp();
    }
    if (thread() >= 32) sink = get(thread() - 32);
  });
  check("two warps write", kTwoWarps, "with no sync_block since", [](bool fixed) {
    if (thread() == 0) set_shared(0, 1.f);
    if (fixed) sync_block();
    if (thread() == 40) set_shared(0, 1.f);
  });
  check("write after reads of its own warp and of another", kTwoWarps, "with no sync_block since",
        [](bool fixed) {
          set_own(1.f);
          sync_block();
          if (thread() % 32 == 0) sink = get(0);
          if (fixed) sync_block();
          if (thread() == 0) set_own(2.f);
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
  check("read after stmatrix", kWarp, "with no sync_warp since", [](bool fixed) {
    stmatrix(16 * thread(), {1, 2, 3, 4});
    if (fixed) sync_warp();
    sink = get(4 * (31 - thread()));
  });
  check("halves of a word belong to different lanes", kWarp, "with no sync_warp since", [](bool fixed) {
    set_shared<uint16_t>(2 * thread(), 1);
    if (fixed) sync_warp();
    sink = static_cast<float>(shared<uint32_t>(2 * (thread() & ~1)));
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
  check("copy of another lane without sync_warp", kWarp, "wrote with no sync_warp since", [&](bool fixed) {
    copy();
    copy_commit();
    copy_wait<0>();
    ballot(true);  // all have waited
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
  check("copy of another warp without a barrier", kTwoWarps, "race:", [&](bool fixed) {
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
    ballot(true);  // all have read
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
    ballot(true);  // all have written
    if (fixed) sync_warp();
    copy_async<4>(4 * thread(), output + (thread() ^ 1), 4);
    copy_commit();
    copy_wait<0>();
  });
}

// ---- bounds and alignment ----

void check_bounds() {
  announce();
  emulator::announce("short", short_input, 4, false);
  const auto index = [](bool fixed, int wrong) { return fixed ? 0 : wrong; };
  check("shared memory, read past the end", kWarp, "out of bounds",
        [&](bool fixed) { sink = shared<float>(index(fixed, kSharedBytes)); });
  check("shared memory, write past the end", kTwoWarps, "out of bounds", [&](bool fixed) {
    if (thread() == 0) set_shared(index(fixed, -16), Four{});
  });
  check("shared memory, ldmatrix past the end", kWarp, "out of bounds", [&](bool fixed) {
    uint32_t r[4];
    ldmatrix(r, kSharedBytes - 16 * (thread() + (fixed ? 1 : 0)));
  });
  check("shared memory, read not aligned", kWarp, "not aligned to 8",
        [&](bool fixed) { sink = static_cast<float>(shared<Two>(index(fixed, 4)).x); });
  check("shared memory, write not aligned", kWarp, "not aligned to 16", [&](bool fixed) {
    if (thread() == 0) set_shared(index(fixed, 8), Four{});
  });
  check("shared memory, ldmatrix not aligned", kWarp, "not aligned to 16", [&](bool fixed) {
    uint32_t r[4];
    ldmatrix(r, 16 * thread() + index(fixed, 8));
  });
  check("global memory, read past the end", kWarp, "4 bytes past the end of `input`",
        [&](bool fixed) { sink = global(input + index(fixed, 256)); });
  check("global memory, read before the start", kWarp, "8 bytes before the start of `input`",
        [&](bool fixed) { sink = global(input + index(fixed, -2)); });
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
  check("copy past the end", kWarp, "copies 8 bytes out of bounds, 4 bytes past the end of `short`",
        [&](bool fixed) { copy(0, short_input, fixed ? 4 : 8); });
  check("copy to past the end", kWarp, "out of bounds",
        [&](bool fixed) { copy(index(fixed, kSharedBytes), output, 16); });
  check("copy from what is not aligned", kWarp, "not aligned to 16",
        [&](bool fixed) { copy(0, output + index(fixed, 2), fixed ? 16 : 0); });
  check("copy to what is not aligned", kWarp, "not aligned to 16",
        [&](bool fixed) { copy(index(fixed, 8), output, 16); });
}

}  // namespace
