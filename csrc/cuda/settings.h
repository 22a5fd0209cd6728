// Measured launch settings, which override the rules of plan.h.
#pragma once

#include "call.h"

namespace vt {
namespace cuda {

// Maps as settings tell them apart: by their layout, and `halves` are those of Layout::first whose rows are
// aligned to 8 bytes and not to 16.
enum class Maps : int32_t { last, first, shifted, halves };

inline Maps maps_like(Layout layout, const Map& map) {
  return layout == Layout::first && map.row % 8 != 0 ? Maps::halves : static_cast<Maps>(layout);
}

// A class of calls, and what it gets. A plan that does not fit is ignored.
struct Setting {
  Op op;
  Dtype dtype;
  Maps maps;
  int32_t rows;      // for up to 16, 32 or 64 rows of scores
  int32_t channels;  // for calls of up to so many, and more than half
  int32_t other;     // 1: backend=None leaves such calls to the next backend
  int32_t mt;        // 16 channels of a warp each; 0: by the rules
  int32_t ranks;     // the fewest blocks of a cluster
  int32_t stages;    // the most tiles at a time
};

// The settings in use. They are set before the first call, or by a program that tries some.
void use_settings(const Setting* settings, int count);
// Null where the rules decide.
const Setting* find_setting(Op op, Dtype dtype, Maps maps, int rows, int channels);

}  // namespace cuda
}  // namespace vt
