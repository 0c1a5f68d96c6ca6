#include "cpu/threads.h"

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <stdexcept>

namespace batchllm {
namespace {

const pid_t kLoadingProcess = getpid();
const int32_t kMostThreads = std::max(16, omp_get_num_procs());

}  // namespace

int32_t num_openmp_threads(int32_t num_threads, int64_t num_parts) {
    num_threads = static_cast<int32_t>(std::clamp<int64_t>(num_parts, 1, std::min(num_threads, kMostThreads)));
    if (num_threads > 1) check_not_forked();
    return num_threads;
}

void check_not_forked() {
    if (getpid() == kLoadingProcess) return;
    throw std::runtime_error(
        "num_threads: expected 1 in a process that was forked after batchllm_ext was imported, because OpenMP's "
        "threads stay behind; or start processes by \"spawn\": multiprocessing.get_context(\"spawn\")");
}

}  // namespace batchllm
