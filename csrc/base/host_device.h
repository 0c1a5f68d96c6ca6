// Functions that CUDA kernels and the CPU share.
#pragma once

#ifdef __CUDACC__
#define BATCHLLM_HOST_DEVICE __host__ __device__
#else
#define BATCHLLM_HOST_DEVICE
#endif

namespace batchllm {

// a / b for a divisor of ordinary size. A GPU rounds it within 2 ulp, because the last bit costs a call there.
BATCHLLM_HOST_DEVICE inline float quotient(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fdividef(a, b);
#else
    return a / b;
#endif
}

}  // namespace batchllm
