#include <algorithm>

#include "bindings/bindings.h"

namespace batchllm {

int32_t thread_count(int32_t num_threads, int32_t otherwise) {
    if (num_threads < 0) {
        throw pybind11::value_error("num_threads: expected at least 0, got " + std::to_string(num_threads));
    }
    if (num_threads > kMaxThreads) {
        throw pybind11::value_error("num_threads: expected at most " + std::to_string(kMaxThreads) + ", got " +
                                    std::to_string(num_threads));
    }
    return num_threads == 0 ? std::min(otherwise, kMaxThreads) : num_threads;  // OMP_NUM_THREADS may have any value
}

namespace {

// An object made by Class.__new__(Class) holds no instance, and pybind11 would return uninitialised memory instead; it
// requests that memory here.
void* refuse_uninitialised(size_t) {
    throw pybind11::type_error("the object is not initialised: __init__() was not called");
}

void refuse_uninitialised_objects(const pybind11::module_& module) {
    for (const auto& [name, object] : module.attr("__dict__").cast<pybind11::dict>()) {
        if (!pybind11::isinstance<pybind11::type>(object)) continue;
        pybind11::detail::get_type_info(reinterpret_cast<PyTypeObject*>(object.ptr()))->operator_new =
            &refuse_uninitialised;
    }
}

}  // namespace

}  // namespace batchllm

PYBIND11_MODULE(batchllm_ext, module) {
    module.doc() =
        "BatchLLM's planner and attention kernels. Works without torch: tensors come in and go out by DLPack.";
    batchllm::bind_token_batch(module);
    batchllm::bind_planner(module);
    batchllm::bind_simulate(module);
    batchllm::bind_attention_plan(module);
    batchllm::bind_attention(module);
    batchllm::bind_states(module);
    batchllm::bind_ops(module);
    batchllm::bind_quantized_rows(module);
    batchllm::refuse_uninitialised_objects(module);
}
