// The number types of maps, and one step of a product for each.
//
// A product multiplies lanes: a lane is a group of neighbouring elements that one instruction reduces, one
// element for float and double, two for bfloat16's dot product. Packed operands are arrays of lanes.
#pragma once

#include "call.h"
#include "simd.h"

namespace vt::VT_NAMESPACE {
namespace {

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

// Without subnormal intermediate results, which a thread may be set to flush to 0.
VT_INLINE float to_float(Float16 x) {
  const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  uint32_t bits = (rest << 13) + (rest < 0x7c00 ? 112u << 23 : 224u << 23);
  float value;
  if (rest < 0x0400) {  // subnormal: 0.5 plus that many units in the last place of 0.5, minus 0.5
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

// As many 16-bit numbers as a vector has floats, for conversions.
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

// float or double.
template <class T, Dtype dtype_>
struct Plain {
  using Elem = T;
  using Acc = T;
  using Lane = T;
  using Packed = Vec<T>;
  static constexpr Dtype dtype = dtype_;
  static constexpr int group = 1;  // elements in a lane

  static VT_INLINE void madd(Vec<T>& acc, Packed a, Packed b) { acc += a * b; }

  // Loads vectors of columns from one row of a tile; with `part`, only the first `columns`.
  template <int vectors, bool part>
  static VT_INLINE void rows(const T* x, int64_t, bool, int64_t columns, Packed (&b)[vectors]) {
    base<vectors, part>(x, columns, b);
  }
  // Puts sums over what `rows` loaded into the order of the columns: they are.
  template <int vectors>
  static VT_INLINE void in_order(Vec<T> (&)[vectors]) {}

  // Loads the columns of a tile's row that expand adds to; `put` stores its results.
  template <int vectors, bool part>
  static VT_INLINE void base(const T* x, int64_t columns, Vec<T> (&v)[vectors]) {
    constexpr int W = lanes<T>;
    VT_UNROLL
    for (int i = 0; i < vectors; i++) {
      const bool whole = !part || columns >= (i + 1) * W;
      v[i] = whole ? load<T>(x + i * W) : columns > i * W ? load_part(x + i * W, columns - i * W) : Vec<T>{};
    }
  }
  template <int vectors, bool part>
  static VT_INLINE void put(T* x, int64_t columns, const Vec<T> (&v)[vectors], bool streaming) {
    constexpr int W = lanes<T>;
    VT_UNROLL
    for (int i = 0; i < vectors; i++) {
      if (part && columns < (i + 1) * W) {
        if (columns > i * W) store_part(x + i * W, v[i], columns - i * W);
      } else if (!part && streaming) {
        store_streaming(x + i * W, v[i]);
      } else {
        store<T>(x + i * W, v[i]);
      }
    }
  }
};

using Float32 = Plain<float, Dtype::float32>;
using Float64 = Plain<double, Dtype::float64>;

#if defined(__AVX512BF16__)
VT_INLINE Vec<double> doubles(const Bfloat16* p) {
  const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
  return (Vec<double>)_mm512_cvtps_pd(_mm256_castsi256_ps(bits));
}

// bfloat16 in pairs, whose dot products are summed in float.
struct Bfloat16Pairs {
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
  static VT_INLINE __m512i widen16(const Bfloat16* x, int64_t columns) {
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16((__mmask16)((1u << columns) - 1), x));
  }
  // Two rows, interleaved: within each 128 bits, the low halves in b[0] and the high halves in b[1]. The last
  // up to 16 columns are one vector, in order.
  template <int vectors, bool part>
  static VT_INLINE void rows(const Bfloat16* x, int64_t ld, bool second, int64_t columns,
                             Packed (&b)[vectors]) {
    if constexpr (vectors == 2) {
      const __m512i first = load32(x, part, columns);
      const __m512i other = second ? load32(x + ld, part, columns) : _mm512_setzero_si512();
      b[0] = (Packed)_mm512_unpacklo_epi16(first, other);
      b[1] = (Packed)_mm512_unpackhi_epi16(first, other);
    } else {
      const __m512i other = second ? widen16(x + ld, columns) : _mm512_setzero_si512();
      b[0] = (Packed)_mm512_or_si512(widen16(x, columns), _mm512_slli_epi32(other, 16));
    }
  }
  template <int vectors>
  static VT_INLINE void in_order(Vec<float> (&v)[vectors]) {
    if constexpr (vectors == 2) {
      const __m512i front = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
      const __m512i back = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
      const __m512d low = (__m512d)v[0], high = (__m512d)v[1];
      v[0] = (Vec<float>)_mm512_permutex2var_pd(low, front, high);
      v[1] = (Vec<float>)_mm512_permutex2var_pd(low, back, high);
    }
  }

  // The even ones of 32 columns in v[0] and the odd ones in v[1], which takes no shuffle; up to 16 columns in
  // order.
  template <int vectors, bool part>
  static VT_INLINE void base(const Bfloat16* x, int64_t columns, Vec<float> (&v)[vectors]) {
    if constexpr (vectors == 2) {
      const Vec<uint32_t> all = (Vec<uint32_t>)load32(x, part, columns);
      v[0] = (Vec<float>)(all << 16), v[1] = (Vec<float>)(all & 0xffff0000u);
    } else {
      v[0] = (Vec<float>)_mm512_slli_epi32(widen16(x, columns), 16);
    }
  }
  template <int vectors, bool part>
  static VT_INLINE void put(Bfloat16* x, int64_t columns, const Vec<float> (&v)[vectors], bool streaming) {
    if constexpr (vectors == 2) {
      const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                                  8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
      const __m512i all = _mm512_permutexvar_epi16(interleave, rounded(v[0], v[1]));
      if (part)
        _mm512_mask_storeu_epi16(x, (__mmask32)((1ull << columns) - 1), all);
      else if (streaming)
        _mm512_stream_si512((__m512i*)x, all);
      else
        _mm512_storeu_si512(x, all);
    } else {
      const __m256i all = (__m256i)_mm512_cvtneps_pbh((__m512)v[0]);
      _mm256_mask_storeu_epi16(x, (__mmask16)((1u << columns) - 1), all);
    }
  }

  // Two vectors in order, rounded. `round` also returns the rounded values in v.
  static VT_INLINE __m512i rounded(Vec<float> low, Vec<float> high) {
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  }
  static VT_INLINE void round(Bfloat16* x, Vec<float> (&v)[2]) {
    const __m512i all = rounded(v[0], v[1]);
    _mm512_storeu_si512(x, all);
    v[0] = (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(all)), 16);
    v[1] = (Vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(all, 1)), 16);
  }
};
#endif

}  // namespace
}  // namespace vt::VT_NAMESPACE
