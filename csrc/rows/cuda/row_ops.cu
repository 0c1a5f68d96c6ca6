#include "cuda/launch.cuh"
#include "rows/cuda/norm_rotate_append_kernel.cuh"
#include "rows/cuda/rms_norm_kernel.cuh"
#include "rows/cuda/rotate_thread.h"
#include "rows/cuda/row_ops.h"
#include "rows/cuda/sample_kernel.cuh"
#include "rows/cuda/silu_and_mul_thread.h"

namespace batchllm::cuda {

void rms_norm(const RmsNormParams& params, int64_t num_rows, Stream stream) {
    launch_rms_norm(params, num_rows, StreamLauncher{stream});
}

void rotate(const RotateParams& params, int64_t num_rows, Stream stream) {
    with_work<RotateWork>(params, num_rows, [&](const auto& work) { launch(work, stream); });
}

void norm_rotate_append(const NormRotateAppendParams& params, Stream stream) {
    launch_norm_rotate_append(params, StreamLauncher{stream});
}

void silu_and_mul(const SiluAndMulParams& params, int64_t num_rows, Stream stream) {
    with_work<SiluAndMulWork>(params, num_rows, [&](const auto& work) { launch(work, stream); });
}

void sample(const SampleParams& params, int64_t num_rows, Stream stream) {
    launch_sample(params, num_rows, StreamLauncher{stream});
}

}  // namespace batchllm::cuda
