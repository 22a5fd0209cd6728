// What a CPU can do at best: streaming through memory, chains of multiply-adds, and its clock. The file
// stands alone and is compiled once for each instruction set, which the compiler's flags choose. With DOTS,
// the multiply-adds are dot products of bf16, and with TILES those of AMX.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include <sched.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#else
#error "benchmarks/probe.cpp knows x86-64 and aarch64 only"
#endif
#if defined(TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
typedef uint32_t Words __attribute__((vector_size(BYTES)));
typedef float Floats __attribute__((vector_size(BYTES)));

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  asm volatile("yield");
#endif
}

// Seconds of each pass of body(thread, pass), from when all threads have arrived until all are done. False if
// a thread could not be put on its CPU. The caller's own thread only waits, so its affinity stays as it is.
// The others wait for each other without sleeping, since a pass may take microseconds.
template <class Body>
bool timed(const int* cpus, int threads, int passes, double* seconds, const Body& body) {
  std::atomic<bool> pinned{true};
  std::atomic<long> arrived{0};
  const auto work = [&](int thread) {
    cpu_set_t cpu;
    CPU_ZERO(&cpu);
    CPU_SET(cpus[thread], &cpu);
    if (sched_setaffinity(0, sizeof cpu, &cpu) != 0) pinned = false;
    const auto meet = [&](long times) {
      ++arrived;
      while (arrived < times * threads) pause();
    };
    for (int pass = 0; pass < passes; ++pass) {
      meet(2 * pass + 1);
      const double start = now();
      body(thread, pass);
      meet(2 * pass + 2);
      if (thread == 0) seconds[pass] = now() - start;
    }
  };
  std::vector<std::thread> workers;
  for (int thread = 0; thread < threads; ++thread) workers.emplace_back(work, thread);
  for (std::thread& worker : workers) worker.join();
  return pinned;
}

constexpr size_t UNIT = 256;  // bytes

void store(char* to, Words value, bool past_caches) {
#if defined(__AVX512F__)
  if (past_caches) return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)value);
#elif defined(__AVX2__)
  if (past_caches) return _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)value);
#elif defined(__x86_64__)
  if (past_caches) return _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)value);
#else
  (void)past_caches;
#endif
  *reinterpret_cast<Words*>(to) = value;
}

// Writes a, or a + b, or a constant; without writes, adds a to the sums. It does so at several places of the
// buffers at the same time, the lanes.
template <int READS, int WRITES, bool PAST_CACHES>
void walk(const char* a, const char* b, char* to, size_t bytes, int lanes, bool backwards, Words* sums) {
  const size_t part = bytes / lanes, units = part / UNIT;
  Words sum[4] = {sums[0], sums[1], sums[2], sums[3]};
  for (size_t unit = 0; unit < units; ++unit) {
    const size_t place = (backwards ? units - 1 - unit : unit) * UNIT;
    for (int lane = 0; lane < lanes; ++lane) {
#pragma GCC unroll 16
      for (size_t step = 0; step < UNIT / BYTES; ++step) {
        const size_t at = lane * part + place + step * BYTES;
        Words value = Words{} + 7u;
        if (READS > 0) value = *reinterpret_cast<const Words*>(a + at);
        if (READS > 1) value += *reinterpret_cast<const Words*>(b + at);
        if (WRITES) {
          store(to + at, value, PAST_CACHES);
        } else {
          sum[step % 4] += value;
        }
      }
    }
  }
  for (int i = 0; i < 4; ++i) sums[i] = sum[i];
}

#if defined(TILES)
// Products of tiles of 16 x 32 and 32 x 16.
constexpr double FLOPS = 4 * 2 * 16 * 16 * 32;

bool allowed() { return syscall(SYS_arch_prctl, /* ARCH_REQ_XCOMP_PERM */ 0x1023, 18) == 0; }

void chains(long steps) {
  alignas(64) uint8_t shapes[64] = {1};
  for (int tile = 0; tile < 8; ++tile) shapes[16 + 2 * tile] = 64, shapes[48 + tile] = 16;
  _tile_loadconfig(shapes);
  for (long step = 0; step < steps; ++step) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
  }
  _tile_release();
}
#else
// Enough chains to hide the latency, few enough for the registers, of which there are 16 or 32.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int CHAINS = 24;
#else
constexpr int CHAINS = 12;
#endif
#if defined(DOTS)
constexpr double FLOPS = CHAINS * 2 * BYTES / 2 * (BYTES == 16 ? 2 : 1);  // NEON's are of 2 x 4 and 4 x 2
#else
constexpr double FLOPS = CHAINS * 2 * BYTES / 4;
#endif

bool allowed() { return true; }

// So that nothing is computed in advance, or not at all.
void hide(Floats& value) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(value));
#else
  asm volatile("" : "+w"(value));
#endif
}

Floats multiply_add(Floats sum, Floats a, Floats b) {
#if defined(DOTS) && defined(__x86_64__)
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#elif defined(DOTS)
  return (Floats)vbfmmlaq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
#else
  return sum + a * b;
#endif
}

void chains(long steps) {
  Floats chain[CHAINS], a = Floats{} + 0.5f, b = Floats{} + 0.25f;
  hide(a), hide(b);
  // All loops over chains are unrolled: one that is not keeps them in memory.
#pragma GCC unroll 32
  for (Floats& value : chain) hide(value = a);
#pragma GCC unroll 4
  for (long step = 0; step < steps; ++step) {
#pragma GCC unroll 32
    for (Floats& value : chain) {
      hide(a);
      value = multiply_add(value, a, b);
    }
  }
#pragma GCC unroll 32
  for (Floats& value : chain) hide(value);
}
#endif

}  // namespace

extern "C" {

// Streams through the buffers, whose addresses are multiples of 64: as much of triad, copy, read and write as
// makes up their sizes. Ends that do not fill a unit for each lane of each thread are left out. With
// `turning`, every second pass goes backwards. `past_caches` asks for non-temporal stores, on x86-64 only.
// `sum` is of all words of the last pass that are read and not written.
int stream(const char* from, size_t reads, char* to, size_t writes, int past_caches, int lanes, int turning,
           const int* cpus, int threads, int passes, double* seconds, uint32_t* sum) {
  std::atomic<uint32_t> total{0};
  reads &= ~size_t{63}, writes &= ~size_t{63};  // all parts begin at multiples of 64
  const bool triad = writes && reads >= 2 * writes;
  const size_t both = triad ? writes : reads < writes ? reads : writes;
  const size_t rest = reads - (triad ? 2 : 1) * both, unit = UNIT * lanes;
  const bool pinned = timed(cpus, threads, passes, seconds, [&](int thread, int pass) {
    Words sums[4] = {};
    const auto part = [&](auto kernel, size_t bytes, size_t begin) {
      const size_t count = bytes / (unit * threads) * unit, at = begin + thread * count;
      if (count) kernel(from + at, from + at + both, to + at, count, lanes, turning && pass % 2, sums);
    };
    if (triad) part(past_caches ? walk<2, 1, true> : walk<2, 1, false>, both, 0);
    if (!triad) part(past_caches ? walk<1, 1, true> : walk<1, 1, false>, both, 0);
    part(walk<1, 0, false>, rest, reads - rest);
    part(past_caches ? walk<0, 1, true> : walk<0, 1, false>, writes - both, both);
#if defined(__x86_64__)
    if (past_caches) _mm_sfence();
#endif
    if (pass + 1 < passes) return;
    const Words all = sums[0] + sums[1] + sums[2] + sums[3];
    for (int i = 0; i < BYTES / 4; ++i) total += all[i];
  });
  *sum = total;
  return pinned;
}

// FLOPs of a pass of all threads; 0 if the system does not let this process use the instructions.
double run_chains(long steps, const int* cpus, int threads, int passes, double* seconds) {
  if (!allowed()) return 0;
  timed(cpus, threads, passes, seconds, [&](int, int) { chains(steps); });
  return FLOPS * steps * threads;
}

// Cycles of a pass: additions that wait for each other take one each.
double count_cycles(long steps, const int* cpus, int threads, int passes, double* seconds) {
  timed(cpus, threads, passes, seconds, [&](int, int) {
    uint64_t value = 1, other = 3;
    for (long step = 0; step < steps; ++step) {
#if defined(__x86_64__)
      asm volatile(".rept 100\n add %1, %0\n .endr" : "+r"(value) : "r"(other));
#else
      asm volatile(".rept 100\n add %0, %0, %1\n .endr" : "+r"(value) : "r"(other));
#endif
    }
  });
  return 100.0 * steps;
}
}
