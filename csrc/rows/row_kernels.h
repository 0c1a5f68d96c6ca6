// The seam between the row operations and their kernels: one set per instruction set, all from row_kernels.inc. As in
// attention/cpu/kernel.h, only plain structs may be included here.
#pragma once

#include "rows/row_params.h"

namespace batchllm {

// Each processes the rows [begin, end).
struct RowKernels {
    void (*rms_norm)(const RmsNormParams& params, int64_t begin, int64_t end);
    void (*rotate)(const RotateParams& params, int64_t begin, int64_t end);
    void (*silu_and_mul)(const SiluAndMulParams& params, int64_t begin, int64_t end);
    void (*argmax_and_lse)(const ArgmaxAndLseParams& params, int64_t begin, int64_t end);
    void (*sample)(const SampleParams& params, int64_t begin, int64_t end);
    void (*quantize_rows)(const QuantizeParams& params, int64_t begin, int64_t end);
    void (*dequantize_rows)(const DequantizeParams& params, int64_t begin, int64_t end);
    void (*norm_quantize)(const NormQuantizeParams& params, int64_t begin, int64_t end);
    void (*silu_mul_quantize)(const SiluMulQuantizeParams& params, int64_t begin, int64_t end);
};

extern const RowKernels kBaseRowKernels;
#ifdef BATCHLLM_X86_KERNELS
extern const RowKernels kAvx2RowKernels;
extern const RowKernels kAvx512RowKernels;
#endif

}  // namespace batchllm
