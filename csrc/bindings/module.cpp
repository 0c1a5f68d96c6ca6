#include "bindings/bindings.h"

namespace batchllm {

int32_t thread_count(int32_t num_threads, int32_t otherwise) {
    if (num_threads < 0) {
        throw pybind11::value_error("num_threads: expected at least 0, got " + std::to_string(num_threads));
    }
    return num_threads == 0 ? otherwise : num_threads;
}

}  // namespace batchllm

PYBIND11_MODULE(batchllm_ext, module) {
    module.doc() =
        "BatchLLM's planner and attention kernels. Works without torch: tensors come in and go out by DLPack.";
    batchllm::bind_planner(module);
    batchllm::bind_simulate(module);
    batchllm::bind_attention_plan(module);
    batchllm::bind_attention(module);
    batchllm::bind_states(module);
    batchllm::bind_ops(module);
}
