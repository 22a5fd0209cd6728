// The oldest torch whose stable ABI is used. Before torch's headers.
#pragma once

#define TORCH_TARGET_VERSION (((0ULL + 2) << 56) | ((0ULL + 11) << 48))
