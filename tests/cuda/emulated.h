// How the emulator runs the CUDA kernels, for tests to set, and what happened.
#pragma once

#include <cstdint>
#include <string>

namespace vt {
namespace emulated {

struct Conditions {
  uint64_t seed = 1;
  int32_t copies = 0;    // emulator::Copies
  int32_t clusters = 3;  // that run at a time
  int32_t shared_bytes = 227 * 1024;
  int32_t max_ranks = 16;
};

// Of the last launch that was no summing of parts.
struct Report {
  int32_t warps, ranks, stages, mt, nt, tp, clusters, unit;
  int32_t shared_bytes;
  int32_t launches;  // of the call
};

inline Conditions conditions;
inline Report report;
inline std::string message;

}  // namespace emulated
}  // namespace vt
