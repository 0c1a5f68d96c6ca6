// The operations of a forward pass between its matrix products, and of sampling on the logits: each is one pass over
// independent rows, in float32, rounded once. Results do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "rows/row_kernels.h"

namespace batchllm {

// The kernels of an instruction set that this machine has. The functions below use those of selected_isa().
const RowKernels& row_kernels_for(CpuIsa isa);

void rms_norm(const RmsNormParams& params, int64_t num_rows, int32_t num_threads);
void rotate(const RotateParams& params, int64_t num_rows, int32_t num_threads);
void silu_and_mul(const SiluAndMulParams& params, int64_t num_rows, int32_t num_threads);
void argmax_and_lse(const ArgmaxAndLseParams& params, int64_t num_rows, int32_t num_threads);
void sample(const SampleParams& params, int64_t num_rows, int32_t num_threads);
void quantize_rows(const QuantizeParams& params, int64_t num_rows, int32_t num_threads);
void dequantize_rows(const DequantizeParams& params, int64_t num_rows, int32_t num_threads);
void norm_quantize(const NormQuantizeParams& params, int64_t num_rows, int32_t num_threads);
void silu_mul_quantize(const SiluMulQuantizeParams& params, int64_t num_rows, int32_t num_threads);

}  // namespace batchllm
