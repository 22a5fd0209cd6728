// How the emulator is checked.
#pragma once

#include "device.h"

#include <cstdio>
#include <string>

namespace {

using emulator::Copies;
using emulator::Grid;
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
        const Report report = emulator::launch(shape.grid, shape.cluster, shape.threads, kSharedBytes,
                                               {seed, copies}, [&] { body(fixed); });
        const bool good =
            report.fault.empty() ? fixed : !fixed && report.fault.find(text) != std::string::npos;
        if (good) continue;
        expect(false, name + (fixed ? ", fixed" : "") + ", seed " + std::to_string(seed) + ": " +
                          (report.fault.empty() ? "nothing noticed" : report.fault));
        return;
      }
    }
  }
}

volatile float sink;  // keeps the reads of kernels alive

void set_own(float value) { set_shared(4 * thread(), value); }
float get(int index) { return shared<float>(4 * index); }

// Global memory, with gaps, so that what lies out of one range's bounds is not within another's.
alignas(16) float memory[1024];
float *const input = memory + 64, *const output = memory + 384, *const short_input = memory + 704;
constexpr int kFloats = 256;

// `input` is read-only, `output` is writable.
void announce() {
  emulator::forget();
  emulator::announce("input", input, kFloats * sizeof(float), false);
  emulator::announce("output", output, kFloats * sizeof(float), true);
}

}  // namespace
