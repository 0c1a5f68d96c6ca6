#include "simt/attention_kernels.h"

#include "attention/cuda/attention_launches.cuh"
#include "simt/emulator_launcher.h"

namespace batchllm::simt_test {
namespace {

template <typename T, int kHeadDim>
void run(const cuda::AttentionCall& call, const simt::Schedule& schedule) {
    cuda::launch_attention<T, kHeadDim>(call, EmulatorLauncher{schedule});
}

template <typename T>
void run(const cuda::AttentionCall& call, const simt::Schedule& schedule) {
    switch (call.head_dim) {
        case 64:
            return run<T, 64>(call, schedule);
        case 96:
            return run<T, 96>(call, schedule);
        case 128:
            return run<T, 128>(call, schedule);
        case 256:
            return run<T, 256>(call, schedule);
    }
}

}  // namespace

void run_attention(const cuda::AttentionCall& call, const simt::Schedule& schedule) {
    call.args.params.q.dtype == DType::kBFloat16 ? run<Bf16>(call, schedule) : run<Half>(call, schedule);
}

}  // namespace batchllm::simt_test
