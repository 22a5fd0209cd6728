// The memory that a call may use, announced to the emulator, and what must have happened to it in the end.
#pragma once

#include <algorithm>
#include <string>

#include "call.h"
#include "emulator/memory.h"

namespace vt {
namespace cuda {

class Ranges {
 public:
  // `size`: the bytes of an element of a map.
  Ranges(const Call& call, Layout layout, int64_t size) : call_(call), layout_(layout), size_(size) {
    emulator::forget();
    const int64_t heads = call.query_heads, c = call.channels * heads, d = call.out_channels * heads;
    map("x", call.x, c, false);
    map("residual", call.residual, d, false);
    map("grad_map", call.grad_map, d, false);
    map("map", call.map, d, true);
    map("dx", call.dx, c, true);
    map("dresidual", call.dresidual, d, true);
    const int64_t q = call.queries_count, b = call.batch, n = call.pixels;
    const int64_t p = call.extra_columns;
    rows("keys", call.keys, call.dkeys, call.keys_count * c / call.key_blocks);
    rows("values", call.values, call.dvalues, call.keys_count / call.value_blocks * d);
    rows("queries", call.queries, call.dqueries, q * d);
    add("extra_values", call.extra_values.data, n * p * size, false);
    add("dextra_values", call.dextra_values, n * p * size, true);
    biases("token_bias", call.token_bias, call.dtoken_bias, call.keys_count * heads);
    biases("pixel_bias", call.pixel_bias, call.dpixel_bias, n);
    add("mask", call.mask, b * n, false);
    add("grad_tokens", call.grad_tokens, b * q * d * size, false);
    add("grad_extra", call.grad_extra, b * q * p * size, false);
    add("grad_lse", call.grad_lse, 4 * b * heads * q, false);
    add("exact", call.exact, 4 * b * q * (d + p), false);
    add("lse", call.lse, 4 * b * heads * q, false);
    add("tokens", call.tokens, b * q * (d + p) * size, true);
    add("exact_out", call.exact_out, 4 * b * q * (d + p), true);
    add("lse_out", call.lse_out, 4 * b * heads * q, true);
  }

  // What is wrong after the last launch, with tiles of `tp` pixels, or nothing.
  std::string finish(int tp) const {
    int64_t copied = 0;
    for (const emulator::Range& range : emulator::machine.ranges) {
      const std::string& name = range.shadow.name;
      if (name == "`x`" || name == "`residual`" || name == "`grad_map`") {
        copied += static_cast<int64_t>(range.bytes_copied);
        if (range.bytes_read != 0) return name + " was read without asynchronous copies";
      }
      if (!range.writable || name == "`workspace`") continue;
      const std::string has = ", and has " + std::to_string(range.bytes());
      if (range.bytes_covered != range.bytes())
        return name + " got " + std::to_string(range.bytes_covered) + " bytes" + has;
      if (range.bytes_written != range.bytes())
        return name + " was written twice: " + std::to_string(range.bytes_written) + " bytes" + has;
    }
    const int64_t once = bytes_copied_of(call_.x, call_.channels, tp) +
                         bytes_copied_of(call_.residual, call_.out_channels, tp) +
                         bytes_copied_of(call_.grad_map, call_.out_channels, tp);
    if (copied != once)
      return "maps were copied in " + std::to_string(copied) + " bytes, and have " + std::to_string(once);
    return {};
  }

 private:
  void add(const char* name, const void* data, int64_t bytes, bool writable) {
    if (data != nullptr)
      emulator::announce(name, const_cast<void*>(data), static_cast<uint64_t>(bytes), writable);
  }
  // `count` pieces of `bytes` each; gaps between them are out of bounds.
  void add_apart(const char* name, const void* data, int64_t count, int64_t stride, int64_t bytes,
                 bool writable) {
    if (stride <= bytes) return add(name, data, (count - 1) * stride + bytes, writable);
    for (int64_t i = 0; i < count && data != nullptr; ++i)
      add(name, static_cast<const char*>(data) + i * stride, bytes, writable);
  }
  // An operand for each sample or for all of them, and its gradient, which is dense.
  void small(const char* name, const void* data, int64_t batch, int64_t bytes_each, const void* gradient,
             int64_t elements, int64_t gradient_bytes_each) {
    add_apart(name, data, batch == 0 ? 1 : call_.batch, batch * bytes_each, elements * bytes_each, false);
    add(("d" + std::string(name)).c_str(), gradient,
        (batch == 0 ? 1 : call_.batch) * elements * gradient_bytes_each, true);
  }
  void rows(const char* name, const Rows& rows, const void* gradient, int64_t elements) {
    small(name, rows.data, rows.batch, size_, gradient, elements, size_);
  }
  void biases(const char* name, const Biases& biases, const Biases& gradient, int64_t elements) {
    small(name, biases.data, biases.batch, biases.is_float ? 4 : size_, gradient.data, elements,
          gradient.is_float ? 4 : size_);
  }
  void map(const char* name, const Map& map, int64_t channels, bool writable) {
    if (map.data == nullptr) return;
    const int64_t outer = layout_ == Layout::last ? call_.pixels : channels;
    const int64_t inner = layout_ == Layout::last ? channels : call_.pixels;
    const int64_t sample = (outer - 1) * map.row + inner;
    const bool together = call_.batch > 1 && map.batch < sample;  // samples take turns
    if (together) return add(name, map.data, ((call_.batch - 1) * map.batch + sample) * size_, writable);
    for (int64_t b = 0; b < call_.batch; ++b) {
      add_apart(name, static_cast<const char*>(map.data) + b * map.batch * size_, outer, map.row * size_,
                inner * size_, writable);
    }
  }

  // Each byte once; of `shifted`, the 16 bytes around the ends of a tile's rows too.
  int64_t bytes_copied_of(const Map& map, int64_t channels, int tp) const {
    if (map.data == nullptr) return 0;
    const int64_t samples = static_cast<int64_t>(call_.batch) * call_.query_heads;
    if (layout_ != Layout::shifted) return samples * channels * call_.pixels * size_;
    const int64_t each = 16 / size_;
    int64_t pieces = 0;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t pixel = 0; pixel < call_.pixels; pixel += tp) {
        const int64_t begin = c * map.row + pixel,
                      end = c * map.row + std::min<int64_t>(call_.pixels, pixel + tp);
        pieces += (end + each - 1) / each - begin / each;
      }
    }
    return samples * pieces * 16;
  }

  const Call& call_;
  Layout layout_;
  int64_t size_;
};

}  // namespace cuda
}  // namespace vt
