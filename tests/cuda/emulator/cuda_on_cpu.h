// Runs CUDA kernels, compiled by a C++ compiler, on a CPU, as unkindly as CUDA allows.
//
// Kernels use csrc/cuda/device.h, which calls this. Threads are fibers. Warps run in a random order, and the
// lanes of a warp run in a random order from one operation of the whole warp to the next. Shared memory
// starts as NaN, and copies move their data at any time that CUDA allows. Every access is checked for its
// bounds, its alignment and for races with all accesses that no synchronization orders before it, by lanes of
// the same warp too. The first fault ends the launch.
//
//   emulator::forget();
//   emulator::Range& result = emulator::announce("result", data, bytes, /*writable=*/true);
//   emulator::Report report = emulator::launch({grid_x, grid_y}, cluster, threads, shared_bytes, {seed},
//   body); if (!report.fault.empty()) ...
#pragma once

#include "launch.h"
