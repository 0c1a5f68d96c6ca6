#include <cassert>

#include "attention/cuda/attention_launches.cuh"
#include "cuda/launch.cuh"

namespace batchllm::cuda {
namespace {

template <typename T>
void attention_of(const AttentionCall& call, Stream stream) {
    const StreamLauncher launch{stream};
    switch (call.head_dim) {
        case 64:
            return launch_attention<T, 64>(call, launch);
        case 96:
            return launch_attention<T, 96>(call, launch);
        case 128:
            return launch_attention<T, 128>(call, launch);
        case 256:
            return launch_attention<T, 256>(call, launch);
        default:
            assert(false);  // the plan's layout has refused it
    }
}

}  // namespace

void attention(const AttentionCall& call, Stream stream) {
    call.args.params.q.dtype == DType::kBFloat16 ? attention_of<Bf16>(call, stream) : attention_of<Half>(call, stream);
}

}  // namespace batchllm::cuda
