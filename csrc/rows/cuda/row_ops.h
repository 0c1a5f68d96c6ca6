// The CUDA twins of three row operations, over memory of one device. Each is one launch.
#pragma once

#include <cstdint>

#include "cuda/stream.h"
#include "rows/row_params.h"

namespace batchllm::cuda {

void rms_norm(const RmsNormParams& params, int64_t num_rows, Stream stream);
void rotate(const RotateParams& params, int64_t num_rows, Stream stream);
void silu_and_mul(const SiluAndMulParams& params, int64_t num_rows, Stream stream);

}  // namespace batchllm::cuda
