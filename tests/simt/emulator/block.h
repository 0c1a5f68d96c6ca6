// One thread block: its threads as fibers, and where they wait for each other.
//
// A thread runs until it has to wait: at __syncthreads for the block, at a warp's collective (a shuffle, an mma) for
// the lanes of its mask. Who runs next is the schedule's choice. Blocks run one after another.
#pragma once

#include <cstdint>
#include <vector>

#include "simt/emulator/async_copy.h"
#include "simt/emulator/fiber.h"
#include "simt/emulator/findings.h"
#include "simt/emulator/limits.h"

namespace simt {

struct Index3 {
    unsigned x = 1, y = 1, z = 1;
};

enum class Order { kAscending, kDescending, kRandom };

// Which of the threads that can run does. In random order a thread may also lose its turn at any load or store of a
// checked build, one time in `preempt_one_in` (0: never).
struct Schedule {
    Order order = Order::kAscending;
    uint64_t seed = 1;
    unsigned preempt_one_in = 0;
};

struct LaunchConfig {
    Index3 grid;
    Index3 block;
    size_t dynamic_shared_bytes = 0;
    bool begins_early = false;  // perhaps before the launches before it are done
};

struct Thread {
    Context context;
    int id = 0;
    int warp = 0;
    int lane = 0;
    Index3 index;
    bool has_waited = false;  // for earlier launches
    AsyncCopies copies;
};

// Called by the last lane to arrive, with what each lane of the mask brought.
using Collective = void (*)(void* const* argument_of_lane, uint32_t mask);

class Block {
 public:
    // The block that runs, and none between launches.
    static Block* running() { return running_; }

    Block(const LaunchConfig& config, Index3 index, const Schedule& schedule, void (*kernel)(void*), void* context);
    ~Block() { running_ = nullptr; }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;

    bool run();                          // to the end; false: until nobody can go on
    bool has_waited() const;             // any of its threads, for earlier launches
    void abandon() { self_ = nullptr; }  // after a fault: the fibers stay where they are

    const LaunchConfig& config() const { return config_; }
    Index3 index() const { return index_; }
    bool has_self() const { return self_ != nullptr; }
    Thread& self() { return *self_; }
    const Thread& self() const { return *self_; }

    // What threads call.
    void sync_threads(const Location& location);
    void meet(uint32_t mask, Collective collective, void* argument, const Location& location);
    void sync_warp(uint32_t mask, const Location& location);
    void preempt();  // perhaps
    void wait_for_earlier_launches() { self_->has_waited = true; }

    // Barriers so far. The first counts on from block to block and launch to launch, so it also tells the blocks apart.
    static uint32_t num_barriers() { return num_barriers_; }
    uint32_t num_warp_barriers(int warp) const { return warps_[warp].num_barriers; }
    uint32_t first_barrier() const { return first_barrier_; }

 private:
    // Lanes that wait for the others of a mask.
    struct Meeting {
        uint32_t mask = 0;
        uint32_t arrived = 0;
        Collective collective = nullptr;
        Location location{nullptr};
        void* argument_of_lane[kWarpSize] = {};
    };
    struct Warp {
        uint32_t lanes = 0;
        uint32_t ready = 0;
        uint32_t at_barrier = 0;
        uint32_t exited = 0;
        uint32_t num_barriers = 0;
        Meeting meetings[4];
    };

    static void run_thread();
    void exit_thread();
    void start_threads();
    void wait();            // the running thread is not ready, or gives way
    Thread* next_thread();  // nullptr: nobody is ready
    void switch_to(Context& context, Thread* thread);
    void release_barrier();
    Meeting* find_meeting(Warp& warp, uint32_t mask);
    void report_deadlock();
    uint64_t random();

    static Block* running_;
    static uint32_t num_barriers_;

    LaunchConfig config_;
    Index3 index_;
    Schedule schedule_;
    void (*kernel_)(void*);
    void* context_;
    uint32_t first_barrier_;
    std::vector<Thread> threads_;
    std::vector<Warp> warps_;
    Context host_;
    Thread* self_ = nullptr;
    int num_live_ = 0;
    int num_at_barrier_ = 0;
    Location barrier_location_{nullptr};
    uint64_t random_state_;
};

// Of the running thread.
Index3 thread_index();
Index3 block_index();
Index3 block_size();
Index3 grid_size();

}  // namespace simt
