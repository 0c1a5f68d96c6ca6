#include "simt/emulator/launch.h"

#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "simt/emulator/memory.h"
#include "simt/emulator/shadow.h"

namespace simt {
namespace {

sigjmp_buf after_fault;
void* volatile fault_address;

void on_fault(int signal_number, siginfo_t* info, void*) {
    const Block* block = Block::running();
    if (block == nullptr || !block->has_self()) {  // not a kernel's
        std::signal(signal_number, SIG_DFL);
        std::raise(signal_number);
        return;
    }
    fault_address = info->si_addr;
    siglongjmp(after_fault, 1);
}

// Takes faults while kernels run. The handler needs a stack of its own: a fiber's may be what has overflowed.
class FaultHandler {
 public:
    FaultHandler() : stack_(kStackBytes) {
        stack_t stack{};
        stack.ss_sp = stack_.data();
        stack.ss_size = stack_.size();
        sigaltstack(&stack, &old_stack_);
        struct sigaction action{};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, &old_segv_);
        sigaction(SIGBUS, &action, &old_bus_);
    }
    ~FaultHandler() {
        sigaction(SIGSEGV, &old_segv_, nullptr);
        sigaction(SIGBUS, &old_bus_, nullptr);
        sigaltstack(&old_stack_, nullptr);
    }
    FaultHandler(const FaultHandler&) = delete;
    FaultHandler& operator=(const FaultHandler&) = delete;

 private:
    static constexpr size_t kStackBytes = 64 * 1024;

    std::vector<std::byte> stack_;
    stack_t old_stack_{};
    struct sigaction old_segv_{}, old_bus_{};
};

void report_fault() {
    void* const address = fault_address;
    const auto bits = reinterpret_cast<uintptr_t>(address);
    const Kind kind = SharedMemory::instance().is_near(bits) ? Kind::kSharedBounds
                      : GlobalBuffer::is_near(bits)          ? Kind::kGlobalBounds
                                                             : Kind::kStackOverflow;
    char text[64];
    std::snprintf(text, sizeof text, "the processor faults at %p", address);
    report(kind, Location(nullptr), text);
}

bool is_legal(const LaunchConfig& config) {
    const size_t num_threads = size_t{config.block.x} * config.block.y * config.block.z;
    if (num_threads >= 1 && num_threads <= kMaxThreads && config.dynamic_shared_bytes <= kMaxDynamicShared) return true;
    report(Kind::kTooManyResources, Location(nullptr),
           std::to_string(num_threads) + " threads, " + std::to_string(config.dynamic_shared_bytes) +
               " bytes of shared memory");
    return false;
}

// Returns whether the next block may run. Only plain types live here, so the jump out of a fault skips no destructor.
bool run_block(Block& block) {
    if (sigsetjmp(after_fault, 0) == 0) return block.run();
    report_fault();
    block.abandon();
    return false;
}

}  // namespace

void launch_raw(const LaunchConfig& config, const Schedule& schedule, void (*kernel)(void*), void* context) {
    if (!is_legal(config)) return;
    const FaultHandler handler;
    start_launch_in_shadow(config.begins_early);
    bool has_waited = false;
    for (unsigned z = 0; z < config.grid.z; ++z) {
        for (unsigned y = 0; y < config.grid.y; ++y) {
            for (unsigned x = 0; x < config.grid.x; ++x) {
                SharedMemory::instance().start_block(config.dynamic_shared_bytes);
                Block block(config, {x, y, z}, schedule, kernel, context);
                if (!run_block(block)) return;
                has_waited |= block.has_waited();
            }
        }
    }
    if (config.begins_early && !has_waited) {
        report(Kind::kNeverWaits, Location(nullptr),
               "what follows this launch might begin before earlier ones are done");
    }
}

}  // namespace simt
