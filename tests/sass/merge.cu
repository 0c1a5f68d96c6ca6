// The merge of partial states, for sass.py.
#include "attention/cuda/launch.cuh"
#include "attention/cuda/merge_rows_thread.h"

namespace batchllm::cuda {

template __global__ void run_work(const MergeRowsWork<Bf16>);
template __global__ void run_work(const MergeRowsWork<Half>);

}  // namespace batchllm::cuda
