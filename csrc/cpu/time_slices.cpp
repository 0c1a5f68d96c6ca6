#include "cpu/time_slices.h"

#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "cpu/threads.h"

namespace batchllm {

#ifdef __linux__
namespace {

constexpr uint64_t kSliceNs = 500'000;

// The kernel's struct sched_attr, in its first version. C libraries have neither it nor its calls.
struct SchedulingAttributes {
    uint32_t size = sizeof(SchedulingAttributes);
    uint32_t policy = 0;
    uint64_t flags = 0;
    int32_t nice = 0;
    uint32_t priority = 0;
    uint64_t runtime_ns = 0;  // of an ordinary thread, its slice
    uint64_t deadline_ns = 0;
    uint64_t period_ns = 0;
};
static_assert(sizeof(SchedulingAttributes) == 48);

// Of the calling thread. A kernel that refuses leaves it as it is.
void shorten_time_slice() {
    constexpr pid_t kThisThread = 0;
    SchedulingAttributes attributes;
    if (syscall(SYS_sched_getattr, kThisThread, &attributes, sizeof(attributes), 0) != 0) return;
    if (attributes.policy != SCHED_OTHER && attributes.policy != SCHED_BATCH) return;
    if (attributes.runtime_ns != 0 && attributes.runtime_ns <= kSliceNs) return;
    attributes.runtime_ns = kSliceNs;
    syscall(SYS_sched_setattr, kThisThread, &attributes, 0);
}

}  // namespace

void shorten_time_slices(int32_t num_threads) {
    num_threads = num_openmp_threads(num_threads, num_threads);
#pragma omp parallel num_threads(num_threads)
    shorten_time_slice();
}
#else
void shorten_time_slices(int32_t) {}
#endif

}  // namespace batchllm
