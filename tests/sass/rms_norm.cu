// The kernels of rms_norm, for sass.py.
#include "rows/cuda/rms_norm_kernel.cuh"

namespace batchllm::cuda {

#define KERNELS(T, kVector)                                                                          \
    template __global__ void rms_norm_kernel<T, kVector, true>(const __grid_constant__ RmsNormArgs); \
    template __global__ void rms_norm_kernel<T, kVector, false>(const __grid_constant__ RmsNormArgs);

KERNELS(float, kVectorSize<float>)
KERNELS(float, 1)
KERNELS(Bf16, kVectorSize<Bf16>)
KERNELS(Bf16, 1)
KERNELS(Half, kVectorSize<Half>)
KERNELS(Half, 1)

}  // namespace batchllm::cuda
