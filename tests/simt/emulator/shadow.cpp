#include "simt/emulator/shadow.h"

#include <algorithm>

#include "simt/emulator/block.h"
#include "simt/emulator/memory.h"

namespace simt {

bool& checks_accesses() {
    static bool checks = false;
    return checks;
}

void Who::add(Who other) {
    first_ = std::min(first_, other.first_);
    last_ = std::max(last_, other.last_);
}

bool Who::is_in_warp_of(Who thread) const {
    return first_ / kWarpSize == thread.first_ / kWarpSize && last_ / kWarpSize == thread.first_ / kWarpSize;
}

namespace {

// The first barrier number of the launch that runs.
uint32_t launch_begin = 0;
// That of the first launch that may not be done yet.
uint32_t unfinished_begin = 0;

Event event_now() {
    const Block& block = *Block::running();
    return {block.num_barriers(), block.num_warp_barriers(block.self().warp), Who(block.self().id)};
}

bool is_ordered(const Event& earlier, const Event& now) {
    if (earlier.barrier < launch_begin) {
        return earlier.barrier < unfinished_begin || Block::running()->self().has_waited;
    }
    if (earlier.barrier < Block::running()->first_barrier()) return false;  // another block of this launch
    if (earlier.barrier < now.barrier || earlier.who.is_only(now.who)) return true;
    return earlier.who.is_in_warp_of(now.who) && earlier.warp_barrier < now.warp_barrier;
}

void add_read(Event& read, const Event& now) {
    const bool same_interval = read.barrier == now.barrier;
    if (same_interval && !(read.who.is_in_warp_of(now.who) && read.warp_barrier < now.warp_barrier)) {
        read.who.add(now.who);
        read.warp_barrier = now.warp_barrier;
    } else {
        read = now;
    }
}

// The cells of an access; none where there is nothing more to check.
struct Cells {
    Cell* first = nullptr;
    size_t num = 0;
    bool is_shared = false;
};

std::string describe(const Access& access, const std::string& where) {
    const char* verb = access.type == Access::kRead ? "read of " : "write of ";
    return verb + std::to_string(access.bytes) + " bytes " + where;
}

Cells find_cells(const Access& access, const Location& location) {
    const auto address = reinterpret_cast<uintptr_t>(access.address);
    const size_t num = (address % kCellBytes + access.bytes + kCellBytes - 1) / kCellBytes;
    const SharedMemory& shared = SharedMemory::instance();
    if (shared.is_near(address)) {
        if (shared.contains(address, access.bytes)) return {shared.cell(address), num, true};
        report(Kind::kSharedBounds, location, describe(access, shared.describe(address)));
        return {};
    }
    if (!GlobalBuffer::is_near(address)) return {};  // the host's memory: the launch's arguments
    const GlobalBuffer* buffer = GlobalBuffer::find(address, access.bytes);
    if (buffer == nullptr) {
        report(Kind::kGlobalBounds, location, describe(access, "beside a buffer"));
        return {};
    }
    if (buffer->use() == Use::kOutput) return {buffer->cell(address), num, false};
    if (access.type != Access::kRead) report(Kind::kReadOnly, location, describe(access, "of " + buffer->name()));
    return {};
}

std::string by_thread(const char* what, const Event& event) {
    return std::string(what) + " thread " + std::to_string(event.who.any());
}

void check_cell(Cell& cell, const Cells& cells, Access::Type type, const Event& now, const Location& location) {
    const Kind race = cells.is_shared ? Kind::kSharedRace : Kind::kGlobalRace;
    const bool is_first = cells.is_shared && cell.write.barrier < Block::running()->first_barrier();
    const bool old_read = cells.is_shared && cell.read.barrier < Block::running()->first_barrier();
    if (is_first) {
        if (type == Access::kRead) report(Kind::kUninitialised, location, "read before any write of this block");
    } else if (cell.is_pending) {
        report(Kind::kAsyncPending, location, by_thread("before cp.async.wait_group of", cell.write));
    } else if (!is_ordered(cell.write, now) && !(type == Access::kAtomic && cell.is_atomic)) {
        report(race, location, by_thread("not ordered behind the write of", cell.write));
    }
    if (type != Access::kRead && !old_read && !is_ordered(cell.read, now)) {
        report(race, location, by_thread("write not ordered behind the read of", cell.read));
    }
    if (type == Access::kRead) {
        add_read(cell.read, now);
    } else {
        cell.write = now;
        cell.is_atomic = type == Access::kAtomic;
        cell.is_pending = false;
    }
}

}  // namespace

void start_launch_in_shadow(bool begins_early) {
    launch_begin = Block::num_barriers() + 1;
    if (!begins_early) unfinished_begin = launch_begin;
}

void check_access(const Access& access, const Location& location) {
    const Block* block = Block::running();
    if (FiberStacks::contain(access.address)) return;
    if (!checks_accesses() || block == nullptr || !block->has_self()) return;
    const Cells cells = find_cells(access, location);
    if (cells.num == 0) return;
    const Event now = event_now();
    for (size_t i = 0; i < cells.num; ++i) check_cell(cells.first[i], cells, access.type, now, location);
}

void begin_async_write(const void* address, size_t bytes, const Location& location) {
    const Access access{address, bytes, Access::kWrite};
    check_access(access, location);
    if (!checks_accesses()) return;
    const Cells cells = find_cells(access, location);
    for (size_t i = 0; i < cells.num; ++i) cells.first[i].is_pending = true;
}

void end_async_write(const void* address, size_t bytes) {
    if (!checks_accesses()) return;
    const Cells cells = find_cells({address, bytes, Access::kWrite}, Location(nullptr));
    const Event now = event_now();
    for (size_t i = 0; i < cells.num; ++i) {
        cells.first[i].write = now;
        cells.first[i].is_pending = false;
    }
}

}  // namespace simt
