// What kernels use of the machine beyond C++: the only file with PTX. The host compiler gets the same functions from
// the tests' emulator, so every kernel also runs there.
//
// A warp's matrices lie in registers as PTX lays them out: lane 4 g + t holds of a 16 x 16 matrix, in pairs of
// neighbouring columns, rows g and g + 8 at columns 2 t and 2 t + 8.
#pragma once

#ifndef __CUDACC__
#include "simt/intrinsics.h"
#else

#include <cuda_runtime.h>

#include <cstdint>

#include "base/bf16.h"
#include "base/half.h"

namespace batchllm::cuda {

__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
    extern __shared__ __align__(128) unsigned char memory[];
    return memory;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

template <typename T>
__device__ void multiply_accumulate_16x8(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void multiply_accumulate_16x8<Bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                               uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply_accumulate_16x8<Half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                                               uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += a b: a of 16 rows x 16, b of 16 x 16 columns; c[0] and b[0], b[1] are columns 0 to 7, c[1] and b[2], b[3] the
// others. a[0], a[1] are rows 0 to 7 and 8 to 15 of columns 0 to 7, a[2], a[3] of the others.
template <typename T>
__device__ __forceinline__ void multiply_accumulate(float (&c)[2][4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    multiply_accumulate_16x8<T>(c[0], a, b[0], b[1]);
    multiply_accumulate_16x8<T>(c[1], a, b[2], b[3]);
}

// Four matrices of 8 x 8 from shared memory: lane i names row i % 8 of matrix i / 8, 16 aligned bytes.
__device__ __forceinline__ void load_matrices(uint32_t (&registers)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&registers)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16 aligned bytes from global to shared memory, some time before wait_for_copies returns. Where `valid` is false they
// become zeros and nothing is read.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Until at most so many of this thread's groups are under way.
template <int kMostPending>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(kMostPending) : "memory");
}

__device__ __forceinline__ float exp2_approx(float x) {  // 2 ulp; exp2(-inf) = 0
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {  // 1 ulp; of infinity 0
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Until the launches before this one are done and what they wrote is there. At once where this one began in order.
__device__ __forceinline__ void wait_for_earlier_launches() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next launch may begin, once all blocks have said so.
__device__ __forceinline__ void let_next_launch_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Two numbers in 16 bits each.
template <typename T>
__device__ uint32_t pack(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack<Bf16>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

template <>
__device__ __forceinline__ uint32_t pack<Half>(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

}  // namespace batchllm::cuda

#endif

namespace batchllm::cuda {

constexpr uint32_t kAllLanes = 0xffffffff;  // of a warp

}  // namespace batchllm::cuda
