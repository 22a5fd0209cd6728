// What the library was built for, as it knows it itself.
#pragma once

#include "../cpu/instruction_sets.h"

namespace vt {

// The torch whose headers it was compiled with, and the oldest whose stable ABI it keeps to.
VT_EXPORT extern const char* const torch_of_headers;
VT_EXPORT extern const char* const oldest_torch;

}  // namespace vt
