#include <algorithm>
#include <cassert>

#include "attention/cuda/merge_states_thread.h"
#include "cuda/launch.cuh"

namespace batchllm::cuda {

template <typename T>
void merge_states(std::span<const StatesView<const T>> inputs, const StatesView<T>& merged, int64_t num_tokens,
                  int64_t num_heads, int64_t head_dim, LseBase base, Stream stream) {
    assert(inputs.size() <= kMaxMergeInputs);
    MergeWork<T> work{{}, static_cast<int>(inputs.size()), merged, num_tokens, num_heads, head_dim, base};
    std::copy(inputs.begin(), inputs.end(), work.inputs);
    launch(work, stream);
}

template void merge_states<float>(std::span<const StatesView<const float>>, const StatesView<float>&, int64_t, int64_t,
                                  int64_t, LseBase, Stream);
template void merge_states<Bf16>(std::span<const StatesView<const Bf16>>, const StatesView<Bf16>&, int64_t, int64_t,
                                 int64_t, LseBase, Stream);

}  // namespace batchllm::cuda
