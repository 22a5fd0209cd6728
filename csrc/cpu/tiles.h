// Tiles of a map: in place where products can read them there, otherwise gathered into a buffer that stays in
// the cache. The rows of a tile have unit stride: pixels of C channels (channels innermost), or channels of n
// pixels.
#pragma once

#include <type_traits>

#include "call.h"
#include "memory.h"
#include "numbers.h"

namespace vt::VT_NAMESPACE {
namespace {

template <class Elem>
struct View {
  Elem* data;
  int64_t ld;

  // The tile from a channel on.
  template <bool pixels_innermost>
  View from_channel(int64_t channel) const {
    return {data ? data + channel * (pixels_innermost ? ld : 1) : nullptr, ld};
  }
};

struct PixelRange {
  int64_t sample, first, count;
};
struct Place {
  int64_t sample, first;
};

// Whether all neighbouring pixels are the same distance apart, and that distance.
VT_INLINE bool even_pixels(int64_t height, int64_t width, int64_t row, int64_t column, int64_t& distance) {
  distance = width == 1 ? row : column;
  return height == 1 || width == 1 || row == width * column;
}

template <class From, class To>
void copy_run(const From* from, int64_t from_stride, To* to, int64_t to_stride, int64_t count) {
  if constexpr (std::is_same_v<From, To>)
    if (from_stride == 1 && to_stride == 1) {
      __builtin_memcpy(to, from, count * sizeof(To));
      return;
    }
  for (int64_t i = 0; i < count; i++) to[i * to_stride] = Rounded<To>::from(from[i * from_stride]);
}
template <class Half>
VT_INLINE void widen_run(const Half* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + lanes<float> <= count; i += lanes<float>) store<float>(to + i, widen(from + i));
  copy_run(from + i, 1, to + i, 1, count - i);
}
template <class Half>
VT_INLINE void narrow_run(const float* from, Half* to, int64_t count) {
  int64_t i = 0;
  for (; i + lanes<float> <= count; i += lanes<float>) narrow(to + i, load<float>(from + i));
  copy_run(from + i, 1, to + i, 1, count - i);
}

// `count` numbers of any dtype into a product's elements, and back.
template <class Elem>
void gather(const void* from, Dtype dtype, int64_t offset, int64_t stride, Elem* to, int64_t count) {
  const auto copy = [&](auto* p) {
    if constexpr (sizeof(*p) == 2 && sizeof(Elem) == 4)
      if (stride == 1) return widen_run(p + offset, to, count);
    copy_run(p + offset, stride, to, 1, count);
  };
  switch (dtype) {
    case Dtype::float64:
      return copy((const double*)from);
    case Dtype::float32:
      return copy((const float*)from);
    case Dtype::bfloat16:
      return copy((const Bfloat16*)from);
    case Dtype::float16:
      return copy((const Float16*)from);
  }
}
template <class Elem>
void scatter(const Elem* from, int64_t count, void* to, Dtype dtype, int64_t offset, int64_t stride) {
  const auto copy = [&](auto* p) {
    if constexpr (sizeof(*p) == 2 && sizeof(Elem) == 4)
      if (stride == 1) return narrow_run(from, p + offset, count);
    copy_run(from, 1, p + offset, stride, count);
  };
  switch (dtype) {
    case Dtype::float64:
      return copy((double*)to);
    case Dtype::float32:
      return copy((float*)to);
    case Dtype::bfloat16:
      return copy((Bfloat16*)to);
    case Dtype::float16:
      return copy((Float16*)to);
  }
}

// Calls body(its first pixel within the tile, its offset, its pixels) for each run of pixels of a tile that
// are `column` apart. Of: Map or Pixels, with rows of `width` pixels.
template <class Of, class Body>
VT_INLINE void for_each_run(const Of& of, int64_t width, PixelRange range, Body body) {
  for (int64_t done = 0; done < range.count;) {
    const int64_t pixel = range.first + done, y = pixel / width, x = pixel % width;
    const int64_t run = smaller(width - x, range.count - done);
    body(done, range.sample * of.batch + y * of.row + x * of.column, run);
    done += run;
  }
}

enum class Use { read, write };

// One map of a call, as tiles.
template <class N, bool pixels_innermost>
struct TiledMap {
  using Elem = typename N::Elem;

  Map map;
  Dtype dtype;
  int64_t width = 1, channels = 0;
  int64_t ld = 0, distance = 0;  // in place: from row to row of a tile, from pixel to pixel
  bool in_place = false;
  Elem* buffer = nullptr;
  int64_t buffer_ld = 0;

  TiledMap(const Map& map, Use use, const Call& call, int64_t channels)
      : map(map), dtype(call.dtype), width(call.width), channels(channels) {
    const bool even = even_pixels(call.height, call.width, map.row, map.column, distance);
    const bool unit =
        pixels_innermost ? distance == 1 || call.pixels == 1 : map.channel == 1 || channels == 1;
    in_place = map.data && even && unit && dtype == N::dtype;
    ld = pixels_innermost ? map.channel : distance;
    // Rows that share a cache set would evict each other between the products that read them.
    if (use == Use::read && pixels_innermost && channels > 8 && ld * (int64_t)sizeof(Elem) % 4096 == 0)
      in_place = false;
  }

  // A buffer's row for tiles of `pixels`, padded so that rows do not share a cache set.
  static int64_t buffer_row(int64_t channels, int64_t pixels) {
    return rounded_up(pixels_innermost ? pixels : channels, 64) + 64 / (int64_t)sizeof(Elem);
  }
  static int64_t buffer_size(int64_t channels, int64_t pixels) {
    return buffer_row(channels, pixels) * (pixels_innermost ? channels : pixels);
  }
  void take_buffer(Arena& arena, int64_t pixels) {
    buffer = arena.take<Elem>(buffer_size(channels, pixels)), buffer_ld = buffer_row(channels, pixels);
  }
  // Takes a buffer if any tile needs one: those not in place, or with `sometimes` those with invalid pixels.
  void take_buffer_if_needed(Arena& arena, int64_t pixels, bool sometimes = false) {
    if (map.data && (!in_place || sometimes)) take_buffer(arena, pixels);
  }

  Elem* at(PixelRange range) const {
    return (Elem*)map.data + range.sample * map.batch + range.first * distance;
  }

  // A tile to read, with zeros in place of invalid pixels. `valid`: a byte for each pixel, or nullptr if all
  // are valid.
  View<const Elem> read(PixelRange range, const uint8_t* valid) const {
    if (in_place && !valid) return {at(range), ld};
    for_each_run(map, width, range, [&](int64_t first, int64_t offset, int64_t count) {
      if (pixels_innermost)
        for (int64_t c = 0; c < channels; c++)
          gather(map.data, dtype, offset + c * map.channel, map.column, buffer + c * buffer_ld + first,
                 count);
      else
        for (int64_t i = 0; i < count; i++)
          gather(map.data, dtype, offset + i * map.column, map.channel, buffer + (first + i) * buffer_ld,
                 channels);
    });
    if (valid) clear_invalid({buffer, buffer_ld}, range.count, valid);
    return {buffer, buffer_ld};
  }

  // Where to store a tile of results; `write` follows.
  View<Elem> target(PixelRange range) const {
    if (in_place) return {at(range), ld};
    return {buffer, buffer_ld};
  }
  void write(PixelRange range) const {
    if (!in_place) put(range, {buffer, buffer_ld});
  }
  // Copies a tile to its place in the map.
  void put(PixelRange range, View<const Elem> tile) const {
    for_each_run(map, width, range, [&](int64_t first, int64_t offset, int64_t count) {
      if (pixels_innermost)
        for (int64_t c = 0; c < channels; c++)
          scatter(tile.data + c * tile.ld + first, count, map.data, dtype, offset + c * map.channel,
                  map.column);
      else
        for (int64_t i = 0; i < count; i++)
          scatter(tile.data + (first + i) * tile.ld, channels, map.data, dtype, offset + i * map.column,
                  map.channel);
    });
  }

  void clear_invalid(View<Elem> tile, int64_t count, const uint8_t* valid) const {
    for (int64_t i = 0; i < count; i++)
      if (!valid[i])
        for (int64_t c = 0; c < channels; c++)
          tile.data[pixels_innermost ? c * tile.ld + i : i * tile.ld + c] = Elem{};
  }

  // The distance from a tile that was read to the next one, to prefetch it; 0 if the tile is a copy.
  int64_t ahead(View<const Elem> tile, PixelRange range, Place next) const {
    if (!in_place || tile.data != at(range)) return 0;
    return (next.sample - range.sample) * map.batch + (next.first - range.first) * distance;
  }
  // Whether vectors stored in place are aligned in a tile that starts at a multiple of `pixels`.
  bool aligned(int64_t pixels) const {
    constexpr int64_t unit = VT_BYTES / sizeof(Elem);
    return in_place && (uintptr_t)map.data % VT_BYTES == 0 && ld % unit == 0 && map.batch % unit == 0 &&
           (!pixels_innermost || (distance == 1 && pixels % unit == 0));
  }
};

}  // namespace
}  // namespace vt::VT_NAMESPACE
