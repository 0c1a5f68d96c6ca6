// The kernels over independent items, for sass.py.
#include "attention/cuda/append_kv_thread.h"
#include "attention/cuda/merge_rows_thread.h"
#include "attention/cuda/merge_states_thread.h"
#include "cuda/run_work.cuh"
#include "rows/cuda/rotate_thread.h"
#include "rows/cuda/silu_and_mul_thread.h"

namespace batchllm::cuda {

#define KERNEL(...) template __global__ void run_work(const __grid_constant__ WorkRows<__VA_ARGS__>);

KERNEL(AppendWork<kVectorBytes>)
KERNEL(AppendWork<1>)
KERNEL(MergeRowsWork<Bf16>)
KERNEL(MergeRowsWork<Half>)
KERNEL(MergeWork<float>)
KERNEL(MergeWork<Bf16>)
KERNEL(RotateWork<Bf16, kVectorSize<Bf16>>)
KERNEL(RotateWork<Half, kVectorSize<Half>>)
KERNEL(RotateWork<Bf16, 1>)
KERNEL(SiluAndMulWork<Bf16, kVectorSize<Bf16>>)
KERNEL(SiluAndMulWork<Half, kVectorSize<Half>>)
KERNEL(SiluAndMulWork<Bf16, 1>)

}  // namespace batchllm::cuda
