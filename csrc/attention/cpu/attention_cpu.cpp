#include "attention/cpu/attention_cpu.h"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "attention/cpu/kernel.h"
#include "cpu/isa.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

namespace batchllm {
namespace {

// Scratch memory of the calling thread, whose allocation may fail. OpenMP's threads use parts of it.
thread_local Workspace partial_states, kernel_scratch;

const Kernel& kernel_for(CpuIsa isa) {
    switch (isa) {
#ifdef BATCHLLM_X86_KERNELS
        case CpuIsa::kAvx2:
            return kAvx2Kernel;
        case CpuIsa::kAvx512:
            return kAvx512Kernel;
        case CpuIsa::kAvx512Bf16:
            return kAvx512Bf16Kernel;
#endif
        default:
            return kBaseKernel;
    }
}

std::vector<WorkTask> tasks_of_items(const AttentionPlan& plan) {
    std::vector<WorkTask> tasks;
    for (int32_t item = 0; item < std::ssize(plan.items()); ++item) {
        for (int32_t head = 0; head < plan.shape().num_kv_heads; ++head) {
            tasks.push_back({item, item + 1, head, head + 1});
        }
    }
    return tasks;
}

}  // namespace

void run_attention_cpu(const AttentionPlan& plan, const AttentionParams& params, int32_t num_threads) {
    const Kernel& kernel = kernel_for(selected_isa());
    const AttentionShape& shape = plan.shape();
    const int64_t num_states = int64_t{plan.num_slots()} * shape.num_qo_heads;
    float* partial = partial_states.at_least(num_states * (shape.head_dim + 1));
    const KernelArgs args{
        .rows = plan.rows().data(),
        .pieces = plan.pieces().data(),
        .page_ids = plan.page_ids().data(),
        .group_size = shape.group_size(),
        .head_dim = shape.head_dim,
        .page_size = shape.page_size,
        .num_qo_heads = shape.num_qo_heads,
        .params = params,
        .partial_out = partial,
        .partial_lse = partial + num_states * shape.head_dim,
    };
    const int64_t scratch_floats = std::max<int64_t>(
        kernel.scratch_size(plan.max_item_rows() * shape.group_size(), shape.head_dim, shape.num_kv_heads),
        shape.head_dim);
    const std::span<const WorkItem> items = plan.items();
    const std::vector<WorkTask> single_tasks = plan.tasks().empty() ? tasks_of_items(plan) : std::vector<WorkTask>();
    const std::span<const WorkTask> tasks = plan.tasks().empty() ? single_tasks : plan.tasks();
    const std::span<const MergeRow> merge_rows = plan.merge_rows();
    const int64_t num_tasks = static_cast<int64_t>(tasks.size());
    const int64_t num_merges = static_cast<int64_t>(merge_rows.size());
    num_threads = num_openmp_threads(num_threads, std::max(num_tasks, num_merges));
    constexpr int64_t kLinesFloats = 32;  // two cache lines, which some CPUs fetch together, so that threads share none
    const int64_t scratch_size = (scratch_floats + kLinesFloats - 1) / kLinesFloats * kLinesFloats;
    float* const all_scratch = kernel_scratch.at_least(num_threads * scratch_size);

#pragma omp parallel num_threads(num_threads)
    {
        float* const scratch = all_scratch + omp_get_thread_num() * scratch_size;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < num_tasks; ++i) {
            const WorkTask& task = tasks[i];
            const WorkItem* first = items.data() + task.item_begin;
            kernel.attend(args, first, task.item_end - task.item_begin, task.head_begin, task.head_end, scratch);
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < num_merges; ++i) kernel.merge(args, merge_rows[i], scratch);
    }
}

}  // namespace batchllm
