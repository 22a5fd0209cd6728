// Tiles of a map: in place where a product can take them so, else gathered into a buffer that stays in
// cache. A tile is rows of unit stride: pixels of C channels (channels innermost), or channels of n pixels.

template <class Elem>
struct View {
  Elem* data;
  int64_t ld;

  // From a channel on.
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

// The distance between neighbouring pixels, if it is the same everywhere.
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

// `count` numbers of the map's dtype into a product's elements, and back.
template <class Elem>
void gather(const void* from, Dtype dtype, int64_t offset, int64_t stride, Elem* to, int64_t count) {
  if (dtype == Dtype::float64) return copy_run((const double*)from + offset, stride, to, 1, count);
  if (dtype == Dtype::float32) return copy_run((const float*)from + offset, stride, to, 1, count);
  if (dtype == Dtype::bfloat16) {
    const Bfloat16* p = (const Bfloat16*)from + offset;
    if constexpr (sizeof(Elem) == 4)
      if (stride == 1) return widen_run(p, to, count);
    return copy_run(p, stride, to, 1, count);
  }
  const Float16* p = (const Float16*)from + offset;
  if constexpr (sizeof(Elem) == 4)
    if (stride == 1) return widen_run(p, to, count);
  copy_run(p, stride, to, 1, count);
}
template <class Elem>
void scatter(const Elem* from, int64_t count, void* to, Dtype dtype, int64_t offset, int64_t stride) {
  if (dtype == Dtype::float64) return copy_run(from, 1, (double*)to + offset, stride, count);
  if (dtype == Dtype::float32) return copy_run(from, 1, (float*)to + offset, stride, count);
  if (dtype == Dtype::bfloat16) {
    Bfloat16* p = (Bfloat16*)to + offset;
    if constexpr (sizeof(Elem) == 4)
      if (stride == 1) return narrow_run(from, p, count);
    return copy_run(from, 1, p, stride, count);
  }
  Float16* p = (Float16*)to + offset;
  if constexpr (sizeof(Elem) == 4)
    if (stride == 1) return narrow_run(from, p, count);
  copy_run(from, 1, p, stride, count);
}

// Calls body(first pixel of the run within the tile, its offset, pixels) for each run of pixels that are
// `column` apart.
template <class Body>
VT_INLINE void for_each_run(int64_t width, int64_t batch, int64_t row, int64_t column, PixelRange range,
                            Body body) {
  for (int64_t done = 0; done < range.count;) {
    const int64_t pixel = range.first + done, y = pixel / width, x = pixel % width;
    const int64_t run = smaller(width - x, range.count - done);
    body(done, range.sample * batch + y * row + x * column, run);
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
  int64_t ld = 0, distance = 0;  // in place: between rows of a tile, between pixels
  bool in_place = false;
  Elem* buffer = nullptr;
  int64_t buffer_ld = 0;

  TiledMap(const Map& map, Use use, const Call& call, int64_t channels)
      : map(map), dtype(call.dtype), width(call.width), channels(channels) {
    const bool even = even_pixels(call.height, call.width, map.row, map.column, distance);
    const bool unit =
        pixels_innermost ? distance == 1 || call.height * call.width == 1 : map.channel == 1 || channels == 1;
    in_place = map.data && even && unit && dtype == N::dtype;
    ld = pixels_innermost ? map.channel : distance;
    // Rows that share a cache set would throw each other out between the products that read them.
    if (use == Use::read && pixels_innermost && channels > 8 && ld * (int64_t)sizeof(Elem) % 4096 == 0)
      in_place = false;
  }

  // Elements of a buffer for tiles of `pixels`, none of whose rows share a cache set.
  static int64_t buffer_row(int64_t channels, int64_t pixels) {
    return rounded_up(pixels_innermost ? pixels : channels, 64) + 64 / (int64_t)sizeof(Elem);
  }
  static int64_t buffer_size(int64_t channels, int64_t pixels) {
    return buffer_row(channels, pixels) * (pixels_innermost ? channels : pixels);
  }
  void take_buffer(Arena& arena, int64_t pixels) {
    buffer = arena.take<Elem>(buffer_size(channels, pixels)), buffer_ld = buffer_row(channels, pixels);
  }
  // A buffer for tiles that are not taken in place: some (`sometimes`, with masked pixels) or all.
  void take_buffer_if_needed(Arena& arena, int64_t pixels, bool sometimes = false) {
    if (map.data && (!in_place || sometimes)) take_buffer(arena, pixels);
  }

  Elem* at(PixelRange range) const {
    return (Elem*)map.data + range.sample * map.batch + range.first * distance;
  }

  // A tile to read. Pixels that `valid` (one byte each; none: all are) says are not become 0.
  View<const Elem> read(PixelRange range, const uint8_t* valid) const {
    if (in_place && !valid) return {at(range), ld};
    for_each_run(width, map.batch, map.row, map.column, range,
                 [&](int64_t first, int64_t offset, int64_t count) {
                   if (pixels_innermost)
                     for (int64_t c = 0; c < channels; c++)
                       gather(map.data, dtype, offset + c * map.channel, map.column,
                              buffer + c * buffer_ld + first, count);
                   else
                     for (int64_t i = 0; i < count; i++)
                       gather(map.data, dtype, offset + i * map.column, map.channel,
                              buffer + (first + i) * buffer_ld, channels);
                 });
    if (valid) clear_invalid({buffer, buffer_ld}, range.count, valid);
    return {buffer, buffer_ld};
  }

  // Where to put a tile of results, to be followed by `write`.
  View<Elem> target(PixelRange range) const {
    if (in_place) return {at(range), ld};
    return {buffer, buffer_ld};
  }
  void write(PixelRange range) const {
    if (!in_place) put(range, {buffer, buffer_ld});
  }
  // A tile from elsewhere to its place in the map.
  void put(PixelRange range, View<const Elem> tile) const {
    for_each_run(width, map.batch, map.row, map.column, range,
                 [&](int64_t first, int64_t offset, int64_t count) {
                   if (pixels_innermost)
                     for (int64_t c = 0; c < channels; c++)
                       scatter(tile.data + c * tile.ld + first, count, map.data, dtype,
                               offset + c * map.channel, map.column);
                   else
                     for (int64_t i = 0; i < count; i++)
                       scatter(tile.data + (first + i) * tile.ld, channels, map.data, dtype,
                               offset + i * map.column, map.channel);
                 });
  }

  void clear_invalid(View<Elem> tile, int64_t count, const uint8_t* valid) const {
    for (int64_t i = 0; i < count; i++)
      if (!valid[i])
        for (int64_t c = 0; c < channels; c++)
          tile.data[pixels_innermost ? c * tile.ld + i : i * tile.ld + c] = Elem{};
  }

  // How far the next tile in place lies ahead, to prefetch it.
  int64_t ahead(PixelRange range, Place next) const {
    if (!in_place) return 0;
    return (next.sample - range.sample) * map.batch + (next.first - range.first) * distance;
  }
  // Whether whole vectors written in place are aligned, from every multiple of `pixels` on.
  bool aligned(int64_t pixels) const {
    constexpr int64_t unit = VT_BYTES / sizeof(Elem);
    return in_place && (uintptr_t)map.data % VT_BYTES == 0 && ld % unit == 0 && map.batch % unit == 0 &&
           (!pixels_innermost || (distance == 1 && pixels % unit == 0));
  }
};
