// Threads of the planner: a range of work divided into equal parts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace batchllm {

// num_threads 0: one per core.
inline int resolve_num_threads(int num_threads) {
    return num_threads > 0 ? num_threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Calls work(begin, end) for num_parts consecutive parts of [0, size), each in its own thread, the first in the
// caller's, where parts also run for which the machine has no thread left. Once all parts are done, the exception of
// the first part that failed is rethrown.
template <typename Work>
void for_each_part(int64_t size, int num_parts, const Work& work) {
    if (num_parts == 1) return work(int64_t{0}, size);
    std::vector<std::exception_ptr> errors(num_parts);
    const auto run = [&](int64_t part) {
        try {
            work(size * part / num_parts, size * (part + 1) / num_parts);
        } catch (...) {
            errors[part] = std::current_exception();
        }
    };
    {
        std::vector<std::jthread> threads;
        threads.reserve(num_parts);
        int part = 1;
        try {
            for (; part < num_parts; ++part) threads.emplace_back(run, part);
        } catch (const std::system_error&) {
        }
        run(0);
        for (; part < num_parts; ++part) run(part);
    }
    for (const std::exception_ptr& error : errors) {
        if (error) std::rethrow_exception(error);
    }
}

}  // namespace batchllm
