// The merge of partial states, for sass.py.
#include "attention/cuda/merge_rows_thread.h"
#include "cuda/launch.cuh"

namespace batchllm::cuda {

template __global__ void run_work(const MergeRowsWork<Bf16>);
template __global__ void run_work(const MergeRowsWork<Half>);

}  // namespace batchllm::cuda
