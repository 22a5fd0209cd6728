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
  int32_t split = 0;  // samples among clusters even where that costs time
  int32_t far = 0;    // moves operands and results so that offsets need 64 bits
  int32_t dry = 0;    // plans alone, for `planned`
};

// Of the last call.
struct Report {
  int32_t warps, ranks, stages, mt, nt, tp, clusters, unit;
  int32_t shared_bytes;
  int32_t launches;
};

inline Conditions conditions;
inline Report report;
inline std::string message;
inline const char* const only_planned = "this call was planned alone";

}  // namespace emulated
}  // namespace vt
