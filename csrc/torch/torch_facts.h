// The versions of torch that the library was built with and for.
#pragma once

#include "../cpu/instruction_sets.h"

namespace vt {

// The torch whose headers it was compiled with, and the oldest torch that can load it.
VT_EXPORT extern const char* const torch_of_headers;
VT_EXPORT extern const char* const oldest_torch;

}  // namespace vt
