// Elements of maps and rows, and the fragments of matrices that a warp multiplies.
//
// A product is 16 x 16 times 16 x 8, with sums in float. Lane 4 g + t holds pairs of elements that are
// neighbours along the dimension that is summed over. bfloat16 and float16 take one instruction; float takes
// six in TF32: each number is split into its first 11 bits and the next ones (3xTF32), so that the error is
// of the order of float's.
#pragma once

#include "device.h"

namespace vt {

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

constexpr float kLog2e = 1.44269504088896f, kLn2 = 0.693147180559945f;
VT_DEVICE float minus_infinity() { return -__builtin_huge_valf(); }
// What logits are relative to: their maximum, or 0 where there is none.
VT_DEVICE float reference_of(float highest) { return highest == minus_infinity() ? 0.f : highest; }
// NaN wins.
VT_DEVICE float larger(float a, float b) { return !(a <= b) ? a : b; }

// The logarithm of a sum of weights relative to 2^highest. With an infinite logit, weights are NaN.
VT_DEVICE float lse_of(float highest, float total) {
  if (total == 0.f) return minus_infinity();
  return highest == -minus_infinity() ? highest : highest * kLn2 + logarithm(total);
}

// A sum of weights that is 0 although some pixel takes part, since all logits are -inf: tokens are NaN then,
// and 0 where no pixel takes part.
VT_DEVICE float empty_sum() { return -0.f; }
VT_DEVICE bool is_empty_sum(float total) { return as_bits(total) == 0x80000000u; }
VT_DEVICE float inverse_of(float total) {
  return total == 0.f && !is_empty_sum(total) ? 0.f
         : is_empty_sum(total)                ? as_float(0x7fc00000u)
                                              : 1.f / total;
}

// ---- one number ----

VT_DEVICE float widen(float value) { return value; }
VT_DEVICE float widen(Bf16 value) { return as_float(static_cast<uint32_t>(value.bits) << 16); }
VT_DEVICE float widen(Fp16 value) { return float_of_fp16(value.bits); }

template <class T>
VT_DEVICE T narrow(float value);
template <>
VT_DEVICE float narrow<float>(float value) {
  return value;
}
template <>
VT_DEVICE Bf16 narrow<Bf16>(float value) {
  return {static_cast<uint16_t>(pack_bf16(value, 0.f) & 0xffff)};
}
template <>
VT_DEVICE Fp16 narrow<Fp16>(float value) {
  return {static_cast<uint16_t>(pack_fp16(value, 0.f) & 0xffff)};
}

// ---- two neighbours ----

template <class T>
struct Couple {  // in memory, aligned to its size
  uint32_t bits;
};
template <>
struct alignas(8) Couple<float> {
  float x, y;
};

VT_DEVICE Couple<Bf16> couple(Bf16, float x, float y) { return {pack_bf16(x, y)}; }
VT_DEVICE Couple<Fp16> couple(Fp16, float x, float y) { return {pack_fp16(x, y)}; }
VT_DEVICE Couple<float> couple(float, float x, float y) { return {x, y}; }

VT_DEVICE Couple<float> widen(Couple<float> two) { return two; }
VT_DEVICE Couple<float> widen(Couple<Bf16> two) {
  return {as_float(two.bits << 16), as_float(two.bits & 0xffff0000u)};
}
VT_DEVICE Couple<float> widen(Couple<Fp16> two) {
  return {float_of_fp16(static_cast<uint16_t>(two.bits)),
          float_of_fp16(static_cast<uint16_t>(two.bits >> 16))};
}

// Two elements of a fragment.
template <class T>
struct Pair {
  uint32_t bits;

  static VT_DEVICE Pair of(T x, T y) { return {x.bits | static_cast<uint32_t>(y.bits) << 16}; }
  static VT_DEVICE Pair of(Couple<T> two) { return {two.bits}; }
  VT_DEVICE void keep(bool x, bool y) { bits &= (x ? 0xffffu : 0u) | (y ? 0xffff0000u : 0u); }
};
template <>
struct Pair<float> {
  uint32_t first[2], rest[2];

  static VT_DEVICE Pair of(float x, float y) {
    Pair pair;
    pair.set(0, x);
    pair.set(1, y);
    return pair;
  }
  static VT_DEVICE Pair of(Couple<float> two) { return of(two.x, two.y); }
  VT_DEVICE void keep(bool x, bool y) {
    if (!x) first[0] = rest[0] = 0u;
    if (!y) first[1] = rest[1] = 0u;
  }

 private:
  // `first` is rounded to nearest. The product cuts off the last bits of `rest`, of which at most one is set:
  // rounding it would be no more exact. What is not finite is all rest: as the first part it would meet a
  // rest of 0, and infinity times 0 is NaN.
  VT_DEVICE void set(int index, float value) {
    const uint32_t bits = as_bits(value);
    const uint32_t rounded = (bits + 0x1000u) & 0xffffe000u;
    const bool large = (rounded & 0x7f800000u) == 0x7f800000u;  // infinity, NaN, or rounded to infinity
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    first[index] = !large ? rounded : finite ? bits & 0xffffe000u : 0u;
    rest[index] = finite                       ? as_bits(value - as_float(first[index]))
                  : (bits & 0x007fffffu) != 0u ? 0x7fc00000u
                                               : bits;
  }
};

// ---- fragments ----

// 16 x 16: pair i holds row g + 8 (i % 2) and columns 2 t + 8 (i / 2) and the next.
template <class T>
struct Left {
  Pair<T> pairs[4];
};

// 16 x 8: pair i holds rows 2 t + 8 i and the next, and column g.
template <class T>
struct Right {
  Pair<T> pairs[2];
};

// sum += left * right; sum[i] is that of row g + 8 (i / 2) and column 2 t + i % 2.
VT_DEVICE void multiply(float (&sum)[4], const Left<Bf16>& left, const Right<Bf16>& right) {
  const uint32_t a[4] = {left.pairs[0].bits, left.pairs[1].bits, left.pairs[2].bits, left.pairs[3].bits};
  const uint32_t b[2] = {right.pairs[0].bits, right.pairs[1].bits};
  mma_bf16(sum, a, b);
}
VT_DEVICE void multiply(float (&sum)[4], const Left<Fp16>& left, const Right<Fp16>& right) {
  const uint32_t a[4] = {left.pairs[0].bits, left.pairs[1].bits, left.pairs[2].bits, left.pairs[3].bits};
  const uint32_t b[2] = {right.pairs[0].bits, right.pairs[1].bits};
  mma_fp16(sum, a, b);
}
VT_DEVICE void multiply(float (&sum)[4], const Left<float>& left, const Right<float>& right) {
  // A product of 16 x 8 times 8 x 8 takes columns t and t + 4: here these are the two numbers of a pair. The
  // order of columns does not matter as long as both sides have the same one. Small terms come first.
  VT_UNROLL
  for (int half = 0; half < 2; ++half) {
    const Pair<float>&a0 = left.pairs[2 * half], &a1 = left.pairs[2 * half + 1], &b = right.pairs[half];
    const uint32_t a[4] = {a0.first[0], a1.first[0], a0.first[1], a1.first[1]};
    const uint32_t a_rest[4] = {a0.rest[0], a1.rest[0], a0.rest[1], a1.rest[1]};
    mma_tf32(sum, a_rest, b.first);
    mma_tf32(sum, a, b.rest);
    mma_tf32(sum, a, b.first);
  }
}

}  // namespace vt
