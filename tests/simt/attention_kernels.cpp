#include "simt/attention_kernels.h"

#include <algorithm>

#include "attention/cuda/attention_kernel.cuh"
#include "attention/cuda/launch_grid.h"
#include "attention/cuda/merge_rows_thread.h"
#include "simt/emulator/launch.h"

namespace batchllm::simt_test {
namespace {

// launch.cuh::run_work
template <typename Work>
__global__ void run_work(const Work work) {
    cuda::run_thread(work, {gridDim.x, blockDim.x}, blockIdx.x, threadIdx.x);
}

template <typename T, int kHeadDim>
void run(const AttentionCall& call) {
    const cuda::AttentionArgs& args = call.args;
    const auto num_blocks = static_cast<unsigned>(call.num_tiles * args.num_kv_heads);
    if (num_blocks > 0) {
        simt::launch(cuda::attention_kernel<T, kHeadDim>,
                     {{num_blocks}, {cuda::kThreads}, cuda::kSharedBytes<kHeadDim>}, call.schedule, args);
    }
    const cuda::MergeRowsWork<T> merge{
        .merge_rows = call.merge_rows,
        .num_merge_rows = call.num_merge_rows,
        .num_qo_heads = args.num_kv_heads * args.group_size,
        .head_dim = kHeadDim,
        .partial_out = args.partial_out,
        .partial_lse = args.partial_lse,
        .sinks = args.params.sinks,
        .out = args.params.out,
        .lse = args.params.lse,
    };
    const cuda::LaunchGrid grid = cuda::launch_grid(merge.num_items());
    if (grid.num_blocks > 0) {
        simt::launch(run_work<cuda::MergeRowsWork<T>>, {{grid.num_blocks}, {grid.block_size}}, call.schedule, merge);
    }
}

template <typename T>
void run(const AttentionCall& call) {
    switch (call.head_dim) {
        case 64:
            return run<T, 64>(call);
        case 96:
            return run<T, 96>(call);
        case 128:
            return run<T, 128>(call);
        case 256:
            return run<T, 256>(call);
    }
}

}  // namespace

void run_attention(const AttentionCall& call) {
    call.type == ElementType::kBf16 ? run<Bf16>(call) : run<Half>(call);
}

}  // namespace batchllm::simt_test
