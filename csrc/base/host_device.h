// Functions that CUDA kernels and the CPU share.
#pragma once

#ifdef __CUDACC__
#define BATCHLLM_HOST_DEVICE __host__ __device__
#else
#define BATCHLLM_HOST_DEVICE
#endif
