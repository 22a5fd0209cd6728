// Checks the emulator: kernels with one fault each, which it must notice in every order of threads, the same
// kernels without the fault, which must pass, and results. Prints what is wrong and returns 1, or returns 0.
#include "fragments.h"
#include "memory_faults.h"
#include "thread_faults.h"

#include <cmath>
#include <stdexcept>
#include <vector>

namespace {

Report run(const Shape& shape, uint64_t seed, const std::function<void()>& body) {
  const Report report =
      emulator::launch(shape.grid, shape.cluster, shape.threads, kSharedBytes, {seed}, body);
  expect(report.fault.empty(), report.fault);
  return report;
}

// ---- fragments ----

// Small integers, which every type holds exactly.
int number(int row, int col) { return (row * 29 + col * 17 + row * col * 7) % 17 - 8; }
uint32_t bf16_bits(int value) { return as_bits(static_cast<float>(value)) >> 16; }
uint32_t fp16_bits(int value) {
  constexpr uint32_t kBits[] = {0x0000, 0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x4600, 0x4700, 0x4800};
  return value < 0 ? 0x8000 | kBits[-value] : kBits[value];
}
// What lies below TF32's 19 bits must not count.
uint32_t tf32_bits(int value) { return as_bits(static_cast<float>(value)) | 0x1fff; }

template <class Layout, class Bits, class Multiply>
void check_products(const std::string& name, const Bits& bits, const Multiply& multiply) {
  constexpr int kBitsEach = Layout::kA == 8 ? 16 : 32, kEach = 32 / kBitsEach;
  float results[16][8];
  run(kWarp, 1, [&] {
    const int laneid = thread();
    uint32_t a[4] = {}, b[2] = {};
    float d[4];
    for (int i = 0; i < Layout::kA; ++i) {
      const ptx::Position at = Layout::a(laneid, i);
      a[i / kEach] |= bits(number(at.row, at.col)) << (i % kEach * kBitsEach);
    }
    for (int i = 0; i < Layout::kB; ++i) {
      const ptx::Position at = Layout::b(laneid, i);
      b[i / kEach] |= bits(number(at.col + 3, at.row)) << (i % kEach * kBitsEach);
    }
    for (int i = 0; i < 4; ++i)
      d[i] = static_cast<float>(100 * ptx::c(laneid, i).row + ptx::c(laneid, i).col);
    multiply(d, a, b);
    for (int i = 0; i < 4; ++i) results[ptx::c(laneid, i).row][ptx::c(laneid, i).col] = d[i];
  });
  for (int row = 0; row < 16; ++row) {
    for (int col = 0; col < 8; ++col) {
      int sum = 100 * row + col;
      for (int k = 0; k < Layout::kDepth; ++k) sum += number(row, k) * number(col + 3, k);
      expect(results[row][col] == static_cast<float>(sum),
             name + ": element (" + std::to_string(row) + ", " + std::to_string(col) + ") of a product");
    }
  }
}

void check_ldmatrix(bool transposed) {
  // Rows lie anywhere: row r of matrix m at 16 * place(m, r).
  const auto place = [](int matrix, int row) { return (matrix * 8 + row) * 13 % 32; };
  uint32_t got[32][4];
  run(kWarp, 1, [&] {
    const int laneid = thread(), matrix = laneid / 8, row = laneid % 8;
    for (int col = 0; col < 8; ++col) {
      set_shared<uint16_t>(16 * place(matrix, row) + 2 * col,
                           static_cast<uint16_t>(matrix * 64 + row * 8 + col));
    }
    sync_warp();
    if (transposed) {
      ldmatrix_transposed(got[laneid], 16 * place(matrix, row));
    } else {
      ldmatrix(got[laneid], 16 * place(matrix, row));
    }
  });
  const auto& threads_of = transposed ? ptx::kLdmatrixTrans : ptx::kLdmatrix;
  for (int matrix = 0; matrix < 4; ++matrix) {
    for (int row = 0; row < 8; ++row) {
      for (int col = 0; col < 8; ++col) {
        // Of a thread's two elements, the one with the lower index along its row (or column) is in the lower
        // half.
        const int half = (transposed ? row : col) % 2;
        const uint32_t element = got[threads_of[row][col]][matrix] >> (16 * half) & 0xffff;
        expect(element == static_cast<uint32_t>(matrix * 64 + row * 8 + col),
               std::string("ldmatrix") + (transposed ? "_transposed" : "") + ": element (" +
                   std::to_string(row) + ", " + std::to_string(col) + ") of matrix " +
                   std::to_string(matrix));
      }
    }
  }
}

void check_stmatrix() {
  const auto place = [](int matrix, int row) { return (matrix * 8 + row) * 13 % 32; };
  uint16_t stored[4][8][8];
  run(kWarp, 1, [&] {
    const int laneid = thread(), matrix = laneid / 8, row = laneid % 8;
    uint32_t words[4] = {};
    for (int m = 0; m < 4; ++m) {
      for (int r = 0; r < 8; ++r) {
        for (int col = 0; col < 8; ++col) {
          if (ptx::kLdmatrix[r][col] == laneid)
            words[m] |= static_cast<uint32_t>(m * 64 + r * 8 + col) << 16 * (col % 2);
        }
      }
    }
    stmatrix(16 * place(matrix, row), words);
    sync_warp();
    for (int col = 0; col < 8; ++col)
      stored[matrix][row][col] = shared<uint16_t>(16 * place(matrix, row) + 2 * col);
  });
  for (int i = 0; i < 256; ++i) {
    expect(stored[i / 64][i / 8 % 8][i % 8] == i, "stmatrix: element " + std::to_string(i));
  }
}

void check_fragments() {
  check_products<ptx::M16n8k16>("bf16", bf16_bits, [](auto& d, auto& a, auto& b) { mma_bf16(d, a, b); });
  check_products<ptx::M16n8k16>("fp16", fp16_bits, [](auto& d, auto& a, auto& b) { mma_fp16(d, a, b); });
  check_products<ptx::M16n8k8>("tf32", tf32_bits, [](auto& d, auto& a, auto& b) { mma_tf32(d, a, b); });
  check_ldmatrix(false);
  check_ldmatrix(true);
  check_stmatrix();
}

// ---- numbers ----

// Whether narrowing rounds to nearest even: the two neighbours of each pair of numbers, and what lies
// between.
template <class Widen, class Narrow>
void check_rounding(const std::string& name, uint32_t infinity, const Widen& widen, const Narrow& narrow) {
  for (uint32_t bits = 0; bits + 1 < infinity; ++bits) {
    const float low = widen(bits), high = widen(bits + 1), middle = low + (high - low) / 2;
    const bool right = narrow(low) == bits && narrow(-low) == (0x8000 | bits) &&
                       narrow(middle) == (bits + 1) / 2 * 2 && narrow(std::nextafter(middle, 0.f)) == bits &&
                       narrow(std::nextafter(middle, high)) == bits + 1;
    if (right) continue;
    expect(false, name + " rounds wrongly after " + std::to_string(bits));
    return;
  }
  expect(narrow(INFINITY) == infinity && narrow(-INFINITY) == (0x8000 | infinity), name + ": infinity");
  expect(narrow(NAN) == 0x7fff && std::isnan(widen(0x7fff)), name + ": NaN");
  expect(widen(infinity) == INFINITY && widen(0x8000 | infinity) == -INFINITY, name + ": infinity, widened");
}

void check_numbers() {
  const auto low = [](auto pack) { return [pack](float value) { return pack(value, 1.f) & 0xffff; }; };
  check_rounding(
      "float16", 0x7c00, [](uint32_t bits) { return float_of_fp16(static_cast<uint16_t>(bits)); },
      low(pack_fp16));
  check_rounding("bfloat16", 0x7f80, [](uint32_t bits) { return as_float(bits << 16); }, low(pack_bf16));
  for (int bits = 0; bits < 0x7c00; ++bits) {
    const int exponent = bits >> 10, mantissa = bits & 0x3ff;
    const double value =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    expect(float_of_fp16(static_cast<uint16_t>(bits)) == value,
           "float16 " + std::to_string(bits) + ", widened");
  }
  expect(pack_fp16(65519.f, 65520.f) == 0x7c007bff, "float16 overflows to infinity");
  expect(pack_bf16(1.f, 2.f) == 0x40003f80 && pack_fp16(1.f, 2.f) == 0x40003c00,
         "the first number is the lower half");
  expect(power_of_two(-126.f) == 0x1p-126f && power_of_two(-127.f) == 0.f,
         "power_of_two flushes subnormal results");
}

// ---- what launches report ----

void check_counters() {
  emulator::forget();
  const emulator::Range& in = emulator::announce("input", input, 4 * kFloats, false);
  const emulator::Range& out = emulator::announce("output", output, 4 * kFloats, true);
  expect(&emulator::announce("again", input, 4 * kFloats, false) == &in,
         "operands that are the same share a range");
  for (int i = 0; i < kFloats; ++i) input[i] = static_cast<float>(i);
  for (int repeat = 1; repeat <= 2; ++repeat) {
    const Report report = run({{2, 1}, 1, 64}, 1, [] {
      const float* from = input + 128 * block_x();
      if (thread() < 32) copy_async<16>(16 * thread(), from + 4 * thread(), thread() < 31 ? 16 : 4);
      copy_commit();
      copy_wait<0>();
      sync_block();
      const float biased = get(thread()) + get(64 + thread()) + global(input);
      sync_block();
      set_global(output + 64 * block_x() + thread(), biased);
    });
    const emulator::Counters& counters = report.counters;
    expect(counters.bytes_copied == 2 * (31 * 16 + 4) && counters.bytes_read == 4 * 128 &&
               counters.bytes_written == 4 * 128,
           "bytes of a launch");
    expect(counters.barriers == 4 && counters.cluster_barriers == 0, "barriers of a launch");
    expect(in.bytes_copied == repeat * counters.bytes_copied &&
               in.bytes_read == repeat * counters.bytes_read && in.bytes_written == 0 &&
               out.bytes_written == repeat * counters.bytes_written && out.bytes_read == 0,
           "bytes of a range");
    expect(out.bytes_covered == 4 * 128 && out.bytes() == 4 * kFloats, "bytes of a range that were written");
  }
  for (int i = 0; i < 128; ++i) {
    const int from = i / 64 * 128 + i % 64;
    expect(output[i] == static_cast<float>(from + (i % 64 <= 60 ? from + 64 : 0)),
           "element " + std::to_string(i) + " of copies, the rest of which is 0");
  }

  const auto passes = [](int stride) {
    return run(kWarp, 1,
               [=] {
                 uint32_t r[4];
                 ldmatrix(r, stride * thread());
               })
        .counters;
  };
  expect(passes(16).ldmatrix_reads == 4 && passes(16).ldmatrix_passes == 4,
         "ldmatrix of rows in different banks");
  expect(passes(80).ldmatrix_passes == 4 && passes(32).ldmatrix_passes == 8 &&
             passes(64).ldmatrix_passes == 16 && passes(128).ldmatrix_passes == 32,
         "ldmatrix of rows in the same banks");
  expect(passes(0).ldmatrix_passes == 4, "ldmatrix of the same row");

  bool refused = false;
  try {
    emulator::announce("overlap", input + 1, 4, false);
  } catch (const std::logic_error&) {
    refused = true;
  }
  expect(refused, "ranges that overlap are refused");
  expect(!emulator::launch({3, 1}, 2, 32, 0, {}, [] {}).fault.empty(),
         "a cluster that does not divide the grid");
}

void check_clusters_share() {
  std::vector<float> sums(8);
  emulator::forget();
  emulator::announce("sums", sums.data(), 4 * sums.size(), true);
  run({{8, 1}, 4, 64}, 1, [&] {
    set_own(static_cast<float>(100 * cluster_rank() + thread()));
    sync_cluster();
    float sum = 0.f;
    for (int rank = 0; rank < cluster_size(); ++rank) sum += shared_of(rank, 4 * 33);
    sync_cluster();
    if (thread() == 0) set_global(sums.data() + block_x(), sum);
  });
  for (const float sum : sums) expect(sum == 600.f + 4 * 33, "sum over a cluster");
}

void check_exchange() {
  run(kTwoWarps, 1, [] {
    const int lane = thread() % 32;
    for (const int mask : {0, 1, 4, 16, 31}) {
      const float got = shuffle_xor(static_cast<float>(thread()), mask);
      expect(got == static_cast<float>(thread() ^ mask), "shuffle_xor " + std::to_string(mask));
    }
    expect(ballot(lane % 3 == 0) == 0x49249249, "ballot");
    expect(ballot(thread() < 32) == (thread() < 32 ? 0xffffffff : 0), "ballot of a warp");
  });
}

void check_order() {
  const auto order = [](uint64_t seed) {
    std::vector<int> threads_run;
    run({{2, 1}, 1, 64}, seed, [&] {
      for (int i = 0; i < 3; ++i) {
        threads_run.push_back(64 * block_x() + thread());
        sync_warp();
      }
    });
    return threads_run;
  };
  expect(order(1).size() == 2 * 64 * 3, "every thread runs");
  expect(order(1) == order(1), "a seed gives the same order again");
  expect(order(1) != order(2) && order(2) != order(3), "seeds give different orders");
  run(kWarp, 1, [] { expect(std::isnan(get(thread())), "shared memory starts as NaN"); });
}

}  // namespace

int main() {
  check_races();
  check_copies();
  check_bounds();
  check_divergence();
  check_clusters();
  check_blocks();
  check_fragments();
  check_numbers();
  check_counters();
  check_clusters_share();
  check_exchange();
  check_order();
  return failures == 0 ? 0 : 1;
}
