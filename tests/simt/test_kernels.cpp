#include "simt/test_kernels.h"

#include "simt/intrinsics.h"

using namespace batchllm;
using namespace batchllm::cuda;

namespace simt_test {

// --- matrices

// Offsets into column-major matrices of what a thread holds, as CuTe's atom SM80_16x8x16 states them: A is m + 16 k,
// B is n + 8 k, C is m + 16 n.
int offset_of_a(int thread, int value) {
    return thread % 4 * 32 + thread / 4 + value % 2 * 16 + value / 2 % 2 * 8 + value / 4 * 128;
}
int offset_of_b(int thread, int value) {
    return thread % 4 * 16 + thread / 4 + value % 2 * 8 + value / 2 * 64;
}
int offset_of_c(int thread, int value) {
    return thread % 4 * 32 + thread / 4 + value % 2 * 16 + value / 2 * 8;
}

template <typename T>
__global__ void multiply_kernel(const T* a, const T* b, float* c) {
    const int thread = static_cast<int>(threadIdx.x);
    uint32_t a_registers[4], b_registers[4];
    float sums[2][4];
    const auto pair = [](const T* matrix, int low, int high) {
        return matrix[low].bits | uint32_t{matrix[high].bits} << 16;
    };
    for (int i = 0; i < 4; ++i) {
        a_registers[i] = pair(a, offset_of_a(thread, 2 * i), offset_of_a(thread, 2 * i + 1));
        const T* half = b + i / 2 * 128;  // columns 8 to 15 are a second matrix of 8 columns
        b_registers[i] = pair(half, offset_of_b(thread, i % 2 * 2), offset_of_b(thread, i % 2 * 2 + 1));
        sums[0][i] = c[offset_of_c(thread, i)];
        sums[1][i] = c[128 + offset_of_c(thread, i)];
    }
    multiply_accumulate<T>(sums, a_registers, b_registers);
    for (int i = 0; i < 4; ++i) {
        c[offset_of_c(thread, i)] = sums[0][i];
        c[128 + offset_of_c(thread, i)] = sums[1][i];
    }
}

template void multiply_kernel(const Bf16*, const Bf16*, float*);
template void multiply_kernel(const Half*, const Half*, float*);

// Element e of the 32 rows of 8 is e. `pitch` is the distance of rows in units of 16 bytes.
__global__ void load_kernel(uint32_t* registers, bool transposed, int pitch) {
    auto* memory = reinterpret_cast<uint16_t*>(dynamic_shared_memory());
    const int thread = static_cast<int>(threadIdx.x);
    uint16_t* row = memory + thread * pitch * 8;
    for (int i = 0; i < 8; ++i) row[i] = static_cast<uint16_t>(thread * 8 + i);
    __syncthreads();
    uint32_t loaded[4];
    transposed ? load_matrices_transposed(loaded, row) : load_matrices(loaded, row);
    for (int i = 0; i < 4; ++i) registers[thread * 4 + i] = loaded[i];
}

// --- warps

__global__ void shuffle_kernel(int* results) {
    const int lane = static_cast<int>(threadIdx.x);
    int* of_lane = results + lane * 8;
    of_lane[0] = __shfl_xor_sync(~0u, lane, 5);
    of_lane[1] = __shfl_sync(~0u, lane, 3, 8);
    of_lane[2] = __shfl_up_sync(~0u, lane, 2);
    of_lane[3] = __shfl_down_sync(~0u, lane, 4, 16);
    of_lane[4] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
    of_lane[5] = lane < 16 ? __shfl_xor_sync(0x0000ffffu, lane, 1) : __shfl_xor_sync(0xffff0000u, lane, 2);
    of_lane[6] = __any_sync(~0u, lane == 31);
    of_lane[7] = __all_sync(~0u, lane < 31);
}

__global__ void count_kernel(int* count, int* largest) {
    atomicAdd(count, 1);
    if (threadIdx.x >= 40) return;  // the others' barrier does not wait for it
    __syncthreads();
    atomicMax(largest, static_cast<int>(threadIdx.x));
}

__global__ void index_kernel(int* indices) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    indices[block * blockDim.x * blockDim.y * blockDim.z + thread] = static_cast<int>(1000 * block + thread);
}

// --- asynchronous copies

__global__ void copy_kernel(const float* from, float* to, int when) {
    auto* memory = reinterpret_cast<float*>(dynamic_shared_memory());
    copy_async(memory, from, true);
    commit_copies();
    copy_async(memory + 4, from + 4, false);
    commit_copies();
    if (when == 1) wait_for_copies<1>();
    if (when == 2) wait_for_copies<0>();
    for (int i = 0; i < 8; ++i) to[i] = memory[i];
}

__global__ void copy_for_others_kernel(const float* from, float* to, bool with_barrier) {
    auto* memory = reinterpret_cast<float*>(dynamic_shared_memory());
    if (threadIdx.x == 0) copy_async(memory, from, true);
    commit_copies();
    wait_for_copies<0>();
    if (with_barrier) __syncthreads();
    to[threadIdx.x] = memory[threadIdx.x % 4];
}

// --- mistakes

const int kRaceLine = __LINE__ + 5;
__global__ void missing_barrier_kernel(int* results, bool with_barrier) {
    SIMT_SHARED(int[2], shared);
    if (threadIdx.x == 0) shared[0] = 7;
    if (with_barrier) __syncthreads();
    results[threadIdx.x] = shared[0];
}

__global__ void overwrite_kernel(int* results, bool with_barrier) {
    SIMT_SHARED(int[64], shared);
    shared[threadIdx.x] = 1;
    __syncthreads();
    results[threadIdx.x] = shared[63 - threadIdx.x];
    if (with_barrier) __syncthreads();
    shared[threadIdx.x] = 2;
}

__global__ void neighbour_kernel(int* results, Between between) {
    SIMT_SHARED(int[32], shared);
    const int lane = static_cast<int>(threadIdx.x);
    shared[lane] = lane;
    if (between == Between::kBarrierOfWarp) __syncwarp();
    if (between == Between::kShuffle) results[32] = __shfl_sync(~0u, 1, 0);
    results[lane] = shared[lane ^ 1];
}

__global__ void uninitialised_kernel(float* results) {
    SIMT_SHARED(float[32], shared);
    results[threadIdx.x] = shared[threadIdx.x];
}

__global__ void write_shared_kernel(int index) {
    reinterpret_cast<float*>(dynamic_shared_memory())[index] = 1.0f;
}
__global__ void write_array_kernel(int index) {
    SIMT_SHARED(int[4], first);
    SIMT_SHARED(int[4], second);
    second[0] = 1;
    first[index] = 2;
}
__global__ void write_global_kernel(float* to, int index) {
    to[index] = 1.0f;
}
__global__ void read_global_kernel(const float* from, float* to, int index) {
    to[0] = from[index];
}
__global__ void write_block_kernel(int* to) {
    to[0] = static_cast<int>(blockIdx.x);
}
__global__ void load_misaligned_kernel() {
    uint32_t loaded[4];
    load_matrices(loaded, dynamic_shared_memory() + 8);
}
__global__ void divergent_barrier_kernel() {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}
__global__ void half_a_warp_kernel() {
    if (threadIdx.x < 16) __shfl_sync(~0u, 1, 0);
}
__global__ void lonely_lane_kernel() {
    if (threadIdx.x < 16) __syncwarp(0xffff0000u);
}
__global__ void order_kernel(int* count, int* ranks) {
    ranks[threadIdx.x] = atomicAdd(count, 1);
}
__global__ void deep_kernel(int* to) {
    volatile char memory[100 * 1024];
    for (char volatile& byte : memory) byte = 1;
    to[0] = memory[5];
}

void next_kernel(const int* from, int* to, Wait wait) {
    if (wait == Wait::kBefore) batchllm::cuda::wait_for_earlier_launches();
    const int value = from[threadIdx.x];
    if (wait == Wait::kAfter) batchllm::cuda::wait_for_earlier_launches();
    to[threadIdx.x] = value;
}

}  // namespace simt_test
