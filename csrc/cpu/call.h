// What a kernel is told: sizes, addresses and strides, already checked by the caller. No torch here.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vt {

enum class Dtype : int32_t { float32, float64, bfloat16, float16 };

inline int64_t bytes_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

// All strides count elements. Absent operands, and results that are not wanted, have data == nullptr.

// A feature map: channel c of the pixel in row h and column w of sample b. A (B, N, C) map is one row of N.
struct Map {
  void* data = nullptr;
  int64_t batch = 0, row = 0, column = 0, channel = 0;
};

// One number (or mask byte) per pixel.
struct Pixels {
  void* data = nullptr;
  int64_t batch = 0, row = 0, column = 0;
};

// Rows of numbers, per sample or shared by the batch (then batch == 0, and the gradient has no batch).
struct Rows {
  void* data = nullptr;
  int64_t batch = 0, row = 0, column = 0;
  bool shared = false;
};

// The arguments of all six entry points; each reads what it needs.
//
// Maps, rows, bias, log weights and the position table hold elements of `dtype`, and so do grad_map and
// grad_tokens. Statistics, exact tokens and the gradients of everything but maps are float (double for
// float64). Results other than maps are dense in the order of their dimensions; gradients of a shared
// operand have no batch dimension.
struct Call {
  Dtype dtype = Dtype::float32;
  int64_t batch = 0, height = 0, width = 0;  // pixels N = height * width, row-major
  int64_t channels = 0;                      // C, of x
  int64_t out_channels = 0;                  // D, of project's map; C for tokenize
  int64_t heads = 1;                         // of tokenize, or of project's half of project_tokenize
  int64_t tokens = 0;                        // L of keys and values, for each head
  int64_t queries_per_head = 0;              // L of queries, for each head
  int64_t table = 0;                         // P, columns of the position table
  bool residual_input = false;

  Map x, residual, grad_map;
  Rows keys;      // (heads * L, C)
  Rows values;    // (L, D)
  Rows bias;      // (1, heads * L)
  Rows queries;   // (heads * L, C / heads), or (L, D) in project_tokenize
  Rows position;  // (N, P)
  Pixels mask;    // bytes, 0 where a pixel takes no part
  Pixels log_weights;

  // For the backward: what arrives, and what the forward gave (tokens and lse dense).
  Rows grad_tokens;                    // (L, C + P)
  Rows grad_lse;                       // (1, heads * L), float or double; may be absent
  const void* exact_tokens = nullptr;  // (B, L, C + P)
  const void* saved_lse = nullptr;     // (B, heads * L)

  // Results.
  Map map, dx, dresidual;
  void* tokens_out = nullptr;    // (B, L, C + P), not rounded
  void* lse_out = nullptr;       // (B, heads * L)
  void* dkeys = nullptr;         // (.., heads * L, C)
  void* dvalues = nullptr;       // (.., L, D)
  void* dbias = nullptr;         // (.., heads * L)
  void* dqueries = nullptr;      // (.., heads * L, C / heads)
  void* dlog_weights = nullptr;  // (B, N)
  void* dposition = nullptr;     // (N, P)
};

// What a kernel asks of its host: memory for the duration of the call, and threads.
struct Host {
  void* self = nullptr;
  // Memory aligned to 64 bytes. Called once for each call of a kernel, before any thread starts.
  void* (*allocate)(void* self, size_t bytes) = nullptr;
  int64_t threads = 1;
  // Calls body(argument, i) once for each i in [0, count), on as many threads as there are, and waits.
  void (*parallel)(void* self, int64_t count, void (*body)(void* argument, int64_t index),
                   void* argument) = nullptr;
};

using Kernel = void (*)(const Call&, const Host&);

// The six entry points, compiled once per instruction set.
struct Kernels {
  Kernel tokenize, tokenize_backward;
  Kernel project, project_backward;
  Kernel project_tokenize, project_tokenize_backward;
};

}  // namespace vt
