#include "rows/row_ops.h"

#include <algorithm>

#include "cpu/threads.h"

namespace batchllm {

const RowKernels& row_kernels_for(CpuIsa isa) {
    switch (isa) {
#ifdef BATCHLLM_X86_KERNELS
        case CpuIsa::kAvx2:
            return kAvx2RowKernels;
        case CpuIsa::kAvx512:
        case CpuIsa::kAvx512Bf16:
            return kAvx512RowKernels;
#endif
        default:
            return kBaseRowKernels;
    }
}

namespace {

// Cuts the rows into one run per thread; a thread is worth waking for some ten microseconds of work.
template <typename Params>
void run(void (*RowKernels::*kernel)(const Params&, int64_t, int64_t), const Params& params, int64_t num_rows,
         int64_t row_size, int32_t num_threads) {
    constexpr int64_t kElementsPerThread = 1 << 15;
    static const RowKernels& kernels = row_kernels_for(selected_isa());
    if (row_size == 0) return;  // of any number of rows
    const int64_t useful_threads = (num_rows * row_size + kElementsPerThread - 1) / kElementsPerThread;
    const int32_t num_runs = num_openmp_threads(num_threads, std::min(useful_threads, num_rows));
#pragma omp parallel for schedule(static) num_threads(num_runs)
    for (int32_t i = 0; i < num_runs; ++i) {
        (kernels.*kernel)(params, num_rows * i / num_runs, num_rows * (i + 1) / num_runs);
    }
}

}  // namespace

void rms_norm(const RmsNormParams& params, int64_t num_rows, int32_t num_threads) {
    run(&RowKernels::rms_norm, params, num_rows, params.num_heads * params.size, num_threads);
}

void rotate(const RotateParams& params, int64_t num_rows, int32_t num_threads) {
    run(&RowKernels::rotate, params, num_rows, params.num_heads * params.size, num_threads);
}

void silu_and_mul(const SiluAndMulParams& params, int64_t num_rows, int32_t num_threads) {
    run(&RowKernels::silu_and_mul, params, num_rows, params.size, num_threads);
}

void argmax_and_lse(const ArgmaxAndLseParams& params, int64_t num_rows, int32_t num_threads) {
    run(&RowKernels::argmax_and_lse, params, num_rows, params.vocab_size, num_threads);
}

void sample(const SampleParams& params, int64_t num_rows, int32_t num_threads) {
    run(&RowKernels::sample, params, num_rows, params.vocab_size, num_threads);
}

void quantize_rows(const QuantizeParams& params, int64_t num_rows, int32_t num_threads) {
    run(&RowKernels::quantize_rows, params, num_rows, params.size, num_threads);
}

void dequantize_rows(const DequantizeParams& params, int64_t num_rows, int32_t num_threads) {
    run(&RowKernels::dequantize_rows, params, num_rows, params.size, num_threads);
}

void norm_quantize(const NormQuantizeParams& params, int64_t num_rows, int32_t num_threads) {
    run(&RowKernels::norm_quantize, params, num_rows, params.size, num_threads);
}

void silu_mul_quantize(const SiluMulQuantizeParams& params, int64_t num_rows, int32_t num_threads) {
    run(&RowKernels::silu_mul_quantize, params, num_rows, params.size, num_threads);
}

}  // namespace batchllm
