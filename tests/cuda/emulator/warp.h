// Operations of a whole warp, and barriers. A thread leaves its operands in its Lane and stops; when all
// lanes have stopped, the scheduler does the operation for all of them.
#pragma once

#include <algorithm>

#include "arithmetic.h"
#include "memory.h"

namespace emulator {

enum class Element { bf16, fp16, tf32 };

// ---- what kernels call ----

// Runs the next lane of the warp, or the scheduler after the last one.
inline void stop(Stop stop) {
  Machine& m = machine;
  Lane& lane = m.lane();
  lane.stop = stop;
  if (++m.turn == 32) {
    emulator_switch_stack(&lane.fiber.stack_pointer, m.scheduler.stack_pointer);
  } else {
    m.here.lane = static_cast<uint8_t>((m.first_lane + m.turn * m.lane_step) % 32);
    emulator_switch_stack(&lane.fiber.stack_pointer, m.lane().fiber.stack_pointer);
  }
}

inline void sync_warp() { stop(Stop::sync_warp); }
inline void sync_block() { stop(Stop::sync_block); }

// Without a cluster nothing happens, as on GPUs that have none.
inline void sync_cluster() {
  if (machine.cluster > 1) stop(Stop::sync_cluster);
}

inline float shuffle_xor(float value, int mask) {
  Lane& lane = machine.lane();
  if (mask < 0 || mask > 31) fail("shuffle_xor with mask " + std::to_string(mask));
  lane.value = as_bits(value);
  lane.mask = mask;
  stop(Stop::shuffle);
  return as_float(lane.value);
}

inline uint32_t ballot(bool value) {
  Lane& lane = machine.lane();
  lane.value = value;
  stop(Stop::ballot);
  return lane.value;
}

inline void ldmatrix(uint32_t (&words)[4], uint32_t at, bool transposed) {
  Lane& lane = machine.lane();
  lane.words = words;
  lane.value = at;
  stop(transposed ? Stop::ldmatrix_transposed : Stop::ldmatrix);
}

inline void stmatrix(uint32_t at, const uint32_t (&words)[4]) {
  Lane& lane = machine.lane();
  std::copy_n(words, 4, lane.stored);
  lane.value = at;
  stop(Stop::stmatrix);
}

inline void mma(Element element, float (&sum)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  Lane& lane = machine.lane();
  lane.sum = sum;
  lane.left = left;
  lane.right = right;
  stop(element == Element::bf16   ? Stop::mma_bf16
       : element == Element::fp16 ? Stop::mma_fp16
                                  : Stop::mma_tf32);
}

// ---- what the scheduler does when all lanes have stopped ----

inline void do_shuffle(Lane* lanes) {
  uint32_t values[32];
  for (int i = 0; i < 32; ++i) values[i] = lanes[i].value;
  for (int i = 0; i < 32; ++i) lanes[i].value = values[i ^ lanes[i].mask];
}

inline void do_ballot(Lane* lanes) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= lanes[i].value << i;
  for (int i = 0; i < 32; ++i) lanes[i].value = bits;
}

// Each lane has the address of a row of 16 bytes, whose words four lanes have.
inline void do_stmatrix(Lane* lanes) {
  for (int i = 0; i < 32; ++i) {
    machine.here.lane = static_cast<uint8_t>(i);
    const uint32_t at = lanes[i].value;
    check_shared(at, 16);
    note_write(machine.block->shadow, at, 16, machine.cluster_start);
    for (int t = 0; t < 4; ++t) {
      std::memcpy(machine.block->memory.data() + at + 4 * t, &lanes[i % 8 * 4 + t].stored[i / 8], 4);
    }
  }
}

// Each lane reads a row of 16 bytes. Rows in the same banks take another pass, unless they are the same row.
inline void do_ldmatrix(Lane* lanes, bool transposed) {
  uint16_t rows[32][8];
  for (int i = 0; i < 32; ++i) {
    machine.here.lane = static_cast<uint8_t>(i);
    const uint32_t at = lanes[i].value;
    check_shared(at, 16);
    note_read(machine.block->shadow, at, 16, machine.cluster_start);
    std::memcpy(rows[i], machine.block->memory.data() + at, 16);
  }
  for (int first = 0; first < 32; first += 8) {
    int passes[8] = {};
    for (int i = first; i < first + 8; ++i) {
      const auto same = [&](const Lane& other) { return other.value == lanes[i].value; };
      if (std::none_of(lanes + first, lanes + i, same)) ++passes[lanes[i].value / 16 % 8];
    }
    ++machine.report.counters.ldmatrix_reads;
    machine.report.counters.ldmatrix_passes += *std::max_element(passes, passes + 8);
  }
  for (int i = 0; i < 32; ++i) {
    const int g = i / 4, t = i % 4;
    for (int matrix = 0; matrix < 4; ++matrix) {
      const uint16_t (*m)[8] = rows + 8 * matrix;
      const uint32_t low = transposed ? m[2 * t][g] : m[g][2 * t];
      const uint32_t high = transposed ? m[2 * t + 1][g] : m[g][2 * t + 1];
      lanes[i].words[matrix] = low | high << 16;
    }
  }
}

// 16 x DEPTH times DEPTH x 8. Products are added in double, which is more exact than a tensor core.
template <int DEPTH>
void do_products(Lane* lanes, const double (&left)[16][16], const double (&right)[16][8]) {
  using Two = double __attribute__((vector_size(16)));  // columns
  Two rows[DEPTH][4];
  double sums[16][8];
  std::memcpy(rows, right, sizeof(rows));
  for (int row = 0; row < 16; ++row) {
    Two sum0 = {}, sum1 = {}, sum2 = {}, sum3 = {};
    for (int k = 0; k < DEPTH; ++k) {
      const double factor = left[row][k];
      sum0 += factor * rows[k][0];
      sum1 += factor * rows[k][1];
      sum2 += factor * rows[k][2];
      sum3 += factor * rows[k][3];
    }
    const Two all[4] = {sum0, sum1, sum2, sum3};
    std::memcpy(sums[row], all, sizeof(all));
  }
  for (int i = 0; i < 32; ++i) {
    const int g = i / 4, t = i % 4;
    for (int r = 0; r < 4; ++r) {
      float& sum = lanes[i].sum[r];
      sum = static_cast<float>(sum + sums[g + r / 2 * 8][2 * t + r % 2]);
    }
  }
}

template <float (*FLOAT_OF)(uint16_t)>
void do_mma_16_bits(Lane* lanes) {
  double left[16][16], right[16][8];
  for (int i = 0; i < 32; ++i) {
    const int g = i / 4, t = i % 4;
    for (int half = 0; half < 2; ++half) {
      const auto value = [&](uint32_t word) { return FLOAT_OF(static_cast<uint16_t>(word >> (16 * half))); };
      for (int r = 0; r < 4; ++r) left[g + r % 2 * 8][2 * t + half + r / 2 * 8] = value(lanes[i].left[r]);
      for (int r = 0; r < 2; ++r) right[2 * t + half + r * 8][g] = value(lanes[i].right[r]);
    }
  }
  do_products<16>(lanes, left, right);
}

inline void do_mma_tf32(Lane* lanes) {
  double left[16][16], right[16][8];
  const auto value = [](uint32_t word) { return as_float(word & 0xffffe000u); };
  for (int i = 0; i < 32; ++i) {
    const int g = i / 4, t = i % 4;
    for (int r = 0; r < 4; ++r) left[g + r % 2 * 8][t + r / 2 * 4] = value(lanes[i].left[r]);
    for (int r = 0; r < 2; ++r) right[t + r * 4][g] = value(lanes[i].right[r]);
  }
  do_products<8>(lanes, left, right);
}

}  // namespace emulator
