// The CUDA twins of three row operations, over memory of one device; see attention/cuda/cuda.h for what a stream and a
// build without CUDA are. Each is one launch.
#pragma once

#include <cstdint>

#include "attention/cuda/cuda.h"
#include "ops/row_params.h"

namespace batchllm::cuda {

void rms_norm(const RmsNormParams& params, int64_t num_rows, Stream stream);
void rotate(const RotateParams& params, int64_t num_rows, Stream stream);
void silu_and_mul(const SiluAndMulParams& params, int64_t num_rows, Stream stream);

}  // namespace batchllm::cuda
