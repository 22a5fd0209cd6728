// Runs a kernel: clusters one after another in a random order, the warps of a cluster by turns.
#pragma once

#include <numeric>

#include "warp.h"

namespace emulator {

[[noreturn]] inline void run_thread() {
  (*machine.body)();
  const Lane& lane = machine.lane();
  if (lane.uncommitted != 0) fail("a thread ends with copies that it never committed");
  if (!lane.copies.empty()) fail("a thread ends with copies that it never waited for");
  stop(Stop::end);
  std::abort();
}

inline void start_cluster(int first_block) {
  Machine& m = machine;
  m.first_block = first_block;
  m.cluster_start = m.cluster_synced = tick();
  m.cluster_arrived = 0;
  for (int rank = 0; rank < m.cluster; ++rank) {
    Block& block = m.blocks[rank];
    std::memset(block.memory.data(), 0xff, m.shared_bytes);  // NaN
    block.synced = m.cluster_start;
    block.remote_read = 0;
    block.arrived = 0;
    block.running = m.warps_per_block;
  }
  for (int i = 0; i < m.cluster * m.warps_per_block; ++i) m.warps[i].synced = m.cluster_start;
  for (int i = 0; i < m.cluster * m.threads; ++i) {
    Lane& lane = m.lanes[i];
    lane.copies.clear();
    lane.groups.clear();
    lane.uncommitted = 0;
    lane.fiber.start(run_thread, static_cast<size_t>(i));
  }
  m.ready.resize(m.cluster * m.warps_per_block);
  std::iota(m.ready.begin(), m.ready.end(), 0);
}

// Makes the lanes of a warp run to their next stops.
inline void run_warp(int index) {
  Machine& m = machine;
  const int rank = index / m.warps_per_block;
  m.here.block = static_cast<uint16_t>(m.first_block + rank);
  m.here.warp = static_cast<uint8_t>(index % m.warps_per_block);
  m.block = &m.blocks[rank];
  m.warp = &m.warps[index];
  m.warp_lanes = &m.lanes[32 * index];
  m.turn = 0;
  m.first_lane = draw(32);
  m.lane_step = 1 + 2 * draw(16);
  m.here.lane = static_cast<uint8_t>(m.first_lane);
  emulator_switch_stack(&m.scheduler.stack_pointer, m.lane().fiber.stack_pointer);
}

// Ends a barrier of the warps [first, first + count).
inline void release(int first, int count) {
  for (int i = first; i < first + count; ++i) {
    machine.warps[i].synced = machine.here.stamp;
    machine.ready.push_back(i);
  }
}

// Does what the warp that just ran stopped for; false if it has to wait, or has ended.
inline bool finish_stop() {
  Machine& m = machine;
  Lane* lanes = m.warp_lanes;
  const Stop at = lanes[0].stop;
  for (int i = 1; i < 32; ++i) {
    if (lanes[i].stop == at) continue;
    m.here.lane = static_cast<uint8_t>(i);
    fail(std::string("not all lanes reach an operation of the warp: lane 0 is at ") + name_of(at) +
         ", lane " + std::to_string(i) + " at " + name_of(lanes[i].stop));
  }
  switch (at) {
    case Stop::sync_warp:
      m.warp->synced = tick();
      return true;
    case Stop::shuffle:
      do_shuffle(lanes);
      return true;
    case Stop::ballot:
      do_ballot(lanes);
      return true;
    case Stop::ldmatrix:
    case Stop::ldmatrix_transposed:
      do_ldmatrix(lanes, at == Stop::ldmatrix_transposed);
      return true;
    case Stop::stmatrix:
      do_stmatrix(lanes);
      return true;
    case Stop::mma_bf16:
      do_mma_16_bits<float_of_bf16>(lanes);
      return true;
    case Stop::mma_fp16:
      do_mma_16_bits<float_of_fp16>(lanes);
      return true;
    case Stop::mma_tf32:
      do_mma_tf32(lanes);
      return true;
    case Stop::sync_block:
      ++m.block->arrived;
      break;
    case Stop::sync_cluster:
      ++m.cluster_arrived;
      break;
    case Stop::end:
      --m.block->running;
      // A cluster's barrier must keep a block alive until the others have read its memory.
      if (m.block->running == 0 && m.block->remote_read >= m.cluster_synced) {
        fail("a block ends while others may still read its shared memory: no sync_cluster since they did");
      }
      break;
  }
  return false;
}

// Barriers that all warps have reached. Warps that have ended do not count as having reached one.
inline void release_barriers() {
  Machine& m = machine;
  if (m.block->arrived == m.warps_per_block) {
    m.block->arrived = 0;
    m.block->synced = tick();
    ++m.report.counters.barriers;
    release(static_cast<int>(m.block - m.blocks.data()) * m.warps_per_block, m.warps_per_block);
  }
  if (m.cluster_arrived == m.cluster * m.warps_per_block) {
    m.cluster_arrived = 0;
    m.cluster_synced = tick();
    for (int rank = 0; rank < m.cluster; ++rank) m.blocks[rank].synced = m.cluster_synced;
    ++m.report.counters.cluster_barriers;
    release(0, m.cluster * m.warps_per_block);
  }
}

[[noreturn]] inline void fail_deadlock() {
  Machine& m = machine;
  std::string text = "deadlock:";
  for (int i = 0; i < m.cluster * m.warps_per_block; ++i) {
    text += (i == 0 ? " block " : ", block ") + std::to_string(m.first_block + i / m.warps_per_block) +
            " warp " + std::to_string(i % m.warps_per_block) + " is at " + name_of(m.lanes[32 * i].stop);
  }
  fail_without_thread(text);
}

inline void run_cluster(int first_block) {
  Machine& m = machine;
  start_cluster(first_block);
  size_t chosen = 0;
  bool goes_on = false;
  while (!m.ready.empty()) {
    // A warp mostly goes on, so that it gets far ahead of the others; now and then another one has its turn.
    if (!goes_on || draw(m.patience) == 0) chosen = draw(static_cast<uint32_t>(m.ready.size()));
    run_warp(m.ready[chosen]);
    goes_on = finish_stop();
    if (goes_on) continue;
    m.ready[chosen] = m.ready.back();
    m.ready.pop_back();
    release_barriers();
  }
  for (int rank = 0; rank < m.cluster; ++rank) {
    if (m.blocks[rank].running != 0) fail_deadlock();
  }
}

[[noreturn]] inline void run_grid() {
  Machine& m = machine;
  const uint32_t clusters = static_cast<uint32_t>(m.grid.x * m.grid.y / m.cluster);
  // Starts anywhere and takes steps without a common divisor, so that every cluster has its turn.
  const uint32_t first = draw(clusters);
  uint32_t step = 1 + draw(clusters);
  while (std::gcd(step, clusters) != 1) ++step;
  for (uint32_t i = 0; i < clusters; ++i) {
    run_cluster(static_cast<int>((first + static_cast<uint64_t>(i) * step) % clusters) * m.cluster);
  }
  leave();
}

// Memory of the emulator is kept from launch to launch, and not cleared: stamps say what is out of date.
inline void reserve() {
  Machine& m = machine;
  const auto grow = [](auto& items, int count) {
    if (items.size() < static_cast<size_t>(count)) items.resize(count);
  };
  grow(m.blocks, m.cluster);
  grow(m.warps, m.cluster * m.warps_per_block);
  grow(m.lanes, m.cluster * m.threads);
  for (int rank = 0; rank < m.cluster; ++rank) {
    grow(m.blocks[rank].memory, static_cast<int>(m.shared_bytes));
    grow(m.blocks[rank].shadow.granules, static_cast<int>(m.shared_bytes / 2 + 1));
  }
  if (m.here.stamp < 1u << 31) return;
  m.here.stamp = 1;
  const auto clear = [](Shadow& shadow) {
    std::fill(shadow.granules.begin(), shadow.granules.end(), Granule{});
  };
  for (Block& block : m.blocks) clear(block.shadow);
  for (Range& range : m.ranges) clear(range.shadow);
}

// Blocks of the same cluster are neighbours in x and run at the same time. The same seed gives the same run.
inline Report launch(Grid grid, int cluster, int threads, uint32_t shared_bytes, const Options& options,
                     const std::function<void()>& body) {
  Machine& m = machine;
  if (grid.x < 1 || grid.y < 1 || static_cast<int64_t>(grid.x) * grid.y > kMaxBlocks) {
    return {"the grid must have 1 to " + std::to_string(kMaxBlocks) + " blocks", {}};
  }
  if (cluster < 1 || cluster > kMaxCluster || grid.x % cluster != 0) {
    return {"a cluster must have 1 to 16 blocks and divide the grid's x", {}};
  }
  if (threads < 32 || threads % 32 != 0 || threads > 32 * kMaxWarps) {
    return {"a block must have 32 to 1024 threads, in whole warps", {}};
  }
  if (shared_bytes > kMaxShared) return {"more than 227 KB of shared memory", {}};
  m.options = options;
  m.grid = grid;
  m.cluster = cluster;
  m.threads = threads;
  m.warps_per_block = threads / 32;
  m.shared_bytes = shared_bytes;
  m.body = &body;
  m.report = {};
  m.random = options.seed * 0x9E3779B97F4A7C15ULL + 1;
  for (int i = 0; i < 4; ++i) draw(1);
  m.patience = 1u << 2 * draw(4);
  reserve();
  m.launch_start = tick();
  m.scheduler.start(run_grid, 0);
  emulator_switch_stack(&m.caller, m.scheduler.stack_pointer);
  return std::move(m.report);
}

}  // namespace emulator
