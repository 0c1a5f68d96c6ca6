// How plain loads and stores are seen. A checked build compiles kernels with -fsanitize=thread and links them without
// it: the compiler calls these functions at every load and store, and they are the emulator's. Nothing of the thread
// sanitizer runs. (This file itself must not be compiled so.)
#include <cstddef>
#include <cstdint>
#include <string>

#include "simt/emulator/block.h"
#include "simt/emulator/shadow.h"

namespace simt {
namespace {

void on_access(const void* address, size_t bytes, Access::Type type, bool aligned, const void* return_address) {
    if (FiberStacks::contain(address)) return;
    Block* block = Block::running();
    if (!checks_accesses() || block == nullptr || !block->has_self()) return;
    const Location location(return_address);
    if (aligned && reinterpret_cast<uintptr_t>(address) % bytes != 0) {
        report(Kind::kMisaligned, location, "access of " + std::to_string(bytes) + " bytes");
    }
    check_access({address, bytes, type}, location);
    block->preempt();
}

}  // namespace
}  // namespace simt

using simt::Access;
using simt::on_access;

extern "C" {

#define HOOKS(bytes)                                                                   \
    void __tsan_read##bytes(void* address) {                                           \
        on_access(address, bytes, Access::kRead, true, __builtin_return_address(0));   \
    }                                                                                  \
    void __tsan_write##bytes(void* address) {                                          \
        on_access(address, bytes, Access::kWrite, true, __builtin_return_address(0));  \
    }                                                                                  \
    void __tsan_unaligned_read##bytes(void* address) {                                 \
        on_access(address, bytes, Access::kRead, false, __builtin_return_address(0));  \
    }                                                                                  \
    void __tsan_unaligned_write##bytes(void* address) {                                \
        on_access(address, bytes, Access::kWrite, false, __builtin_return_address(0)); \
    }

HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void __tsan_read_range(void* address, size_t bytes) {
    on_access(address, bytes, Access::kRead, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
    on_access(address, bytes, Access::kWrite, false, __builtin_return_address(0));
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
