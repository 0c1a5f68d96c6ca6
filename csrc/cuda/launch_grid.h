// How the items of a kernel are dealt to threads. The device launch and the tests on the CPU take the same way.
//
// A kernel's work is a callable struct: row_count() rows of items_per_row() items, work(row, item) does one. Items are
// independent of each other and of the threads that do them: no shared memory, no barriers, no atomics.
//
// The items of one launch are counted in 32 bits, because a division of 64 is a subroutine on a GPU; what is more takes
// more launches.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "base/host_device.h"

namespace batchllm::cuda {

// One dimension.
struct LaunchGrid {
    uint32_t num_blocks;
    uint32_t block_size;
};

// When a launch begins. Early is as soon as every block of the launch before has called let_next_launch_begin or is
// done, on GPUs that can (sm_90 on). A kernel that is so launched calls wait_for_earlier_launches before it touches
// what these write or read; at least its last block calls it, so that what comes after a launch comes after all before
// it.
enum class Begin { kInOrder, kEarly };

constexpr int64_t kMaxBlocks = INT32_MAX;  // what CUDA allows
constexpr int64_t kMaxItems = int64_t{1} << 31;
constexpr uint32_t kWorkThreads = 256;  // of a block

// What one launch does: rows of a work, from row_begin on.
template <typename Work>
struct WorkRows {
    Work work;
    int64_t row_begin;
    uint32_t num_items;
    uint32_t items_per_row;

    BATCHLLM_HOST_DEVICE void run_thread(uint32_t block, uint32_t thread) const {
        const uint32_t item = block * kWorkThreads + thread;
        if (item < num_items) work(row_begin + item / items_per_row, item % items_per_row);
    }
};

// Calls launch(rows, grid) for all rows of a work, in as few launches as max_items allows; not at all where there are
// no items. Throws std::invalid_argument where a row alone is too long.
template <typename Work, typename Launch>
void for_each_launch(const Work& work, const Launch& launch, int64_t max_items = kMaxItems) {
    const int64_t items_per_row = work.items_per_row();
    if (items_per_row > max_items) {
        throw std::invalid_argument("expected rows of at most " + std::to_string(max_items) + " items, got " +
                                    std::to_string(items_per_row));
    }
    if (items_per_row == 0) return;
    const int64_t most_rows = max_items / items_per_row;
    for (int64_t row = 0; row < work.row_count(); row += most_rows) {
        const int64_t num_items = std::min(most_rows, work.row_count() - row) * items_per_row;
        const auto num_blocks = static_cast<uint32_t>((num_items + kWorkThreads - 1) / kWorkThreads);
        launch(WorkRows<Work>{work, row, static_cast<uint32_t>(num_items), static_cast<uint32_t>(items_per_row)},
               LaunchGrid{num_blocks, kWorkThreads});
    }
}

}  // namespace batchllm::cuda
