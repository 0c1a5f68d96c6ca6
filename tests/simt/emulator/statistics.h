// Counts of what kernels did, since they were last set to zero.
#pragma once

#include <cstdint>

namespace simt {

struct Statistics {
    uint64_t barriers = 0;
    uint64_t products = 0;  // mma, of 16 x 16 x 16
    uint64_t matrix_loads = 0;
    uint64_t bank_conflicts = 0;  // further passes that ldmatrix takes over shared memory
    uint64_t async_copies = 0;
};

inline Statistics& statistics() {
    static Statistics counts;
    return counts;
}

}  // namespace simt
