// Row operations over memory of one device, each one launch: the CUDA twins of four of the CPU's, and what takes the
// place of four of them in a layer.
#pragma once

#include <cstdint>

#include "cuda/stream.h"
#include "rows/row_params.h"

namespace batchllm::cuda {

void rms_norm(const RmsNormParams& params, int64_t num_rows, Stream stream);
void rotate(const RotateParams& params, int64_t num_rows, Stream stream);
void norm_rotate_append(const NormRotateAppendParams& params, Stream stream);
void silu_and_mul(const SiluAndMulParams& params, int64_t num_rows, Stream stream);
void sample(const SampleParams& params, int64_t num_rows, Stream stream);

}  // namespace batchllm::cuda
