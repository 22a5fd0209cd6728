// Faults of warps, blocks and clusters.
#pragma once

#include "check.h"

namespace {

// ---- operations and barriers that not all threads reach ----

void check_divergence() {
  const std::string divergent = "not all lanes reach an operation of the warp";
  check("sync_warp of half of a warp", kWarp, divergent, [](bool fixed) {
    if (fixed || thread() < 16) sync_warp();
  });
  check("sync_block of half of a warp", kTwoWarps, divergent, [](bool fixed) {
    if (fixed || thread() < 48) sync_block();
  });
  check("a shuffle that a lane does not reach", kWarp, divergent, [](bool fixed) {
    if (!fixed && thread() == 7) return;
    sink = shuffle_xor(1.f, 1);
  });
  check("lanes at different operations", kWarp, "ballot", [](bool fixed) {
    if (fixed || thread() < 5) {
      ballot(true);
    } else {
      sink = shuffle_xor(1.f, 1);
    }
  });
  check("lanes at different products", kWarp, divergent, [](bool fixed) {
    float d[4] = {};
    const uint32_t a[4] = {}, b[2] = {};
    if (fixed || thread() != 31) {
      mma_bf16(d, a, b);
    } else {
      mma_fp16(d, a, b);
    }
  });
  check("a barrier that a warp does not reach", kTwoWarps, "deadlock", [](bool fixed) {
    sync_block();
    if (fixed || thread() < 32) sync_block();
  });
  check("warps at different barriers", kCluster, "deadlock", [](bool fixed) {
    if (fixed || cluster_rank() == 0) {
      sync_cluster();
    } else {
      sync_block();
    }
  });
  check("a cluster's barrier that a block does not reach", kCluster, "deadlock", [](bool fixed) {
    if (fixed || cluster_rank() == 0) sync_cluster();
  });
}

// ---- clusters ----

void check_clusters() {
  const auto other = [] { return 1 - cluster_rank(); };
  const auto own = [] { return 4u * thread(); };
  check("read of another block's memory without sync_cluster", kCluster, "with no sync_cluster since",
        [&](bool fixed) {
          sync_cluster();
          set_own(1.f);
          if (fixed) {
            sync_cluster();
          } else {
            sync_block();
          }
          sink = shared_of(other(), own());
          sync_cluster();
        });
  check("sync_block between blocks", kCluster, "with no sync_cluster since", [&](bool fixed) {
    sync_cluster();
    if (cluster_rank() == 0) set_own(1.f);
    if (fixed) {
      sync_cluster();
    } else {
      sync_block();
    }
    if (cluster_rank() == 1) sink = shared_of(0, own());
    sync_cluster();
  });
  check("write to what another block reads", kCluster, "with no sync_cluster since", [&](bool fixed) {
    set_own(1.f);
    sync_cluster();
    sink = shared_of(other(), own());
    if (fixed) {
      sync_cluster();
    } else {
      sync_block();
    }
    set_own(2.f);
    sync_cluster();
  });
  check("write to what both blocks read", kCluster, "with no sync_cluster since", [&](bool fixed) {
    set_own(1.f);
    sync_cluster();
    sink = get(thread());
    sink = shared_of(other(), own());
    if (fixed) sync_cluster();
    sync_block();
    set_own(2.f);
    sync_cluster();
  });
  check("read before the other block may run", kCluster, "it may not run yet", [&](bool fixed) {
    if (fixed) sync_cluster();
    sink = shared_of(other(), own());
    sync_cluster();
  });
  check("read of a block that has ended, or ends", kCluster, "", [&](bool fixed) {
    set_own(1.f);
    sync_cluster();
    if (cluster_rank() == 0) sink = shared_of(1, own());
    if (fixed) sync_cluster();
  });
  check("read past the end of another block's memory", kCluster, "out of bounds", [&](bool fixed) {
    sync_cluster();
    sink = shared_of(other(), fixed ? 0 : kSharedBytes);
    sync_cluster();
  });
  check("read of a block that does not exist", kCluster, "no block of rank 2", [&](bool fixed) {
    sync_cluster();
    sink = shared_of(fixed ? 1 : 2, 0);
    sync_cluster();
  });
  check("without a cluster its barrier orders nothing", kTwoWarps, "with no sync_block since",
        [&](bool fixed) {
          expect(cluster_size() == 1 && cluster_rank() == 0, "a block without a cluster");
          set_own(1.f);
          sync_cluster();
          if (fixed) sync_block();
          sink = shared_of(0, own() ^ 128);
          sync_block();
        });
}

// ---- races in global memory ----

void check_blocks() {
  announce();
  check("two blocks write", kTwoBlocks, "in the same launch", [](bool fixed) {
    if (thread() == 0) set_global(output + (fixed ? block_x() : 0), 1.f);
  });
  check("two blocks of different rows write", {{1, 2}, 1, 32}, "in the same launch", [](bool fixed) {
    if (thread() == 0) set_global(output + (fixed ? block_y() : 0), 1.f);
  });
  check("a block reads what another writes", kTwoBlocks, "in the same launch", [](bool fixed) {
    if (thread() != 0) return;
    set_global(output + block_x(), 1.f);
    sink = global(output + (fixed ? block_x() : 0));
  });
  check("a block writes what others read", {{3, 1}, 1, 32}, "in the same launch", [](bool fixed) {
    if (thread() != 0) return;
    if (block_x() < 2) sink = global(output);
    if (block_x() == 2) set_global(output + (fixed ? 1 : 0), 1.f);
  });
  check("blocks of a cluster write", kCluster, "with no sync_cluster since", [](bool fixed) {
    if (thread() == 0 && cluster_rank() == 0) set_global(output, 1.f);
    if (fixed) sync_cluster();
    if (thread() == 0 && cluster_rank() == 1) set_global(output, 1.f);
  });
  check("a warp reads what another wrote", kTwoWarps, "with no sync_block since", [](bool fixed) {
    set_global(output + thread(), 1.f);
    if (fixed) sync_block();
    sink = global(output + (thread() ^ 32));
  });
  check("a lane reads what another wrote", kWarp, "with no sync_warp since", [](bool fixed) {
    set_global(output + thread(), 1.f);
    if (fixed) sync_warp();
    sink = global(output + (thread() ^ 1));
  });
}

}  // namespace
