// Arguments of the kernels: sizes, addresses and strides, checked by the caller. Neither torch nor CUDA.
#pragma once

#include <cstdint>

namespace vt {

// How a map lies in memory. `last`: channels are contiguous. `first`: pixels are contiguous, and rows of
// them aligned to 8 bytes. `shifted`: pixels are contiguous, and rows unaligned; a row is copied with the 16
// bytes around it.
enum class Layout : int32_t { last, first, shifted };

namespace cuda {

enum class Dtype : int32_t { float32, bfloat16, float16 };

// Weights of a pixel's tokens, from their logits: softmax, exp, or the logits themselves.
enum class Weights : int32_t { softmax, exp, logits };

enum class Op : int32_t {
  tokenize,
  project,
  project_tokenize,
  tokenize_backward,
  project_backward,
  project_tokenize_backward
};

constexpr int kMaxWarps = 16;  // of a block

// All strides count elements. Absent operands, and results that are not wanted, have data == nullptr.

// A map whose channels are contiguous, or else its pixels; all maps of a call alike. `row` lies between two
// pixels where channels are contiguous, otherwise between two channels.
struct Map {
  void* data = nullptr;
  int64_t batch = 0, row = 0;
};

// Dense rows of numbers, per sample or shared by the batch (then batch == 0, and the gradient has no batch).
struct Rows {
  void* data = nullptr;
  int64_t batch = 0;
};

// A number for each token or pixel: float, or of the maps' dtype.
struct Biases {
  void* data = nullptr;
  int64_t batch = 0;
  int32_t is_float = 1;
};

// Where things lie in a block's shared memory, in bytes.
struct Places {
  uint32_t ring, stage, map;  // of a stage and of a map in it: their sizes. A map is a slice for each warp
  uint32_t again;  // the map that project_tokenize's backward computes again, a slice for each warp
  uint32_t keys, values, queries, grad_tokens;  // banks, one for each warp
  uint32_t scores;                              // each warp's part of the products with rows
  uint32_t by_pixel, by_token;                  // weights, and gradients of scores
  uint32_t weights;                             // of project, not rounded
  uint32_t used;                                // whether gradients of project may use a pixel
  uint32_t highest, total, scale;               // of each query; `total` is two sums, see forward.h
  uint32_t totals;                              // the same, of each query and pixel of a tile
  uint32_t delta, lse;                          // of each query
  uint32_t token_bias;                          // of each key
  uint32_t dtoken_bias;                         // of each key, a part for each warp
  uint32_t dlogits;                             // gradients of scores, not rounded, where pixel_bias has one
  uint32_t extra;                               // sums over extra values
  uint32_t bytes;
};

struct Call {
  // Sizes. A sample is a sample of the batch and a head of tokenize: all samples of the first head come
  // first.
  int32_t batch = 0, pixels = 0;
  int32_t channels = 0;       // of x, for a head of tokenize: of the head
  int32_t out_channels = 0;   // of project's map; `channels` for tokenize
  int32_t query_heads = 1;    // of tokenize
  int32_t queries_count = 0;  // L of queries, for each head
  int32_t num_heads = 1;      // of project; where tokenize pools by token, of its softmax
  int32_t keys_count = 0;     // num_heads * L; where tokenize pools by token, queries_count
  int32_t key_blocks = 1;     // num_heads where a head's keys see a block of channels each, or 1: all
  int32_t value_blocks = 1;   // num_heads where a head writes a block of channels, or 1: heads are summed
  int32_t plain_sums = 0;     // weights of tokenize need no sum over pixels
  Weights weights = Weights::softmax;
  int32_t extra_columns = 0;
  int32_t residual_is_input = 0;

  // Work: each cluster of blocks gets tiles [i, j) of all tiles of all samples. Ends are multiples of `unit`.
  int32_t tiles_per_sample = 0, unit = 1, stages = 0, clusters = 0;
  int32_t longer = 0;      // so many clusters get one unit more than the others
  int64_t units_each = 0;  // of these others
  Places places = {};

  Map x, residual, grad_map;
  Rows keys;                      // (keys_count, channels / key_blocks)
  Rows values;                    // (keys_count / value_blocks, out_channels)
  Rows queries;                   // (query_heads * queries_count, out_channels)
  Rows extra_values;              // (N, P), without a batch
  Biases token_bias;              // (query_heads * keys_count,)
  Biases pixel_bias;              // (N,)
  const uint8_t* mask = nullptr;  // (B, N), 0 where a pixel takes no part

  // For the backward: gradients of the results, and the forward's results.
  const void* grad_tokens = nullptr;  // (B, L, query_heads * out_channels)
  const void* grad_extra = nullptr;   // (B, L, P)
  const float* grad_lse = nullptr;    // (B, query_heads * L), of what lse_out was; may be absent
  const float* exact = nullptr;       // the tokens, (B, L, query_heads * out_channels + P), not rounded
  const float* lse = nullptr;         // (B, query_heads * L)

  // Results.
  Map map, dx, dresidual;
  void* tokens = nullptr;                                          // (B, L, query_heads * C + P)
  float* exact_out = nullptr;                                      // the same, not rounded; may be absent
  float* lse_out = nullptr;                                        // (B, query_heads * L); or sums of weights
  void *dkeys = nullptr, *dvalues = nullptr, *dqueries = nullptr;  // like the operands
  Biases dtoken_bias;                                              // like token_bias
  Biases dpixel_bias;                                              // (B, N)
  void* dextra_values = nullptr;                                   // (N, P)

  // Workspace of floats: what blocks found for samples that they share, see parts.h.
  float* parts = nullptr;
  float* pixel_parts = nullptr;  // (query_heads, B, N): the gradient of pixel_bias for each head
  float* extra_parts = nullptr;  // (B, N, P): the gradient of extra_values for each sample
};

// The rows of scores that the kernel of a call has room for, and its parts too.
constexpr int room_for_rows(const Call& call) {
  const int rows = call.keys_count > call.queries_count ? call.keys_count : call.queries_count;
  return rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
}

}  // namespace cuda
}  // namespace vt
