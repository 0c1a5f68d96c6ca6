// GPUs by name, and how the kernels of attention/cuda occupy them: the single source of peaks and costs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string_view>

namespace batchllm {

struct GpuModel {
    const char* id;    // as in plan_attention and on the command line
    const char* name;  // as in predictions
    int32_t num_multiprocessors;
    double flops_per_s;    // dense bfloat16
    double bytes_per_s;    // of its memory
    int64_t memory_bytes;  // approximately, as its driver reports it
    int64_t l2_bytes;
    int32_t shared_bytes;  // of a multiprocessor
    bool begins_early;     // a launch may begin before the one in front of it ends
    // Assumed; benchmarks/gpu_day/costs.py measures them.
    double launch_s = 2e-6;  // between the end of one kernel and the beginning of the next, in a graph
    double multiprocessor_bytes_per_s = 45e9;  // what one loads from the L2 cache, half of 64 bytes per clock
    double block_s = 1.5e-6;  // of a block apart from its keys: loads that wait for each other, a pipeline to fill
};

// NVIDIA's data sheets, without sparsity.
inline constexpr GpuModel kGpus[] = {
    {.id = "a100",
     .name = "A100 80GB SXM",
     .num_multiprocessors = 108,
     .flops_per_s = 312e12,
     .bytes_per_s = 2.039e12,
     .memory_bytes = int64_t{80} << 30,
     .l2_bytes = 40 << 20,
     .shared_bytes = 164 << 10,
     .begins_early = false},
    {.id = "h100",
     .name = "H100 80GB SXM",
     .num_multiprocessors = 132,
     .flops_per_s = 989e12,
     .bytes_per_s = 3.35e12,
     .memory_bytes = int64_t{80} << 30,
     .l2_bytes = 50 << 20,
     .shared_bytes = 228 << 10,
     .begins_early = true},
    {.id = "h200",
     .name = "H200 141GB SXM",
     .num_multiprocessors = 132,
     .flops_per_s = 989e12,
     .bytes_per_s = 4.8e12,
     .memory_bytes = int64_t{140} << 30,
     .l2_bytes = 50 << 20,
     .shared_bytes = 228 << 10,
     .begins_early = true},
};

// The GPU that "cuda" means.
inline constexpr const GpuModel& kDefaultGpu = kGpus[0];

// Null if there is none with this id.
constexpr const GpuModel* find_gpu(std::string_view id) {
    const GpuModel* const gpu = std::ranges::find(kGpus, id, &GpuModel::id);
    return gpu == std::end(kGpus) ? nullptr : gpu;
}

// The model most like a GPU: by its name in the driver ("NVIDIA H100 80GB HBM3"), otherwise by its major compute
// capability.
constexpr const GpuModel& nearest_gpu(std::string_view name, int32_t capability) {
    const auto is_named = [name](const GpuModel& gpu) {
        return name.find(std::string_view(gpu.name).substr(0, 4)) != std::string_view::npos;
    };
    if (const GpuModel* const gpu = std::ranges::find_if(kGpus, is_named); gpu != std::end(kGpus)) return *gpu;
    return capability >= 9 ? *find_gpu("h100") : kDefaultGpu;
}

// --- the kernels of attention/cuda, which asserts that these are its own

enum class TileKind : uint8_t { kNarrow, kWide };

constexpr int32_t kGpuNarrowRows = 16;  // packed rows of the highest narrow tile

// Packed rows of the largest tile.
constexpr int32_t gpu_tile_rows(int32_t head_dim) {
    return head_dim == 256 ? 64 : 128;
}

// Shared memory of a block; for a head_dim between those that kernels are compiled for, that of the next larger.
constexpr int32_t gpu_block_bytes(TileKind kind, int32_t head_dim) {
    const bool narrow = kind == TileKind::kNarrow;
    if (head_dim <= 64) return narrow ? 42368 : 43328;
    if (head_dim <= 96) return narrow ? 47216 : 63808;
    if (head_dim <= 128) return narrow ? 41856 : 68672;
    return narrow ? 49792 : 100160;
}

// Blocks that a multiprocessor holds at a time: its registers allow four of narrow tiles and two of wide ones.
constexpr int32_t blocks_per_multiprocessor(const GpuModel& gpu, TileKind kind, int32_t head_dim) {
    constexpr int32_t kReservedBytes = 1024;  // by the driver, of each block
    const int32_t by_registers = kind == TileKind::kNarrow ? 4 : 2;
    return std::min(by_registers, gpu.shared_bytes / (gpu_block_bytes(kind, head_dim) + kReservedBytes));
}

// KV heads that a block takes of a narrow tile, looking up its keys once for all of them: as many as leave enough
// blocks for every multiprocessor.
constexpr int32_t narrow_heads_per_block(int64_t num_narrow_tiles, int32_t num_kv_heads) {
    constexpr int64_t kEnoughBlocks = 1024;  // about two for each place on an H100: 4 blocks on 132 multiprocessors
    int32_t heads = num_kv_heads;
    while (heads > 1 && num_narrow_tiles * ((num_kv_heads + heads - 1) / heads) < kEnoughBlocks) {
        heads = (heads + 1) / 2;
    }
    return heads;
}

}  // namespace batchllm
