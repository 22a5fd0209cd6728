// Numbers: conversions and functions, as PTX defines them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulator {

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

inline float float_of_bf16(uint16_t bits) { return as_float(static_cast<uint32_t>(bits) << 16); }

inline float float_of_fp16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16,
                 rest = static_cast<uint32_t>(bits & 0x7fff) << 13;
  if ((bits & 0x7c00) == 0x7c00) return as_float(sign | 0x7f800000u | rest);
  return as_float(sign | as_bits(as_float(rest) * 0x1p112f));  // exponents differ by 112, also of subnormals
}

// Conversions round to nearest even. NaN has one form.
inline uint16_t bf16_of(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint32_t bits = as_bits(value);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline uint16_t fp16_of(float value) {
  if (std::isnan(value)) return 0x7fff;
  const uint32_t sign = as_bits(value) >> 16 & 0x8000;
  const uint32_t rest = as_bits(value) & 0x7fffffffu;
  uint32_t result = (rest + 0xfff + (rest >> 13 & 1) - (112u << 23)) >> 13;
  if (rest >= as_bits(65520.f)) result = 0x7c00;  // half of the way from the largest number to the next power
  // Below the smallest normal number the unit is 2^-24, that of 0.5f: adding rounds to it.
  if (rest < as_bits(0x1p-14f)) result = as_bits(as_float(rest) + 0.5f) - as_bits(0.5f);
  return static_cast<uint16_t>(sign | result);
}

inline uint32_t pack_bf16(float low, float high) {
  return bf16_of(low) | static_cast<uint32_t>(bf16_of(high)) << 16;
}
inline uint32_t pack_fp16(float low, float high) {
  return fp16_of(low) | static_cast<uint32_t>(fp16_of(high)) << 16;
}

// Flushes subnormal results, like ex2.approx.ftz.
inline float power_of_two(float x) {
  const float result = std::exp2(x);
  return result < 0x1p-126f ? 0.f : result;
}
inline float logarithm(float x) { return std::log(x); }
inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }

}  // namespace emulator
