// The attention kernels of one head_dim, for sass.py.
#include "attention/cuda/attention_kernel.cuh"

namespace batchllm::cuda {

template __global__ void attention_kernel<Bf16, HEAD_DIM>(const __grid_constant__ AttentionArgs);
template __global__ void attention_kernel<Half, HEAD_DIM>(const __grid_constant__ AttentionArgs);

}  // namespace batchllm::cuda
