#include "simt/emulator/block.h"

#include <algorithm>
#include <bit>

#include "simt/emulator/shadow.h"

namespace simt {

Block* Block::running_ = nullptr;
uint32_t Block::num_barriers_ = 0;

Block::Block(const LaunchConfig& config, Index3 index, const Schedule& schedule, void (*kernel)(void*), void* context)
    : config_(config),
      index_(index),
      schedule_(schedule),
      kernel_(kernel),
      context_(context),
      first_barrier_(++num_barriers_),
      random_state_(schedule.seed * 0x9E3779B97F4A7C15u + num_barriers_ + 1) {
    running_ = this;
    start_threads();
}

void Block::start_threads() {
    const Index3 size = config_.block;
    const int num_threads = static_cast<int>(size.x * size.y * size.z);
    threads_.resize(num_threads);
    warps_.resize((num_threads + kWarpSize - 1) / kWarpSize);
    const FiberStacks& stacks = FiberStacks::of(num_threads);
    for (int id = 0; id < num_threads; ++id) {
        Thread& thread = threads_[id];
        thread.context = new_context(stacks.end(id), &Block::run_thread);
        thread.id = id;
        thread.warp = id / kWarpSize;
        thread.lane = id % kWarpSize;
        thread.index = {id % size.x, id / size.x % size.y, id / (size.x * size.y)};
        warps_[thread.warp].lanes |= 1u << thread.lane;
    }
    for (Warp& warp : warps_) warp.ready = warp.lanes;
    num_live_ = num_threads;
}

bool Block::run() {
    self_ = next_thread();
    simt_switch_context(&host_, &self_->context);
    return num_live_ == 0;
}

bool Block::has_waited() const {
    return std::ranges::any_of(threads_, &Thread::has_waited);
}

void Block::run_thread() {
    running_->kernel_(running_->context_);
    running_->exit_thread();
}

void Block::exit_thread() {
    Warp& warp = warps_[self_->warp];
    self_->copies.finish();
    warp.ready &= ~(1u << self_->lane);
    warp.exited |= 1u << self_->lane;
    --num_live_;
    if (num_live_ > 0 && num_at_barrier_ == num_live_) release_barrier();
    wait();
}

void Block::switch_to(Context& context, Thread* thread) {
    Context& from = self_->context;
    self_ = thread;
    simt_switch_context(&from, &context);
}

void Block::wait() {
    Thread* next = next_thread();
    if (next == self_) return;
    if (next != nullptr) return switch_to(next->context, next);
    if (num_live_ > 0) report_deadlock();
    switch_to(host_, nullptr);
}

Thread* Block::next_thread() {
    const int num_warps = static_cast<int>(warps_.size());
    const auto thread = [&](int warp, int lane) { return &threads_[warp * kWarpSize + lane]; };
    switch (schedule_.order) {
        case Order::kAscending:
            for (int warp = 0; warp < num_warps; ++warp) {
                if (warps_[warp].ready != 0) return thread(warp, std::countr_zero(warps_[warp].ready));
            }
            return nullptr;
        case Order::kDescending:
            for (int warp = num_warps - 1; warp >= 0; --warp) {
                if (warps_[warp].ready != 0) return thread(warp, 31 - std::countl_zero(warps_[warp].ready));
            }
            return nullptr;
        case Order::kRandom:
            break;
    }
    int num_ready = 0;
    for (const Warp& warp : warps_) num_ready += std::popcount(warp.ready);
    if (num_ready == 0) return nullptr;
    int skip = static_cast<int>(random() % num_ready);
    for (int warp = 0;; ++warp) {
        uint32_t ready = warps_[warp].ready;
        if (skip >= std::popcount(ready)) {
            skip -= std::popcount(ready);
            continue;
        }
        for (; skip > 0; --skip) ready &= ready - 1;
        return thread(warp, std::countr_zero(ready));
    }
}

void Block::release_barrier() {
    num_at_barrier_ = 0;
    ++num_barriers_;
    for (Warp& warp : warps_) {
        warp.ready |= warp.at_barrier;
        warp.at_barrier = 0;
    }
}

void Block::sync_threads(const Location& location) {
    Warp& warp = warps_[self_->warp];
    if (num_at_barrier_ > 0 && !(location == barrier_location_)) {
        report(Kind::kDivergence, location, "__syncthreads while others wait at " + barrier_location_.text());
    }
    barrier_location_ = location;
    warp.ready &= ~(1u << self_->lane);
    warp.at_barrier |= 1u << self_->lane;
    if (++num_at_barrier_ == num_live_) release_barrier();
    wait();
}

Block::Meeting* Block::find_meeting(Warp& warp, uint32_t mask) {
    Meeting* unused = nullptr;
    for (Meeting& meeting : warp.meetings) {
        if (meeting.arrived != 0 && meeting.mask == mask) return &meeting;
        if (meeting.arrived == 0 && unused == nullptr) unused = &meeting;
    }
    return unused;
}

void Block::meet(uint32_t mask, Collective collective, void* argument, const Location& location) {
    Warp& warp = warps_[self_->warp];
    const uint32_t me = 1u << self_->lane;
    mask &= warp.lanes;
    if ((mask & me) == 0) return report(Kind::kDivergence, location, "the calling lane is not in its own mask");
    if ((mask & warp.exited) != 0) report(Kind::kDivergence, location, "the mask names a lane that has exited");
    Meeting* meeting = find_meeting(warp, mask);
    if (meeting == nullptr) return report(Kind::kDivergence, location, "more masks in one warp than are modelled");
    if (meeting->arrived == 0) {
        meeting->mask = mask;
        meeting->collective = collective;
        meeting->location = location;
    } else if (meeting->collective != collective || !(meeting->location == location)) {
        report(Kind::kDivergence, location, "other lanes of the mask are at " + meeting->location.text());
    }
    meeting->argument_of_lane[self_->lane] = argument;
    meeting->arrived |= me;
    if (meeting->arrived == mask) {
        collective(meeting->argument_of_lane, mask);
        meeting->arrived = 0;
        warp.ready |= mask;
    } else {
        warp.ready &= ~me;
    }
    wait();
}

// Only the barrier of all live lanes orders memory here.
void Block::sync_warp(uint32_t mask, const Location& location) {
    const auto count = [](void* const*, uint32_t lanes) {
        Warp& warp = running_->warps_[running_->self_->warp];
        if (lanes == (warp.lanes & ~warp.exited)) ++warp.num_barriers;
    };
    meet(mask, count, nullptr, location);
}

void Block::preempt() {
    if (schedule_.preempt_one_in != 0 && random() % schedule_.preempt_one_in == 0) wait();
}

void Block::report_deadlock() {
    std::string text = std::to_string(num_live_) + " threads wait for ever:";
    for (size_t warp = 0; warp < warps_.size(); ++warp) {
        const std::string of_warp = " lanes of warp " + std::to_string(warp) + " at ";
        if (warps_[warp].at_barrier != 0) {
            text += " " + std::to_string(std::popcount(warps_[warp].at_barrier)) + of_warp + barrier_location_.text();
        }
        for (const Meeting& meeting : warps_[warp].meetings) {
            if (meeting.arrived == 0) continue;
            text += " " + std::to_string(std::popcount(meeting.arrived)) + of_warp + meeting.location.text();
        }
    }
    report(Kind::kDeadlock, barrier_location_, text);
}

uint64_t Block::random() {  // xorshift64
    random_state_ ^= random_state_ << 13;
    random_state_ ^= random_state_ >> 7;
    random_state_ ^= random_state_ << 17;
    return random_state_;
}

Index3 thread_index() {
    return Block::running()->self().index;
}
Index3 block_index() {
    return Block::running()->index();
}
Index3 block_size() {
    return Block::running()->config().block;
}
Index3 grid_size() {
    return Block::running()->config().grid;
}

}  // namespace simt
