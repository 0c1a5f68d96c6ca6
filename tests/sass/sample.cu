// The kernels of sample, for sass.py.
#include "rows/cuda/sample_kernel.cuh"

namespace batchllm::cuda {

#define KERNELS(T)                                                                         \
    template __global__ void sample_kernel<T, true>(const __grid_constant__ SampleParams); \
    template __global__ void sample_kernel<T, false>(const __grid_constant__ SampleParams);

KERNELS(float)
KERNELS(Bf16)
KERNELS(Half)

}  // namespace batchllm::cuda
