// cp.async: what a thread has asked to be copied into shared memory, and is not there yet.
//
// A copy is made at the latest legal moment, when the thread waits for its group. Until then its destination holds NaN,
// and in a checked build nobody may touch it.
#pragma once

#include <cstddef>
#include <vector>

#include "simt/emulator/findings.h"

namespace simt {

class AsyncCopies {
 public:
    // 16 bytes; where `valid` is false they become zeros, and nothing is read.
    void issue(void* to, const void* from, bool valid, const Location& location);
    void commit();
    void wait(size_t most_pending_groups);
    void finish();  // a thread that exits

 private:
    struct Copy {
        void* to;
        const void* from;  // nullptr: zeros
    };
    using Group = std::vector<Copy>;

    Group open_;
    std::vector<Group> groups_;  // oldest first
};

// Of the running thread.
void issue_async_copy(void* to, const void* from, bool valid, const Location& location);
void commit_async_copies();
void wait_for_async_copies(size_t most_pending_groups);

}  // namespace simt
