// The numbers that maps hold, and what one step of a product is for each.
//
// A product multiplies `lanes`: a lane is a group of neighbouring elements that one instruction reduces,
// one element for float and double, two for bfloat16's dot product. Packed operands are arrays of lanes.

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

VT_INLINE float to_float(Bfloat16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

VT_INLINE Bfloat16 to_bfloat16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if (x != x) return {(uint16_t)(bits >> 16 | 0x40)};
  return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// Without subnormal numbers on the way, which a thread may have been told to take for 0.
VT_INLINE float to_float(Float16 x) {
  const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  uint32_t bits = (rest << 13) + (rest < 0x7c00 ? 112u << 23 : 224u << 23);
  float value;
  if (rest < 0x0400) {  // subnormal: 0.5 and so many of its units in the last place
    bits = 0x3f000000 + rest;
    __builtin_memcpy(&value, &bits, 4);
    value -= 0.5f;
    __builtin_memcpy(&bits, &value, 4);
  }
  bits |= sign;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

VT_INLINE Float16 to_float16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return {(uint16_t)(sign | 0x7e00)};
  if (bits >= 0x477ff000) return {(uint16_t)(sign | 0x7c00)};  // rounds to infinity
  if (bits < 0x38800000) {  // subnormal: adding 0.5 rounds to its unit in the last place
    float value;
    __builtin_memcpy(&value, &bits, 4);
    value += 0.5f;
    __builtin_memcpy(&bits, &value, 4);
    return {(uint16_t)(sign | (bits - 0x3f000000))};
  }
  return {(uint16_t)(sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13))};
}

VT_INLINE float to_float(float x) { return x; }
VT_INLINE double to_float(double x) { return x; }

template <class To>
struct Rounded {
  template <class From>
  static VT_INLINE To from(From x) {
    return (To)to_float(x);
  }
};
template <>
struct Rounded<Bfloat16> {
  static VT_INLINE Bfloat16 from(Bfloat16 x) { return x; }
  template <class From>
  static VT_INLINE Bfloat16 from(From x) {
    return to_bfloat16(to_float(x));
  }
};
template <>
struct Rounded<Float16> {
  template <class From>
  static VT_INLINE Float16 from(From x) {
    return to_float16(to_float(x));
  }
};

// Half as many 16-bit numbers as a vector has bytes, for conversions from and to a vector of float.
typedef uint16_t Vec16 __attribute__((vector_size(VT_BYTES / 2)));

VT_INLINE Vec<float> widen(const Bfloat16* p) {
  Vec16 v;
  __builtin_memcpy(&v, p, sizeof v);
  return (Vec<float>)(__builtin_convertvector(v, Vec<uint32_t>) << 16);
}

VT_INLINE void narrow(Bfloat16* p, Vec<float> x) {
  const Vec<uint32_t> bits = (Vec<uint32_t>)x;
  const Vec<uint32_t> rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Vec<uint32_t> quiet = (bits >> 16) | 0x40;
  const Vec16 v = __builtin_convertvector((Vec<uint32_t>)(x == x ? rounded : quiet), Vec16);
  __builtin_memcpy(p, &v, sizeof v);
}

VT_INLINE Vec<float> widen(const Float16* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  float part[lanes<float>];
  for (int i = 0; i < lanes<float>; i++) part[i] = to_float(p[i]);
  return load<float>(part);
#endif
}

VT_INLINE void narrow(Float16* p, Vec<float> x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < lanes<float>; i++) p[i] = to_float16(x[i]);
#endif
}

// float or double as they are.
template <class T, Dtype dtype_>
struct Plain {
  using Elem = T;
  using Acc = T;
  using Lane = T;
  using Packed = Vec<T>;
  static constexpr Dtype dtype = dtype_;
  static constexpr int group = 1;  // elements in a lane

  static VT_INLINE void madd(Vec<T>& acc, Packed a, Packed b) { acc += a * b; }

  // Two vectors of columns from one row of a map, the first `columns` of them where not all.
  template <bool part>
  static VT_INLINE void rows(const T* x, int64_t, bool, int64_t columns, Packed (&b)[2]) {
    load2<part>(x, columns, b);
  }
  // Sums over `rows` come out in the order of the columns.
  static VT_INLINE void in_order(Vec<T> (&)[2]) {}

  template <bool part>
  static VT_INLINE void load2(const T* x, int64_t columns, Vec<T> (&v)[2]) {
    constexpr int W = lanes<T>;
    if (part) {
      v[0] = columns >= W ? load<T>(x) : load_part(x, columns);
      v[1] = columns > W ? load_part(x + W, columns - W) : Vec<T>{};
    } else {
      v[0] = load<T>(x), v[1] = load<T>(x + W);
    }
  }
  template <bool part>
  static VT_INLINE void store2(T* x, int64_t columns, const Vec<T> (&v)[2], bool streaming) {
    constexpr int W = lanes<T>;
    if (part) {
      if (columns >= W)
        store<T>(x, v[0]);
      else
        store_part(x, v[0], columns);
      if (columns > W) store_part(x + W, v[1], columns - W);
    } else if (streaming) {
      store_streaming(x, v[0]), store_streaming(x + W, v[1]);
    } else {
      store<T>(x, v[0]), store<T>(x + W, v[1]);
    }
  }
};

using Single = Plain<float, Dtype::float32>;
using Double = Plain<double, Dtype::float64>;

#if defined(__AVX512BF16__)
VT_INLINE Vec<double> doubles(const Bfloat16* p) {
  const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
  return (Vec<double>)_mm512_cvtps_pd(_mm256_castsi256_ps(bits));
}

// bfloat16 pairs, reduced two at a time into float.
struct Brain {
  using Elem = Bfloat16;
  using Acc = float;
  using Lane = uint32_t;
  using Packed = Vec<uint32_t>;
  static constexpr Dtype dtype = Dtype::bfloat16;
  static constexpr int group = 2;

  static VT_INLINE void madd(Vec<float>& acc, Packed a, Packed b) {
    acc = (Vec<float>)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
  }

  static VT_INLINE __m512i load32(const Bfloat16* x, bool part, int64_t columns) {
    return part ? _mm512_maskz_loadu_epi16((__mmask32)((1ull << columns) - 1), x) : _mm512_loadu_si512(x);
  }
  // Two rows, interleaved: within each 128 bits, the low halves in b[0] and the high ones in b[1].
  template <bool part>
  static VT_INLINE void rows(const Bfloat16* x, int64_t ld, bool second, int64_t columns, Packed (&b)[2]) {
    const __m512i first = load32(x, part, columns);
    const __m512i other = second ? load32(x + ld, part, columns) : _mm512_setzero_si512();
    b[0] = (Packed)_mm512_unpacklo_epi16(first, other);
    b[1] = (Packed)_mm512_unpackhi_epi16(first, other);
  }
  static VT_INLINE void in_order(Vec<float> (&v)[2]) {
    const __m512i front = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i back = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    const __m512d low = (__m512d)v[0], high = (__m512d)v[1];
    v[0] = (Vec<float>)_mm512_permutex2var_pd(low, front, high);
    v[1] = (Vec<float>)_mm512_permutex2var_pd(low, back, high);
  }

  template <bool part>
  static VT_INLINE void load2(const Bfloat16* x, int64_t columns, Vec<float> (&v)[2]) {
    const __m512i all = load32(x, part, columns);
    v[0] = (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(all)), 16);
    v[1] = (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(all, 1)), 16);
  }
  template <bool part>
  static VT_INLINE void store2(Bfloat16* x, int64_t columns, const Vec<float> (&v)[2], bool streaming) {
    const __m512i all = (__m512i)_mm512_cvtne2ps_pbh((__m512)v[1], (__m512)v[0]);
    if (part)
      _mm512_mask_storeu_epi16(x, (__mmask32)((1ull << columns) - 1), all);
    else if (streaming)
      _mm512_stream_si512((__m512i*)x, all);
    else
      _mm512_storeu_si512(x, all);
  }
};
#endif
