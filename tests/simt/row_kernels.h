// The row kernels whose threads work together, on the emulator. row_kernels.cpp is compiled twice, like
// attention_kernels.cpp.
#pragma once

#include "rows/row_params.h"
#include "simt/emulator/block.h"

namespace batchllm::simt_test {

void run_rms_norm(const RmsNormParams& params, int64_t num_rows, const simt::Schedule& schedule);
void run_norm_rotate_append(const NormRotateAppendParams& params, const simt::Schedule& schedule);
void run_sample(const SampleParams& params, int64_t num_rows, const simt::Schedule& schedule);

}  // namespace batchllm::simt_test
