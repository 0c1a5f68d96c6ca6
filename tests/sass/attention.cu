// The attention kernels of one head_dim, for sass.py.
#include "attention/cuda/attention_kernels.cuh"

namespace batchllm::cuda {

template __global__ void attention_wide_kernel<Bf16, HEAD_DIM>(const __grid_constant__ AttentionArgs);
template __global__ void attention_wide_kernel<Half, HEAD_DIM>(const __grid_constant__ AttentionArgs);
template __global__ void attention_narrow_kernel<Bf16, HEAD_DIM>(const __grid_constant__ AttentionArgs);
template __global__ void attention_narrow_kernel<Half, HEAD_DIM>(const __grid_constant__ AttentionArgs);

}  // namespace batchllm::cuda
