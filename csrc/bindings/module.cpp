#include "bindings/bindings.h"

PYBIND11_MODULE(batchllm_ext, module) {
    module.doc() =
        "BatchLLM's planner and attention kernels. Works without torch: tensors come in and go out by DLPack.";
    batchllm::bind_planner(module);
    batchllm::bind_simulate(module);
    batchllm::bind_attention(module);
    batchllm::bind_ops(module);
}
