#include "simt/row_kernels.h"

#include "rows/cuda/norm_rotate_append_kernel.cuh"
#include "rows/cuda/rms_norm_kernel.cuh"
#include "rows/cuda/sample_kernel.cuh"
#include "simt/emulator_launcher.h"

namespace batchllm::simt_test {

void run_rms_norm(const RmsNormParams& params, int64_t num_rows, const simt::Schedule& schedule) {
    cuda::launch_rms_norm(params, num_rows, EmulatorLauncher{schedule});
}

void run_norm_rotate_append(const NormRotateAppendParams& params, const simt::Schedule& schedule) {
    cuda::launch_norm_rotate_append(params, EmulatorLauncher{schedule});
}

void run_sample(const SampleParams& params, int64_t num_rows, const simt::Schedule& schedule) {
    cuda::launch_sample(params, num_rows, EmulatorLauncher{schedule});
}

}  // namespace batchllm::simt_test
