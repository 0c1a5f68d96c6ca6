// Memory that a thread keeps from call to call: kernels run once per layer, and fresh pages cost more than they hold.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace batchllm {

class Workspace {
 public:
    // 64-byte aligned; what it contains must not be read before it is written.
    float* at_least(int64_t num_floats) {
        if (num_floats > size_) {
            memory_.reset();  // first, so that both need not fit
            size_ = 0;
            const size_t bytes = (num_floats * sizeof(float) + 63) / 64 * 64;
            memory_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
            if (!memory_) throw std::bad_alloc();
            size_ = num_floats;
        }
        return memory_.get();
    }

 private:
    struct Free {
        void operator()(float* memory) const { std::free(memory); }
    };
    std::unique_ptr<float, Free> memory_;
    int64_t size_ = 0;
};

}  // namespace batchllm
