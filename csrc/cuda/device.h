// The device operations that the kernels use, for nvcc and for the emulator of the tests, which runs the same
// source on a CPU. Shared memory is addressed in bytes from the start of its dynamic part.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define VT_DEVICE __device__ __forceinline__
#define VT_BOTH __host__ __device__ inline
#define VT_UNROLL _Pragma("unroll")
#define VT_ROLLED _Pragma("unroll 1")
#define VT_PRAGMA(text) _Pragma(#text)
#define VT_UNROLL_BY(count) VT_PRAGMA(unroll count)
#else
#include "cuda_on_cpu.h"
#define VT_DEVICE inline
#define VT_BOTH inline
#define VT_UNROLL
#define VT_ROLLED
#define VT_UNROLL_BY(count)
#endif

namespace vt {

struct alignas(8) Two {
  uint32_t x, y;
};
struct alignas(16) Four {
  uint32_t x, y, z, w;
};

#ifdef __CUDACC__

extern __shared__ __align__(1024) unsigned char vt_shared[];

VT_DEVICE uint32_t window() { return static_cast<uint32_t>(__cvta_generic_to_shared(vt_shared)); }
VT_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
VT_DEVICE int threads() { return static_cast<int>(blockDim.x); }
VT_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
VT_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }

template <class T>
VT_DEVICE T shared(uint32_t at) {
  return *reinterpret_cast<const T*>(vt_shared + at);
}
template <class T>
VT_DEVICE void set_shared(uint32_t at, T value) {
  *reinterpret_cast<T*>(vt_shared + at) = value;
}
template <class T>
VT_DEVICE T global(const T* at) {
  return *at;
}
template <class T>
VT_DEVICE void set_global(T* at, T value) {
  *at = value;
}

// BYTES of global memory to shared memory: the first `filled` of them, then zeros.
template <int BYTES>
VT_DEVICE void copy_async(uint32_t to, const void* from, int filled) {
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(window() + to), "l"(from),
                 "r"(filled)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], %2, %3;" ::"r"(window() + to), "l"(from),
                 "n"(BYTES), "r"(filled)
                 : "memory");
  }
}
VT_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING of the thread's groups are in flight.
template <int PENDING>
VT_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// The same number, hidden from the optimizer, so that it keeps nothing derived from it across loops.
VT_DEVICE int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// The next kernel of the stream may be launched: its blocks wait for all of this kernel where they say so.
VT_DEVICE void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
VT_DEVICE void wait_for_kernel_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

VT_DEVICE void sync_block() { __syncthreads(); }
VT_DEVICE void sync_warp() { __syncwarp(); }
VT_DEVICE float shuffle_xor(float v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }
VT_DEVICE uint32_t ballot(bool v) { return __ballot_sync(0xffffffffu, v); }

// A cluster: blocks that run at the same time and see each other's shared memory.
#if __CUDA_ARCH__ >= 900
VT_DEVICE int cluster_size() {
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return static_cast<int>(size);
}
VT_DEVICE int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
VT_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
VT_DEVICE float shared_of(int rank, uint32_t at) {
  uint32_t address;
  float value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(window() + at), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}
#else
VT_DEVICE int cluster_size() { return 1; }
VT_DEVICE int cluster_rank() { return 0; }
VT_DEVICE void sync_cluster() {}
VT_DEVICE float shared_of(int, uint32_t at) { return shared<float>(at); }
#endif

// Four matrices of 8 x 8 16-bit elements; lane i has the address of row i % 8 of matrix i / 8.
VT_DEVICE void ldmatrix(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(window() + at)
               : "memory");
}
VT_DEVICE void ldmatrix_transposed(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(window() + at)
               : "memory");
}

// The reverse of ldmatrix.
#if __CUDA_ARCH__ >= 900
constexpr bool kHasStmatrix = true;
VT_DEVICE void stmatrix(uint32_t at, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(window() + at),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
#else
constexpr bool kHasStmatrix = false;
VT_DEVICE void stmatrix(uint32_t, const uint32_t (&)[4]) {}
#endif

VT_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
VT_DEVICE void mma_fp16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Elements are floats, of which the last 13 bits are not looked at.
VT_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

VT_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
VT_DEVICE uint32_t pack_fp16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
VT_DEVICE float float_of_fp16(uint16_t bits) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits));
  return r;
}
VT_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
VT_DEVICE uint32_t as_bits(float value) { return __float_as_uint(value); }
VT_DEVICE float power_of_two(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
// Of numbers that are not small: to the last bit or two.
VT_DEVICE float reciprocal(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
VT_DEVICE float logarithm(float x) { return logf(x); }
VT_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }

#else

inline int thread() { return emulator::thread(); }
inline int threads() { return emulator::threads(); }
inline int block_x() { return emulator::block_x(); }
inline int block_y() { return emulator::block_y(); }

template <class T>
T shared(uint32_t at) {
  return emulator::read_shared<T>(at);
}
template <class T>
void set_shared(uint32_t at, T value) {
  emulator::write_shared<T>(at, value);
}
template <class T>
T global(const T* at) {
  return emulator::read_global<T>(at);
}
template <class T>
void set_global(T* at, T value) {
  emulator::write_global<T>(at, value);
}
template <int BYTES>
void copy_async(uint32_t to, const void* from, int filled) {
  emulator::copy_async(to, from, BYTES, filled);
}
inline void copy_commit() { emulator::copy_commit(); }
template <int PENDING>
void copy_wait() {
  emulator::copy_wait(PENDING);
}
inline int opaque(int value) { return value; }
inline void let_next_start() {}
inline void wait_for_kernel_before() {}
inline void sync_block() { emulator::sync_block(); }
inline void sync_warp() { emulator::sync_warp(); }
inline float shuffle_xor(float v, int mask) { return emulator::shuffle_xor(v, mask); }
inline uint32_t ballot(bool v) { return emulator::ballot(v); }
inline int cluster_size() { return emulator::cluster_size(); }
inline int cluster_rank() { return emulator::cluster_rank(); }
inline void sync_cluster() { emulator::sync_cluster(); }
inline float shared_of(int rank, uint32_t at) { return emulator::read_shared_of<float>(rank, at); }
inline void ldmatrix(uint32_t (&r)[4], uint32_t at) { emulator::ldmatrix(r, at, false); }
inline void ldmatrix_transposed(uint32_t (&r)[4], uint32_t at) { emulator::ldmatrix(r, at, true); }
constexpr bool kHasStmatrix = true;
inline void stmatrix(uint32_t at, const uint32_t (&r)[4]) { emulator::stmatrix(at, r); }
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::mma(emulator::Element::bf16, d, a, b);
}
inline void mma_fp16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::mma(emulator::Element::fp16, d, a, b);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulator::mma(emulator::Element::tf32, d, a, b);
}
inline uint32_t pack_bf16(float low, float high) { return emulator::pack_bf16(low, high); }
inline uint32_t pack_fp16(float low, float high) { return emulator::pack_fp16(low, high); }
inline float float_of_fp16(uint16_t bits) { return emulator::float_of_fp16(bits); }
inline float as_float(uint32_t bits) { return emulator::as_float(bits); }
inline uint32_t as_bits(float value) { return emulator::as_bits(value); }
inline float power_of_two(float x) { return emulator::power_of_two(x); }
inline float reciprocal(float x) { return 1.f / x; }
inline float logarithm(float x) { return emulator::logarithm(x); }
inline float multiply_add(float a, float b, float c) { return emulator::multiply_add(a, b, c); }

#endif

}  // namespace vt
