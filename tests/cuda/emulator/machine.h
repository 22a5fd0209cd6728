// The emulator's state: the launch, the cluster that runs, and the thread that runs.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "fiber.h"

namespace emulator {

constexpr int kMaxCluster = 16, kMaxWarps = 32, kMaxBlocks = 65535;
constexpr uint32_t kMaxShared = 227 * 1024;

struct Grid {
  int x = 1, y = 1;
};

// When the data of asynchronous copies move: at the latest moment allowed, at once, or either.
enum class Copies { late, early, random };

struct Options {
  uint64_t seed = 1;
  Copies copies = Copies::random;
};

struct Counters {
  uint64_t bytes_read = 0, bytes_written = 0;   // of global memory, by plain accesses
  uint64_t bytes_copied = 0;                    // of global memory, by asynchronous copies
  uint64_t ldmatrix_reads = 0;                  // of 8 rows each
  uint64_t ldmatrix_passes = 0;                 // the same number if no rows are in the same banks
  uint64_t barriers = 0, cluster_barriers = 0;  // that a block, or a cluster, has passed
};

struct Report {
  std::string fault;  // the first one, which ended the launch; empty if there was none
  Counters counters;
};

// An access to memory: when, and by which thread. Time is the clock's, see Machine.
struct Access {
  uint32_t stamp = 0;
  uint16_t block = 0;  // of the grid
  uint8_t warp = 0;    // of the block
  uint8_t lane = 0;    // 0 to 31, or one of those below
};
// Several threads with nothing to order them: lanes of the warp, warps of the block, blocks of the cluster,
// or any. These are also the scopes of synchronization: sync_warp, sync_block, sync_cluster, and none.
constexpr uint8_t kLanes = 32, kWarps = 33, kBlocks = 34, kClusters = 35;
// A copy in flight.
constexpr uint8_t kCopy = 36;

// What is known of two bytes. Different threads that write the two count as a race.
struct Granule {
  Access write;
  Access read;  // since the write
};

struct Shadow {
  std::string name;
  std::vector<Granule> granules;
};

// Global memory that kernels may use.
struct Range {
  const char *begin = nullptr, *end = nullptr;
  bool writable = false;
  // Since the range was announced.
  uint64_t bytes_read = 0, bytes_copied = 0, bytes_written = 0;
  uint64_t bytes_covered = 0;  // written at least once
  std::vector<bool> covered;
  Shadow shadow;  // of what is writable

  uint64_t bytes() const { return static_cast<uint64_t>(end - begin); }
};

struct Copy {
  uint32_t to;
  const void* from;
  int bytes, filled;
  bool moved;
};

// Where a thread stops. All lanes of a warp must stop at the same operation.
enum class Stop : uint8_t {
  sync_warp,
  shuffle,
  ballot,
  ldmatrix,
  ldmatrix_transposed,
  stmatrix,
  mma_bf16,
  mma_fp16,
  mma_tf32,
  sync_block,
  sync_cluster,
  end
};

inline std::string name_of(Stop stop) {
  const char* const names[] = {"sync_warp",    "shuffle_xor", "ballot",   "ldmatrix", "ldmatrix_transposed",
                               "stmatrix",     "mma_bf16",    "mma_fp16", "mma_tf32", "sync_block",
                               "sync_cluster", "its end"};
  return names[static_cast<int>(stop)];
}

struct Lane {
  Fiber fiber;
  Stop stop = Stop::end;
  // Operands of the operation at which the thread stops.
  uint32_t value = 0;       // that is shuffled, voted with, or the address of a row; also the result
  uint32_t stored[4] = {};  // words of a matrix
  int mask = 0;
  uint32_t* words = nullptr;
  float* sum = nullptr;
  const uint32_t *left = nullptr, *right = nullptr;
  // Copies that have not been waited for, the oldest first, and how many of them each group has.
  std::vector<Copy> copies;
  std::vector<uint32_t> groups;
  uint32_t uncommitted = 0;
};

struct Warp {
  uint32_t synced = 0;
};

struct Block {
  std::vector<char> memory;
  Shadow shadow{"shared memory", {}};
  uint32_t synced = 0;
  uint32_t remote_read = 0;      // the last time at which another block read the memory
  int arrived = 0, running = 0;  // warps
};

// The clock ticks when threads synchronize. An access is ordered before a later one by another thread if it
// is older than the last synchronization of both: the last sync_warp or barrier of their warp, the last
// barrier of their block, or that of their cluster. Each of these takes in all threads of its scope, so that
// these few times say what vector clocks of all threads would. Shuffles, votes and products do not order
// memory.
struct Machine {
  std::deque<Range> ranges;
  Range* last_range = nullptr;

  // The launch.
  Options options;
  Grid grid;
  int cluster = 1, threads = 0, warps_per_block = 0;
  uint32_t shared_bytes = 0;
  const std::function<void()>* body = nullptr;
  Report report;
  uint64_t random = 1;
  uint32_t patience = 1;  // turns that a warp mostly has before another one runs
  uint32_t launch_start = 1;
  void* caller = nullptr;
  Fiber scheduler;

  // The cluster that runs.
  uint32_t cluster_start = 1, cluster_synced = 1;
  int first_block = 0, cluster_arrived = 0;
  std::vector<Block> blocks;
  std::vector<Warp> warps;
  std::vector<Lane> lanes;
  std::vector<int> ready;  // warps

  // The thread that runs, and the clock.
  Access here{1, 0, 0, 0};
  Block* block = nullptr;
  Warp* warp = nullptr;
  Lane* warp_lanes = nullptr;
  uint32_t turn = 0, first_lane = 0, lane_step = 1;  // lanes of a warp run in turn

  Lane& lane() { return warp_lanes[here.lane]; }
};

inline Machine machine;

inline uint32_t tick() { return ++machine.here.stamp; }

inline uint32_t draw(uint32_t below) {
  uint64_t& state = machine.random;
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return static_cast<uint32_t>((state * 0x2545F4914F6CDD1DULL) >> 33) % below;
}

// Ends the launch. The stack is left as it is: neither kernels nor the emulator keep anything there.
[[noreturn]] inline void leave() {
  void* unused;
  emulator_switch_stack(&unused, machine.caller);
  std::abort();
}

[[noreturn]] inline void fail_without_thread(const std::string& what) {
  machine.report.fault = what;
  leave();
}

[[noreturn]] inline void fail(const std::string& what) {
  const Access& here = machine.here;
  fail_without_thread(what + " [block " + std::to_string(here.block) + ", warp " + std::to_string(here.warp) +
                      ", lane " + std::to_string(here.lane) + "]");
}

// ---- what kernels call ----

inline int thread() { return machine.here.warp * 32 + machine.here.lane; }
inline int threads() { return machine.threads; }
inline int block_x() { return machine.here.block % machine.grid.x; }
inline int block_y() { return machine.here.block / machine.grid.x; }
inline int grid_x() { return machine.grid.x; }
inline int cluster_size() { return machine.cluster; }
inline int cluster_rank() { return machine.here.block - machine.first_block; }

}  // namespace emulator
