// Vectors of the width that the including file is compiled for, in the vector extensions of GCC and clang.
#pragma once

#include <cstdint>
#include <utility>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

// The instruction set that the compiler's flags select: the bytes of a vector, and a namespace of its own, so
// that no two instruction sets share a symbol.
#if defined(__AVX512BF16__)
#define VT_BYTES 64
#define VT_NAMESPACE avx512_bf16
#elif defined(__AVX512F__)
#define VT_BYTES 64
#define VT_NAMESPACE avx512
#elif defined(__AVX2__)
#define VT_BYTES 32
#define VT_NAMESPACE avx2
#else
#define VT_BYTES 16
#define VT_NAMESPACE baseline
#endif

#define VT_INLINE inline __attribute__((always_inline))
#if defined(__clang__)
#define VT_UNROLL _Pragma("clang loop unroll(full)")
#else
#define VT_UNROLL _Pragma("GCC unroll 64")
#endif

namespace vt::VT_NAMESPACE {
namespace {

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(VT_BYTES)));
};
template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
constexpr int lanes = VT_BYTES / sizeof(T);

// A vector of `count` numbers, for conversions between widths.
template <class T, int count>
struct Few {
  typedef T type __attribute__((vector_size(count * sizeof(T))));
};

// The lower half of a vector.
template <class T>
using Half = typename Few<T, lanes<T> / 2>::type;
template <class T>
VT_INLINE Half<T> lower_half(Vec<T> v) {
  Half<T> half;
  __builtin_memcpy(&half, &v, sizeof half);
  return half;
}

template <class T>
constexpr VT_INLINE T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr VT_INLINE T larger(T a, T b) {
  return a < b ? b : a;
}
constexpr VT_INLINE int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr VT_INLINE int64_t rounded_up(int64_t a, int64_t b) { return divided_up(a, b) * b; }

template <class T>
VT_INLINE Vec<T> load(const void* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
VT_INLINE void store(void* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// x in every lane. Subtracting 0 changes no bit, and compilers recognise a broadcast.
template <class T>
VT_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};
}

// The first n elements, then zeros.
template <class T>
VT_INLINE Vec<T> load_part(const T* p, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_epi32((__mmask16)((1u << n) - 1), p);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_maskz_loadu_epi64((__mmask8)((1u << n) - 1), p);
#endif
  T part[lanes<T>] = {};
  for (int64_t i = 0; i < n; i++) part[i] = p[i];
  return load<T>(part);
}

template <class T>
VT_INLINE void store_part(T* p, Vec<T> v, int64_t n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_epi32(p, (__mmask16)((1u << n) - 1), (__m512i)v);
  if constexpr (sizeof(T) == 8) return _mm512_mask_storeu_epi64(p, (__mmask8)((1u << n) - 1), (__m512i)v);
#endif
  T part[lanes<T>];
  store<T>(part, v);
  for (int64_t i = 0; i < n; i++) p[i] = part[i];
}

// Stores past the caches. p is aligned to the vector.
template <class T>
VT_INLINE void store_streaming(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#elif defined(__SSE2__)
  _mm_stream_si128((__m128i*)p, (__m128i)v);
#else
  store<T>(p, v);
#endif
}
VT_INLINE void fence_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <class T>
VT_INLINE void prefetch(const T* p) {
  __builtin_prefetch(p, 0, 2);
}
// Where the compiler's flags allow it, the line also becomes this core's own.
template <class T>
VT_INLINE void prefetch_for_writing(const T* p) {
  __builtin_prefetch(p, 1, 2);
}

// Loads as many numbers as a vector has doubles.
VT_INLINE Vec<double> doubles(const double* p) { return load<double>(p); }
VT_INLINE Vec<double> doubles(const float* p) {
#if defined(__AVX512F__)  // GCC compiles the general form to two conversions and an insertion
  return (Vec<double>)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#else
  typename Few<float, lanes<double>>::type v;
  __builtin_memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Vec<double>);
#endif
}

// A NaN in `a` is dropped, one in `b` is the result: callers that must keep the first check for it.
template <class T>
VT_INLINE Vec<T> max_of(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

// Lane i of the result is lane i + half of v, for the lower lanes.
template <int half, class V, int... lane>
VT_INLINE V upper_half(V v, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(v, v, (lane < half ? lane + half : lane)...);
}
template <class T, int half = lanes<T> / 2>
VT_INLINE T highest(Vec<T> v) {
  if constexpr (half == 0)
    return v[0];
  else
    return highest<T, half / 2>(
        max_of<T>(v, upper_half<half>(v, std::make_integer_sequence<int, lanes<T>>())));
}
// The sum of the lanes, in a fixed order.
template <class T, int half = lanes<T> / 2>
VT_INLINE T total(Vec<T> v) {
  if constexpr (half == 0)
    return v[0];
  else
    return total<T, half / 2>(v + upper_half<half>(v, std::make_integer_sequence<int, lanes<T>>()));
}

// e^x to about one unit in the last place; 0 where the result would be subnormal. NaN stays NaN.
VT_INLINE Vec<float> exponential(Vec<float> x) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec<float> shifted = x * 1.44269504088896341f + magic;
  const Vec<float> k = shifted - magic;
  Vec<float> r = x - k * 0.693359375f;
  r = r - k * -2.12194440e-4f;
  Vec<float> p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Vec<uint32_t> bits = (Vec<uint32_t>)p + ((Vec<uint32_t>)shifted << 23);
  const Vec<float> scaled = x <= splat(88.0f) ? (Vec<float>)bits : x + __builtin_inff();
  return x < splat(-87.3f) ? Vec<float>{} : scaled;
}

VT_INLINE Vec<double> exponential(Vec<double> x) {
  constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  const Vec<double> shifted = x * 1.4426950408889634 + magic;
  const Vec<double> k = shifted - magic;
  Vec<double> r = x - k * 6.93145751953125e-1;
  r = r - k * 1.42860682030941723212e-6;
  const Vec<double> s = r * r;
  Vec<double> p = splat(1.26177193074810590878e-4);
  p = p * s + 3.02994407707441961300e-2;
  p = (p * s + 9.99999999999999999910e-1) * r;
  Vec<double> q = splat(3.00198505138664455042e-6);
  q = q * s + 2.52448340349684104192e-3;
  q = q * s + 2.27265548208155028766e-1;
  q = q * s + 2.0;
  p = 1.0 + 2.0 * (p / (q - p));
  const Vec<uint64_t> bits = (Vec<uint64_t>)p + ((Vec<uint64_t>)shifted << 52);
  const Vec<double> scaled = x <= splat(709.0) ? (Vec<double>)bits : x + __builtin_inf();
  return x < splat(-708.0) ? Vec<double>{} : scaled;
}

// Exchanges the lanes of a and b so that, over all pairs of a stage, bit `stage` of the vector's index and of
// the lane's index are swapped.
template <int stage, class V, int... lane>
VT_INLINE void exchange(V& a, V& b, std::integer_sequence<int, lane...>) {
  constexpr int width = sizeof...(lane);
  const V low = __builtin_shufflevector(a, b, ((lane & stage) ? width + lane - stage : lane)...);
  const V high = __builtin_shufflevector(a, b, ((lane & stage) ? width + lane : lane + stage)...);
  a = low, b = high;
}

// Transposes count x count blocks of lanes of count vectors.
template <class T, int count, int stage = 1>
VT_INLINE void transpose_lanes(Vec<T> (&v)[count]) {
  if constexpr (stage < count) {
    VT_UNROLL
    for (int i = 0; i < count; i++)
      if (!(i & stage)) exchange<stage>(v[i], v[i | stage], std::make_integer_sequence<int, lanes<T>>());
    transpose_lanes<T, count, 2 * stage>(v);
  }
}

// Lane i of the result is vector i reduced by `combine`. The chain of steps is as long as for one vector, and
// is waited for once.
template <class T, int stage = 1, class Combine>
VT_INLINE Vec<T> reduce_each(Vec<T> (&v)[lanes<T>], Combine combine) {
  if constexpr (stage < lanes<T>) {
    VT_UNROLL
    for (int i = 0; i < lanes<T>; i += 2 * stage) {
      exchange<stage>(v[i], v[i + stage], std::make_integer_sequence<int, lanes<T>>());
      v[i] = combine(v[i], v[i + stage]);
    }
    return reduce_each<T, 2 * stage>(v, combine);
  }
  return v[0];
}
template <class T>
VT_INLINE Vec<T> highest_each(Vec<T> (&v)[lanes<T>]) {
  return reduce_each<T>(v, [](Vec<T> a, Vec<T> b) { return max_of<T>(a, b); });
}
template <class T>
VT_INLINE Vec<T> total_each(Vec<T> (&v)[lanes<T>]) {
  return reduce_each<T>(v, [](Vec<T> a, Vec<T> b) { return a + b; });
}

// to[j][i] = from[i][j] for i < rows, j < columns. Reads and writes whole vectors: both matrices have room
// for rows and columns rounded up to the vector's lanes.
template <class T>
void transpose(const T* from, int64_t from_ld, int64_t rows, int64_t columns, T* to, int64_t to_ld) {
  constexpr int W = lanes<T>;
  for (int64_t i = 0; i < rows; i += W)
    for (int64_t j = 0; j < columns; j += W) {
      Vec<T> v[W];
      VT_UNROLL
      for (int k = 0; k < W; k++) v[k] = load<T>(from + (i + k) * from_ld + j);
      transpose_lanes<T, W>(v);
      VT_UNROLL
      for (int k = 0; k < W; k++) store<T>(to + (j + k) * to_ld + i, v[k]);
    }
}

}  // namespace
}  // namespace vt::VT_NAMESPACE
