// Root-mean-square norm of every head of every row; with delta, of the sum x + delta, which x becomes.
//   grid    a warp a head where it is short, kWarpsOfHeads to a block; else a block a head, of whole warps
//   reads   x, delta, weight      writes  out, and x where there is a delta
//   twin    row_kernels.inc::norm_row; squares are summed in another order, which the size alone decides
// Phases: load, add and round; sum the squares; scale and store.
#pragma once

#include <cassert>

#include "cuda/intrinsics.cuh"
#include "cuda/launch_grid.h"
#include "rows/cuda/row_vectors.h"

namespace batchllm::cuda {

constexpr int kShortHead = 256;     // the longest, in elements, that a warp takes
constexpr int kWarpsOfHeads = 4;    // in a block where each has its own
constexpr int kMaxNormWarps = 16;   // in a block that shares a head
constexpr int kMaxHeldVectors = 2;  // of a thread of such a block

struct RmsNormArgs {
    RmsNormParams params;
    int64_t num_rows;
};

// The same bits in every lane, since the order of two terms does not matter.
__device__ __forceinline__ float sum_of_warp(float value) {
    for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
    return value;
}

// At most once a block: nobody waits until all have read the sums of the warps.
__device__ __forceinline__ float sum_of_block(float value) {
    float* const of_warp = reinterpret_cast<float*>(dynamic_shared_memory());
    const float warp_sum = sum_of_warp(value);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = warp_sum;
    __syncthreads();
    float sum = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += of_warp[warp];
    return sum;
}

template <typename T, int kVector>
__device__ __forceinline__ float sum_of_squares(const Vector<T, kVector>& x) {
    float sum = 0.0f;
    for (int i = 0; i < kVector; ++i) sum += to_float(x.elements[i]) * to_float(x.elements[i]);
    return sum;
}

template <typename T, int kVector>
__device__ __forceinline__ void add(Vector<T, kVector>& x, const Vector<T, kVector>& delta) {
    for (int i = 0; i < kVector; ++i) {
        x.elements[i] = from_float<T>(to_float(x.elements[i]) + to_float(delta.elements[i]));
    }
}

template <typename T, int kVector>
__device__ __forceinline__ void scale_by(Vector<T, kVector>& x, float scale, const Vector<T, kVector>& weight) {
    for (int i = 0; i < kVector; ++i) {
        x.elements[i] = from_float<T>(to_float(x.elements[i]) * scale * to_float(weight.elements[i]));
    }
}

// kVector: kVectorSize<T> where every head and the weight are aligned and whole vectors, else 1.
template <typename T, int kVector, bool kIsShort>
__global__ void __launch_bounds__(32 * (kIsShort ? kWarpsOfHeads : kMaxNormWarps), 1)
    rms_norm_kernel(const __grid_constant__ RmsNormArgs args) {
    const RmsNormParams& p = args.params;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const uint32_t index = kIsShort ? blockIdx.x * kWarpsOfHeads + warp : blockIdx.x;
    if (index >= args.num_rows * p.num_heads) return;  // a whole warp
    const auto num_heads = static_cast<uint32_t>(p.num_heads);
    const int64_t row = index / num_heads, head = index % num_heads;

    // From a thread's first vector: the others are `step` apart, up to `size`.
    const int64_t begin = int64_t{kIsShort ? threadIdx.x % 32 : threadIdx.x} * kVector;
    const int64_t step = int64_t{kIsShort ? 32 : blockDim.x} * kVector;
    const int64_t size = p.size - begin;
    T* const x = head_row<T>(p.x, row, head) + begin;
    const T* const delta = p.delta.data == nullptr ? nullptr : head_row<T>(p.delta, row, head) + begin;
    const T* const weight = static_cast<const T*>(p.weight) + begin;
    T* const out = head_row<T>(p.out, row, head) + begin;

    // The first ones are loaded side by side and stay in registers until the scale is known: all of a short head. The
    // rest of a long one is loaded, and added, twice.
    constexpr int kHeld = kIsShort ? kShortHead / (32 * kVector) : kMaxHeldVectors;
    const int64_t rest_end = kIsShort ? 0 : size;
    Vector<T, kVector> held[kHeld] = {};
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
        if (i * step < size) held[i] = load_vector<kVector>(x + i * step);
    }
    if (delta != nullptr) {
        Vector<T, kVector> added[kHeld] = {};
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            if (i * step < size) added[i] = load_vector<kVector>(delta + i * step);
        }
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            if (i * step < size) add(held[i], added[i]);
        }
    }
    const auto total = [&](int64_t at) {
        auto sum = load_vector<kVector>(x + at);
        if (delta != nullptr) add(sum, load_vector<kVector>(delta + at));
        return sum;
    };

    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
        if (i * step < size) squares += sum_of_squares(held[i]);
    }
#pragma unroll 1
    for (int64_t at = kHeld * step; at < rest_end; at += step) squares += sum_of_squares(total(at));
    squares = kIsShort ? sum_of_warp(squares) : sum_of_block(squares);
    const float scale = rsqrtf(quotient(squares, static_cast<float>(p.size)) + p.eps);

    const auto finish = [&](int64_t at, Vector<T, kVector> sum) {
        if (delta != nullptr) store_vector(x + at, sum);
        scale_by(sum, scale, load_vector<kVector>(weight + at));
        store_vector(out + at, sum);
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
        if (i * step < size) finish(i * step, held[i]);
    }
#pragma unroll 1
    for (int64_t at = kHeld * step; at < rest_end; at += step) finish(at, total(at));
}

template <typename T>
bool has_vectors(const RmsNormParams& p, int64_t num_rows) {
    const auto bits = [&](const HeadRows& rows) { return offset_bits<T>(rows, num_rows, p.num_heads); };
    const uintptr_t delta = p.delta.data == nullptr ? 0 : bits(p.delta);
    const uintptr_t size = static_cast<uintptr_t>(p.size) * sizeof(T);
    return (bits(p.x) | bits(p.out) | delta | offset_bits(p.weight) | size) % kVectorBytes == 0;
}

template <typename T, int kVector, typename Launcher>
void launch_rms_norm_of(const RmsNormArgs& args, const Launcher& launch) {
    const int64_t num_heads = args.num_rows * args.params.num_heads;
    if (num_heads == 0) return;
    assert(num_heads <= kMaxBlocks);
    const bool is_short = args.params.size <= kShortHead;
    const int64_t num_blocks = is_short ? (num_heads + kWarpsOfHeads - 1) / kWarpsOfHeads : num_heads;
    if (is_short) {
        launch(rms_norm_kernel<T, kVector, true>, LaunchGrid{static_cast<uint32_t>(num_blocks), 32 * kWarpsOfHeads}, 0,
               args);
    } else {
        const int64_t warps = std::min<int64_t>((args.params.size - 1) / (32 * kVector) + 1, kMaxNormWarps);
        launch(rms_norm_kernel<T, kVector, false>,
               LaunchGrid{static_cast<uint32_t>(num_blocks), static_cast<uint32_t>(32 * warps)},
               static_cast<int>(warps * sizeof(float)), args);
    }
}

// One launch; none where there are no rows. launch(kernel, grid, shared_bytes, argument) is a stream's or the
// emulator's.
template <typename Launcher>
void launch_rms_norm(const RmsNormParams& params, int64_t num_rows, const Launcher& launch) {
    by_type(params.dtype, [&]<typename T>(T) {
        if (has_vectors<T>(params, num_rows)) {
            launch_rms_norm_of<T, kVectorSize<T>>({params, num_rows}, launch);
        } else {
            launch_rms_norm_of<T, 1>({params, num_rows}, launch);
        }
    });
}

}  // namespace batchllm::cuda
