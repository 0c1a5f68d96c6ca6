#include "attention/cuda/append_kv_thread.h"
#include "cuda/launch.cuh"

namespace batchllm::cuda {

void append_to_pages(const AppendParams& params, int64_t num_slots, Stream stream) {
    if (is_vector_aligned(params)) {
        launch(AppendWork<kVectorBytes>{params, checked_num_slots(num_slots)}, stream);
    } else {
        launch(AppendWork<1>{params, checked_num_slots(num_slots)}, stream);
    }
}

}  // namespace batchllm::cuda
