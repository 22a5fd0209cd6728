// Checks how a float is multiplied in TF32. Prints what is wrong and returns 1, or returns 0.
#include "numbers.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

namespace {

using namespace vt;

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  ++failures;
  std::printf("%s\n", what);
}

float tf32(uint32_t bits) { return as_float(bits & 0xffffe000u); }

float random_float() {
  return std::ldexp(1.f + emulator::draw(1 << 23) * 0x1p-23f, static_cast<int>(emulator::draw(40)) - 20);
}

// A number of 24 bits is the sum of two with 11 each, the first one rounded to nearest: its last bit may be
// lost.
void check_parts() {
  double most = 0.;
  for (int i = 0; i < 10000; ++i) {
    const float x = random_float(), y = -random_float();
    const Pair<float> pair = Pair<float>::of(x, y);
    most = std::max(most, std::abs(double{x} - tf32(pair.first[0]) - tf32(pair.rest[0])) / x);
    most = std::max(most, std::abs(double{y} - tf32(pair.first[1]) - tf32(pair.rest[1])) / -y);
  }
  expect(most <= 0x1p-23, "more than the last bit is lost");
  constexpr float kMost = std::numeric_limits<float>::max();
  const Pair<float> large = Pair<float>::of(kMost, -kMost);
  expect(std::isfinite(tf32(large.first[0])) && std::isfinite(tf32(large.first[1])),
         "the largest number is rounded to infinity");
}

// One product of two numbers, with all others 0.
float product(float x, float y) {
  float result = 0.f;
  emulator::launch({1, 1}, 1, 32, 0, {}, [&] {
    Left<float> left{};
    Right<float> right{};
    if (thread() == 0) left.pairs[0] = Pair<float>::of(x, 0.f), right.pairs[0] = Pair<float>::of(y, 0.f);
    float sum[4] = {};
    multiply(sum, left, right);
    if (thread() == 0) result = sum[0];
  });
  return result;
}

void check_products() {
  double most = 0.;
  for (int i = 0; i < 1000; ++i) {
    const float x = random_float(), y = random_float();
    most = std::max(most, std::abs(product(x, y) / (double{x} * y) - 1.));
  }
  expect(most <= 3.5 * 0x1p-22, "a product is less exact than its parts");
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  expect(product(kInfinity, 1.5f) == kInfinity && product(-1.f / 3, kInfinity) == -kInfinity,
         "products with infinity");
  for (const uint32_t nan : {0x7fc00000u, 0x7f800001u, 0xffffffffu}) {
    expect(std::isnan(product(as_float(nan), 2.f)) && std::isnan(product(1.f, as_float(nan))),
           "products with NaN");
  }
}

}  // namespace

int main() {
  check_parts();
  check_products();
  return failures == 0 ? 0 : 1;
}
