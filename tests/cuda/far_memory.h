// Operands and results of a call at offsets that need 64 bits, on memory of which few pages are touched.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <vector>

#include "call.h"

namespace vt {
namespace cuda {

class FarMemory {
 public:
  // Moves what has strides, and makes them large. `size`: the bytes of an element of a map.
  FarMemory(Call& call, Layout layout, int64_t size) : batch_(call.batch) {
    const int64_t c = call.channels * call.query_heads, d = call.out_channels * call.query_heads,
                  n = call.pixels;
    const auto map = [&](Map& map, int64_t channels, bool result) {
      const int64_t outer = layout == Layout::last ? n : channels,
                    inner = layout == Layout::last ? channels : n;
      // Rows of `shifted` must follow each other.
      const int64_t row = layout == Layout::shifted ? map.row : kFar / 8;
      move(map.data, map.batch, outer * row + kFar, map.row, row, outer, inner * size, size, result);
    };
    map(call.x, c, false), map(call.residual, d, false), map(call.grad_map, d, false);
    map(call.map, d, true), map(call.dx, c, true), map(call.dresidual, d, true);
    const auto dense = [&](void*& data, int64_t& batch, int64_t elements, int64_t each) {
      int64_t row = 0;
      if (batch != 0) move(data, batch, kFar, row, 0, 1, elements * each, each, false);
    };
    dense(call.keys.data, call.keys.batch, call.keys_count * c / call.key_blocks, size);
    dense(call.values.data, call.values.batch, call.keys_count / call.value_blocks * d, size);
    dense(call.queries.data, call.queries.batch, call.queries_count * d, size);
    dense(call.token_bias.data, call.token_bias.batch, call.keys_count * call.query_heads,
          call.token_bias.is_float ? 4 : size);
    dense(call.pixel_bias.data, call.pixel_bias.batch, n, call.pixel_bias.is_float ? 4 : size);
  }

  FarMemory(const FarMemory&) = delete;
  FarMemory& operator=(const FarMemory&) = delete;
  ~FarMemory() {
    for (const Moved& each : moved_) munmap(each.to, each.bytes);
  }

  // Results, to where the caller wants them.
  void bring_back() const {
    for (const Moved& each : moved_) {
      if (each.result) copy(each.from, each.from_batch, each.from_row, each.to, each.batch, each.row, each);
    }
  }

 private:
  static constexpr int64_t kFar = (int64_t{1} << 31) + 64;  // elements

  struct Moved {
    char *from, *to;
    int64_t from_batch, from_row, batch, row;  // strides in bytes
    int64_t rows, row_bytes;
    size_t bytes;
    bool result;
  };

  void move(void*& data, int64_t& batch, int64_t new_batch, int64_t& row, int64_t new_row, int64_t rows,
            int64_t row_bytes, int64_t size, bool result) {
    if (data == nullptr) return;
    Moved moved{static_cast<char*>(data), nullptr, batch * size, row * size, new_batch * size,
                new_row * size,           rows,    row_bytes,    0,          result};
    moved.bytes = static_cast<size_t>((batch_ - 1) * moved.batch + (rows - 1) * moved.row + row_bytes);
    void* memory = mmap(nullptr, moved.bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    moved.to = static_cast<char*>(memory);
    // Results too, which start as NaN.
    copy(moved.to, moved.batch, moved.row, moved.from, moved.from_batch, moved.from_row, moved);
    moved_.push_back(moved);
    data = memory, batch = new_batch, row = new_row;
  }

  void copy(char* to, int64_t to_batch, int64_t to_row, const char* from, int64_t from_batch,
            int64_t from_row, const Moved& of) const {
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t i = 0; i < of.rows; ++i) {
        std::memcpy(to + b * to_batch + i * to_row, from + b * from_batch + i * from_row,
                    static_cast<size_t>(of.row_bytes));
      }
    }
  }

  int64_t batch_;
  std::vector<Moved> moved_;
};

}  // namespace cuda
}  // namespace vt
