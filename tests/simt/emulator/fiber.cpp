#include "simt/emulator/fiber.h"

#include <sys/mman.h>

#include <new>

#ifndef __x86_64__
#error "the emulator switches fibers in x86-64 assembly"
#endif

// The registers that a function must preserve, and the stack pointer. (swapcontext would add a system call.)
asm(R"(
    .text
    .globl simt_switch_context
    .type simt_switch_context, @function
simt_switch_context:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov (%rsi), %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size simt_switch_context, . - simt_switch_context
)");

namespace simt {

Context new_context(std::byte* stack_end, void (*entry)()) {
    constexpr int kSavedRegisters = 6;
    void** top = reinterpret_cast<void**>(stack_end);
    *--top = nullptr;  // the stack is aligned at a call, so 8 bytes behind it where the function begins
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
    return {top};
}

std::byte* FiberStacks::memory_ = nullptr;

FiberStacks& FiberStacks::of(int num_fibers) {
    static FiberStacks stacks;
    for (int& i = stacks.num_guarded_; i < num_fibers; ++i) mprotect(memory_ + i * kPitch, kGuardBytes, PROT_NONE);
    return stacks;
}

FiberStacks::FiberStacks() {
    void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<std::byte*>(memory);
}

}  // namespace simt
