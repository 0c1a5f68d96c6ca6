// What a layer does between the product that makes q, k and v and its attention, in one pass: norms and turns the heads
// of q in place, those of k into their slots, and copies those of v into theirs.
//   grid    kLanes threads to a head of a row, heads innermost; a thread has a vector of each half of the head
//   reads   qkv, q_norm, k_norm, cos, sin, slots      writes  q, k_pages, v_pages
//   twin    rms_norm, rotate and append_to_pages of the CPU, with the same roundings between them
#pragma once

#include <cassert>

#include "cuda/intrinsics.cuh"
#include "cuda/launch_grid.h"
#include "rows/cuda/rms_norm_kernel.cuh"
#include "rows/cuda/rotate_thread.h"

namespace batchllm::cuda {

// kLanes: a power of two, so that a warp has whole heads; the last of them may have nothing to do.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kWorkThreads)
    norm_rotate_append_kernel(const __grid_constant__ NormRotateAppendParams p) {
    constexpr int kVector = kVectorSize<T>;
    const auto num_heads = static_cast<uint32_t>(p.num_qo_heads + 2 * p.num_kv_heads);
    const uint32_t index = (blockIdx.x * kWorkThreads + threadIdx.x) / kLanes;
    const int64_t row = index / num_heads, head = index % num_heads;
    const int64_t half = p.size / 2, i = int64_t{threadIdx.x % kLanes} * kVector;
    const bool is_there = row < p.num_rows && i < half;
    const bool is_q = head < p.num_qo_heads, is_v = head >= p.num_qo_heads + p.num_kv_heads;

    T* const x = head_row<T>(p.qkv, row, head) + i;
    Vector<T, kVector> first{}, second{};
    if (is_there) {
        first = load_vector<kVector>(x);
        second = load_vector<kVector>(x + half);
    }
    if (p.q_norm != nullptr) {
        float squares = sum_of_squares(first) + sum_of_squares(second);
        for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) squares += __shfl_xor_sync(kAllLanes, squares, lanes);
        const float scale = rsqrtf(quotient(squares, static_cast<float>(p.size)) + p.eps);
        if (is_there && !is_v) {
            const T* const weight = static_cast<const T*>(is_q ? p.q_norm : p.k_norm) + i;
            scale_by(first, scale, load_vector<kVector>(weight));
            scale_by(second, scale, load_vector<kVector>(weight + half));
        }
    }
    if (!is_there) return;
    if (!is_v) {
        rotate_vectors(first, second, load_vector<kVector>(p.cos + row * p.cos_stride + i),
                       load_vector<kVector>(p.sin + row * p.sin_stride + i));
    }
    T* to = x;
    if (!is_q) {
        if (p.slots[row] < 0 || p.slots[row] >= p.num_slots) return;
        const auto slot = static_cast<uint32_t>(p.slots[row]), page_size = static_cast<uint32_t>(p.page_size);
        const PagedHeads pages = is_v ? p.v_pages : p.k_pages;
        const int64_t kv_head = head - p.num_qo_heads - (is_v ? p.num_kv_heads : 0);
        to = static_cast<T*>(pages.data) + slot / page_size * pages.page_stride + slot % page_size * pages.slot_stride +
             kv_head * pages.head_stride + i;
    }
    store_vector(to, first);
    store_vector(to + half, second);
}

template <typename T, int kLanes, typename Launcher>
void launch_norm_rotate_append_of(const NormRotateAppendParams& params, const Launcher& launch) {
    const int64_t num_threads = params.num_rows * (params.num_qo_heads + 2 * params.num_kv_heads) * kLanes;
    if (num_threads == 0) return;
    assert(num_threads <= kMaxItems);
    const auto num_blocks = static_cast<uint32_t>((num_threads + kWorkThreads - 1) / kWorkThreads);
    launch(norm_rotate_append_kernel<T, kLanes>, LaunchGrid{num_blocks, kWorkThreads}, 0, params);
}

// One launch; none where there are no rows. The types are those of attention.
template <typename Launcher>
void launch_norm_rotate_append(const NormRotateAppendParams& params, const Launcher& launch) {
    const auto run = [&]<typename T>(T) {
        const int64_t num_lanes = params.size / 2 / kVectorSize<T>;
        if (num_lanes <= 4) return launch_norm_rotate_append_of<T, 4>(params, launch);
        if (num_lanes <= 8) return launch_norm_rotate_append_of<T, 8>(params, launch);
        assert(num_lanes <= 16);
        launch_norm_rotate_append_of<T, 16>(params, launch);
    };
    params.dtype == DType::kBFloat16 ? run(Bf16{}) : run(Half{});
}

}  // namespace batchllm::cuda
