#include "attention/attention.h"

#include "attention/cpu/attention_cpu.h"

namespace batchllm {

void run_attention(const AttentionPlan& plan, const AttentionParams& params, int32_t num_threads) {
    run_attention_cpu(plan, params, num_threads);
}

}  // namespace batchllm
