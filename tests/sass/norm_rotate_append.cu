// The kernels of norm_rotate_append, for sass.py.
#include "rows/cuda/norm_rotate_append_kernel.cuh"

namespace batchllm::cuda {

#define KERNEL(T, kLanes) \
    template __global__ void norm_rotate_append_kernel<T, kLanes>(const __grid_constant__ NormRotateAppendParams);

KERNEL(Bf16, 4)
KERNEL(Bf16, 8)
KERNEL(Bf16, 16)
KERNEL(Half, 8)

}  // namespace batchllm::cuda
