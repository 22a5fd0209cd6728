// Arguments of the kernels: sizes, addresses and strides, checked by the caller.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vt {

enum class Dtype : int32_t { float32, float64, bfloat16, float16 };

// What becomes of logits: softmax over the pixels (tokenize) or over a head's rows, exp, or nothing.
enum class Normalize : int32_t { pixels, tokens, exp, none };

// All strides count elements. Absent operands, and results that are not wanted, have data == nullptr.

// A feature map: channel c of the pixel in row h and column w of sample b. A (B, N, C) map is one row of N.
struct Map {
  void* data = nullptr;
  int64_t batch = 0, row = 0, column = 0, channel = 0;
};

// One number (or mask byte) for each pixel.
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

// The arguments of all six entry points; each reads those that it needs. Names and shapes are those of the
// Python functions.
//
// Maps, rows and extra values hold elements of `dtype`, and so do grad_map and grad_tokens; each bias has a
// dtype of its own. Statistics, unrounded tokens and the gradients of everything but maps are float (double
// for float64). Results other than maps are dense in the order of their dimensions; gradients of a shared
// operand have no batch dimension.
struct Call {
  Dtype dtype = Dtype::float32;
  Dtype token_bias_dtype = Dtype::float32, query_bias_dtype = Dtype::float32;
  Dtype pixel_bias_dtype = Dtype::float32, scores_dtype = Dtype::float32;
  int64_t batch = 0, height = 0, width = 0;
  int64_t pixels = 0;            // N = height * width, row-major; with offsets, of all bags together
  int64_t channels = 0;          // C, of x
  int64_t out_channels = 0;      // D, of project's map and of what tokenize pools
  int64_t num_heads = 1;         // of keys and values
  int64_t keys_per_head = 0;     // L of keys
  int64_t key_rows = 0;          // num_heads * L
  int64_t key_blocks = 1;        // num_heads where a head's keys see a block of channels each, or 1: all
  int64_t value_blocks = 1;      // num_heads where a head writes a block of channels, or 1: heads are summed
  int64_t query_heads = 1;       // num_heads of tokenize where heads see blocks, else 1
  int64_t queries_per_head = 0;  // rows of queries / query_heads
  int64_t softmax_rows = 0;      // L of queries, for Normalize::tokens
  int64_t extra_columns = 0;     // P of extra_values
  double layer_norm_eps = -1;    // of tokenize: x is normalised over its channels; negative: it is not
  bool residual_is_input = false;
  bool pools_values = false;                                             // tokenize pools another map than x
  Normalize spreading = Normalize::tokens, pooling = Normalize::pixels;  // of project, of tokenize

  // (B + 1,), int64_t or int32_t, from 0 to `pixels`: samples are bags of pixels, one after the other, and
  // batch strides of what belongs to pixels are 0. May be absent.
  const void* offsets = nullptr;
  int64_t offsets_stride = 1;
  bool offsets_are_wide = true;

  Map x, residual, grad_map;
  Map pooled_map;     // tokenize's values, pooled instead of x; may be absent
  Map scores;         // added to the logits of tokenize or project; a channel is a row; may be absent
  Rows keys;          // (num_heads * L, C / key_blocks)
  Rows values;        // (num_heads * L / value_blocks, D)
  Rows token_bias;    // (1, num_heads * L)
  Rows queries;       // (query_heads * queries_per_head, C / query_heads); may be absent, with scores
  Rows query_bias;    // (1, query_heads * queries_per_head)
  Rows extra_values;  // (N, P)
  Pixels mask;        // bytes, 0 where a pixel is masked
  Pixels pixel_bias;

  // For the backward: the results' gradients, and the forward's results (tokens and lse dense). Here, L is
  // queries_per_head; lse is the sum of the weights with another pooling than over pixels.
  Rows grad_tokens;                    // (L, D + P)
  Rows grad_stats;                     // (1, query_heads * L), float or double; may be absent
  const void* exact_tokens = nullptr;  // (B, L, D + P)
  const void* saved_stats = nullptr;   // (B, query_heads * L)

  // Results.
  Map map, dx, dresidual, dpooled_map, dscores;
  void* tokens_out = nullptr;     // (B, L, D + P), not rounded
  void* stats_out = nullptr;      // (B, query_heads * L)
  void* dkeys = nullptr;          // like keys
  void* dvalues = nullptr;        // like values
  void* dtoken_bias = nullptr;    // (.., num_heads * L)
  void* dqueries = nullptr;       // like queries
  void* dquery_bias = nullptr;    // (.., query_heads * L)
  void* dpixel_bias = nullptr;    // (B, N)
  void* dextra_values = nullptr;  // (N, P)
};

// Memory and threads for the duration of a call, provided by the caller.
struct Host {
  void* self = nullptr;
  // Memory aligned to 64 bytes. Called once in each call of a kernel, before any thread starts.
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
