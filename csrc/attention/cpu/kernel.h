// The seam between the plan and the kernels: one kernel per instruction set, all from the same source
// (attention_kernel.inc), each in its own translation unit with its own compiler flags.
//
// Only plain structs may be included here: an inline function compiled with wide instructions in one unit could be
// the copy that the linker keeps for all of them.
#pragma once

#include "attention/params.h"
#include "attention/plan/work_item.h"

namespace batchllm {

struct KernelArgs {
    const WorkRow* rows;
    const KvPiece* pieces;
    const int32_t* page_ids;
    int32_t group_size;  // query heads of one KV head
    int32_t head_dim;
    int32_t page_size;
    int32_t num_qo_heads;
    AttentionParams params;
    float* partial_out;  // [num_slots, num_qo_heads, head_dim]
    float* partial_lse;  // [num_slots, num_qo_heads]
};

struct Kernel {
    // Floats of 64-byte aligned scratch memory that one thread needs for items of at most `num_rows` packed rows and
    // tasks of at most `num_heads` KV heads.
    int64_t (*scratch_size)(int32_t num_rows, int32_t head_dim, int32_t num_heads);
    // A task, items for the KV heads [head_begin, head_end): reads q, k_pages and v_pages; writes out and lse, or
    // partial_out and partial_lse.
    void (*attend)(const KernelArgs& args, const WorkItem* items, int32_t num_items, int32_t head_begin,
                   int32_t head_end, float* scratch);
    // The partial states of one row to out and lse; `scratch` holds head_dim floats.
    void (*merge)(const KernelArgs& args, const MergeRow& row, float* scratch);
};

extern const Kernel kBaseKernel;
#ifdef BATCHLLM_X86_KERNELS
extern const Kernel kAvx2Kernel;
extern const Kernel kAvx512Kernel;
extern const Kernel kAvx512Bf16Kernel;  // multiplies bfloat16 directly: softmax weights are rounded to it
#endif

}  // namespace batchllm
