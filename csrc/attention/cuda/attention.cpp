#include <cassert>

#include "attention/cuda/attention_gpu.h"
#include "attention/cuda/attention_instance.h"
#include "base/bf16.h"
#include "base/half.h"

namespace batchllm::cuda {
namespace {

template <typename T>
void attention_of(const AttentionCall& call, Stream stream) {
    switch (call.head_dim) {
        case 64:
            return attention_instance<T, 64>(call, stream);
        case 96:
            return attention_instance<T, 96>(call, stream);
        case 128:
            return attention_instance<T, 128>(call, stream);
        case 256:
            return attention_instance<T, 256>(call, stream);
        default:
            assert(false);  // the plan's layout has refused it
    }
}

}  // namespace

void attention(const AttentionCall& call, Stream stream) {
    call.args.params.q.dtype == DType::kBFloat16 ? attention_of<Bf16>(call, stream) : attention_of<Half>(call, stream);
}

}  // namespace batchllm::cuda
