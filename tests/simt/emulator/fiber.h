// Stacks that hand the CPU to each other. Every CUDA thread of the running block is a fiber; all of them share one
// thread of the operating system, so nothing in the emulator needs a lock.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simt/emulator/limits.h"

namespace simt {

// Where a fiber stands while it does not run.
struct Context {
    void* stack_pointer = nullptr;
};

// Saves the caller in `from` and goes on where `to` was saved.
extern "C" void simt_switch_context(Context* from, const Context* to);

// A context that calls `entry` on a fresh stack when it is first switched to. `entry` must not return.
Context new_context(std::byte* stack_end, void (*entry)());

// The stacks of a block's fibers, each above a page that faults.
class FiberStacks {
 public:
    // Where the stack of each of the first so many fibers begins to grow down from.
    static FiberStacks& of(int num_fibers);
    std::byte* end(int fiber) const { return memory_ + static_cast<size_t>(fiber + 1) * kPitch; }

    // The running fiber's own variables, for one: what checks of memory pass over first.
    static bool contain(const void* address) {
        return reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(memory_) < kBytes;
    }

 private:
    FiberStacks();

    static constexpr size_t kGuardBytes = 4096;
    static constexpr size_t kStackBytes = 64 * 1024;
    static constexpr size_t kPitch = kGuardBytes + kStackBytes;
    static constexpr size_t kBytes = kPitch * kMaxThreads;

    static std::byte* memory_;
    int num_guarded_ = 0;  // a guard is a mapping of its own, of which a process has no endless number
};

}  // namespace simt
