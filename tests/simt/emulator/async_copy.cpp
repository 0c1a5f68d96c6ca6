#include "simt/emulator/async_copy.h"

#include <cstdint>
#include <cstring>

#include "simt/emulator/block.h"
#include "simt/emulator/shadow.h"
#include "simt/emulator/statistics.h"

namespace simt {

constexpr size_t kCopyBytes = 16;

void AsyncCopies::issue(void* to, const void* from, bool valid, const Location& location) {
    ++statistics().async_copies;
    const auto addresses = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
    if (addresses % kCopyBytes != 0) {
        return report(Kind::kMisaligned, location, "cp.async takes multiples of 16 bytes");
    }
    if (valid) check_access({from, kCopyBytes, Access::kRead}, location);
    begin_async_write(to, kCopyBytes, location);
    std::memset(to, 0xff, kCopyBytes);
    open_.push_back({to, valid ? from : nullptr});
}

void AsyncCopies::commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
}

void AsyncCopies::wait(size_t most_pending_groups) {
    while (groups_.size() > most_pending_groups) {
        for (const Copy& copy : groups_.front()) {
            if (copy.from != nullptr) {
                std::memcpy(copy.to, copy.from, kCopyBytes);
            } else {
                std::memset(copy.to, 0, kCopyBytes);
            }
            end_async_write(copy.to, kCopyBytes);
        }
        groups_.erase(groups_.begin());
    }
}

void AsyncCopies::finish() {
    commit();
    wait(0);
}

void issue_async_copy(void* to, const void* from, bool valid, const Location& location) {
    Block::running()->self().copies.issue(to, from, valid, location);
}
void commit_async_copies() {
    Block::running()->self().copies.commit();
}
void wait_for_async_copies(size_t most_pending_groups) {
    Block::running()->self().copies.wait(most_pending_groups);
}

}  // namespace simt
