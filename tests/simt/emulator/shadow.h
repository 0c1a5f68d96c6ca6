// What is known about every two bytes of shared memory and of outputs: who touched them last, and when.
//
// Time is counted in barriers: two accesses of different threads are ordered if a __syncthreads lies between them, or,
// within a warp, a __syncwarp. Of reads the last interval is kept: the thread, or that there were several.
#pragma once

#include <cstddef>
#include <cstdint>

#include "simt/emulator/findings.h"

namespace simt {

constexpr size_t kCellBytes = 2;

// Threads of a block that did something: one, several of a warp, or more.
class Who {
 public:
    Who() = default;
    explicit Who(int thread) : first_(static_cast<uint16_t>(thread)), last_(first_) {}

    void add(Who other);
    bool is_only(Who thread) const { return first_ == thread.first_ && last_ == thread.last_; }
    bool is_in_warp_of(Who thread) const;
    int any() const { return first_; }

 private:
    uint16_t first_ = 0, last_ = 0;  // the lowest and the highest
};

struct Event {
    uint32_t barrier = 0;       // Block::num_barriers when it happened; 0: never
    uint32_t warp_barrier = 0;  // likewise, of the thread's warp
    Who who;
};

struct Cell {
    Event write;
    Event read;
    bool is_atomic = false;   // the write
    bool is_pending = false;  // the write is a cp.async that was not waited for
};

struct Access {
    enum Type : uint8_t { kRead, kWrite, kAtomic };

    const void* address;
    size_t bytes;
    Type type;
};

// Accesses of different launches are ordered, but for those of a launch that begins early: its threads must wait for
// the earlier ones, back to the last that began in order.
void start_launch_in_shadow(bool begins_early);

// Whether loads and stores are checked; it needs kernels that were compiled for it (hooks.cpp).
bool& checks_accesses();

// An access of the running thread: reports what is wrong with it, and takes it down.
void check_access(const Access& access, const Location& location);

// A write that happens some time between the two calls.
void begin_async_write(const void* address, size_t bytes, const Location& location);
void end_async_write(const void* address, size_t bytes);

}  // namespace simt
