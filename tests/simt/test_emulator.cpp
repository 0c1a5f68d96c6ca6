// The emulator itself: what its instructions do, by descriptions that are not the emulator's own, and that it finds
// what is wrong. Built twice, with fast and with checked kernels.
#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <vector>

#include "base/bf16.h"
#include "base/half.h"
#include "simt/emulator/launch.h"
#include "simt/emulator/memory.h"
#include "simt/emulator/shadow.h"
#include "simt/emulator/statistics.h"
#include "simt/test_kernels.h"

using namespace batchllm;
using namespace simt;
using namespace simt_test;

namespace {

constexpr bool kChecked = SIMT_CHECKED;
const Schedule kSchedules[] = {{Order::kAscending}, {Order::kDescending}, {Order::kRandom, 1}, {Order::kRandom, 2, 3}};

struct Size {
    unsigned blocks = 1, threads = 32;
    size_t shared_bytes = 0;
};

template <typename... Parameters, typename... Arguments>
void run(void (*kernel)(Parameters...), Size size, const Schedule& schedule, const Arguments&... arguments) {
    checks_accesses() = kChecked;
    findings().clear();
    statistics() = {};
    launch(kernel, {{size.blocks}, {size.threads}, size.shared_bytes}, schedule, arguments...);
}

bool finds_only(Kind kind) {
    INFO(describe_findings());
    return findings().size() == 1 && findings()[0].kind == kind;
}

template <typename T>
struct Buffer : GlobalBuffer {
    explicit Buffer(size_t size, Use use = Use::kOutput) : GlobalBuffer("buffer", size * sizeof(T), use) {}
    T& operator[](size_t i) const { return data<T>()[i]; }
    operator T*() const { return data<T>(); }
};

template <typename T>
void check_product(const Schedule& schedule) {
    const Buffer<T> a(256, Use::kInput), b(256, Use::kInput);
    const Buffer<float> c(256);
    std::mt19937 random(3);
    for (int i = 0; i < 256; ++i) a[i] = from_float<T>(static_cast<float>(random() % 17) - 8);
    for (int i = 0; i < 256; ++i) b[i] = from_float<T>(static_cast<float>(random() % 13) - 6);
    for (int i = 0; i < 256; ++i) c[i] = static_cast<float>(i);
    run(multiply_kernel<T>, {}, schedule, a.template data<const T>(), b.template data<const T>(), c.data<float>());
    CHECK(findings().empty());
    CHECK(statistics().products == 1);
    for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 16; ++n) {
            float sum = static_cast<float>(m + 16 * n);
            for (int k = 0; k < 16; ++k) sum += to_float(a[m + 16 * k]) * to_float(b[n / 8 * 128 + n % 8 + 8 * k]);
            CHECK(c[m + 16 * n] == sum);
        }
    }
}

}  // namespace

TEST_CASE("a matrix product takes and gives fragments as CuTe describes them") {
    for (const Schedule& schedule : kSchedules) {
        check_product<Bf16>(schedule);
        check_product<Half>(schedule);
    }
}

TEST_CASE("ldmatrix gives lane l row l / 4 and columns 2 (l % 4) and the next, or transposed") {
    const Buffer<uint32_t> registers(128);
    for (const Schedule& schedule : kSchedules) {
        for (bool transposed : {false, true}) {
            run(load_kernel, {1, 32, 32 * 16}, schedule, registers.data<uint32_t>(), transposed, 1);
            CHECK(findings().empty());
            for (int lane = 0; lane < 32; ++lane) {
                for (int i = 0; i < 4; ++i) {
                    const int row = lane / 4, column = lane % 4 * 2;
                    const int low = transposed ? column * 8 + row : row * 8 + column;
                    const int high = transposed ? (column + 1) * 8 + row : row * 8 + column + 1;
                    CHECK(registers[lane * 4 + i] == static_cast<uint32_t>(i * 64 + low + ((i * 64 + high) << 16)));
                }
            }
        }
    }
}

TEST_CASE("ldmatrix conflicts where rows of a matrix share banks") {
    const Buffer<uint32_t> registers(128);
    for (const auto& [pitch, conflicts] : {std::pair{1, 0}, {2, 4}, {3, 0}, {4, 12}, {8, 28}, {9, 0}, {16, 28}}) {
        run(load_kernel, {1, 32, 32u * 16 * pitch}, {}, registers.data<uint32_t>(), false, pitch);
        CHECK(statistics().bank_conflicts == static_cast<uint64_t>(conflicts));
    }
}

TEST_CASE("shuffles and votes") {
    const Buffer<int> results(256);
    for (const Schedule& schedule : kSchedules) {
        run(shuffle_kernel, {}, schedule, results.data<int>());
        CHECK(findings().empty());
        for (int lane = 0; lane < 32; ++lane) {
            const int* of_lane = results + lane * 8;
            CHECK(of_lane[0] == (lane ^ 5));
            CHECK(of_lane[1] == lane / 8 * 8 + 3);
            CHECK(of_lane[2] == (lane < 2 ? lane : lane - 2));
            CHECK(of_lane[3] == (lane % 16 < 12 ? lane + 4 : lane));
            CHECK(of_lane[4] == 0x49249249);
            CHECK(of_lane[5] == (lane < 16 ? lane ^ 1 : lane ^ 2));
            CHECK(of_lane[6] == 1);
            CHECK(of_lane[7] == 0);
        }
    }
}

TEST_CASE("atomics of many threads and blocks add up; threads may exit before a barrier") {
    const Buffer<int> counts(2);
    for (const Schedule& schedule : kSchedules) {
        counts[0] = counts[1] = 0;
        run(count_kernel, {3, 64}, schedule, counts.data<int>(), counts + 1);
        CHECK(findings().empty());
        CHECK(counts[0] == 192);
        CHECK(counts[1] == 39);
    }
}

TEST_CASE("blocks and threads have three dimensions, x innermost") {
    const Buffer<int> indices(24 * 24);
    findings().clear();
    launch(index_kernel, {{2, 3, 4}, {4, 3, 2}}, {}, indices.data<int>());
    CHECK(findings().empty());
    for (int i = 0; i < 24 * 24; ++i) CHECK(indices[i] == 1000 * (i / 24) + i % 24);
}

TEST_CASE("cp.async arrives when its group is waited for, not before") {
    const Buffer<float> from(8, Use::kInput), to(8);
    for (int i = 0; i < 8; ++i) from[i] = static_cast<float>(i + 1);
    for (int when : {0, 1, 2}) {
        run(copy_kernel, {1, 1, 32}, {}, from.data<const float>(), to.data<float>(), when);
        CHECK(has_finding(Kind::kAsyncPending) == (kChecked && when < 2));
        for (int i = 0; i < 4; ++i) {
            CHECK((when >= 1 ? to[i] == i + 1 : std::isnan(to[i])));
            CHECK((when >= 2 ? to[4 + i] == 0 : std::isnan(to[4 + i])));  // an invalid copy is zeros
        }
    }
}

TEST_CASE("a copy that its thread has waited for is seen by others behind a barrier") {
    const Buffer<float> from(4, Use::kInput), to(64);
    for (int i = 0; i < 4; ++i) from[i] = 1.0f;
    for (const Schedule& schedule : kSchedules) {
        run(copy_for_others_kernel, {1, 64, 16}, schedule, from.data<const float>(), to.data<float>(), true);
        CHECK(findings().empty());
        CHECK(to[63] == 1.0f);
        if (!kChecked) continue;
        run(copy_for_others_kernel, {1, 64, 16}, schedule, from.data<const float>(), to.data<float>(), false);
        CHECK(!findings().empty());
    }
}

TEST_CASE("a fast build shows a missing barrier in one of two orders") {
    if (kChecked) return;
    const Buffer<int> results(64);
    run(missing_barrier_kernel, {1, 64}, {Order::kAscending}, results.data<int>(), false);
    CHECK(results[63] == 7);
    run(missing_barrier_kernel, {1, 64}, {Order::kDescending}, results.data<int>(), false);
    CHECK(results[63] == -1);  // the poison
}

TEST_CASE("the processor faults at the end of memory, in any build, and the launch ends there") {
    const Buffer<float> to(4), from(4, Use::kInput);
    run(write_global_kernel, {}, {}, to.data<float>(), 4);
    CHECK(has_finding(Kind::kGlobalBounds));
    run(read_global_kernel, {}, {}, from.data<const float>(), to.data<float>(), 4);
    CHECK(has_finding(Kind::kGlobalBounds));
    run(write_shared_kernel, {1, 1, 128}, {}, 32);
    CHECK(has_finding(Kind::kSharedBounds));
    run(deep_kernel, {1, 1}, {}, reinterpret_cast<int*>(to.data<float>()));
    CHECK(has_finding(Kind::kStackOverflow));
    run(write_global_kernel, {1, 1}, {}, to.data<float>(), 3);
    CHECK(findings().empty());
    CHECK(to[3] == 1.0f);
}

TEST_CASE("a checked build finds a race in any order, and says where") {
    if (!kChecked) return;
    const Buffer<int> results(64);
    for (const Schedule& schedule : kSchedules) {
        run(missing_barrier_kernel, {1, 64}, schedule, results.data<int>(), false);
        REQUIRE(!findings().empty());
        CHECK((has_finding(Kind::kSharedRace) || has_finding(Kind::kUninitialised)));
        CHECK(findings()[0].location.text() == "test_kernels.cpp:" + std::to_string(kRaceLine));
        run(missing_barrier_kernel, {1, 64}, schedule, results.data<int>(), true);
        CHECK(findings().empty());
        run(overwrite_kernel, {1, 64}, schedule, results.data<int>(), false);
        CHECK(has_finding(Kind::kSharedRace));
        run(overwrite_kernel, {1, 64}, schedule, results.data<int>(), true);
        CHECK(findings().empty());
    }
}

TEST_CASE("a checked build finds a race inside a warp: __syncwarp orders memory, a shuffle does not") {
    if (!kChecked) return;
    const Buffer<int> results(33);
    for (const Schedule& schedule : kSchedules) {
        for (Between between : {Between::kNothing, Between::kShuffle}) {
            run(neighbour_kernel, {}, schedule, results.data<int>(), between);
            CHECK((has_finding(Kind::kSharedRace) || has_finding(Kind::kUninitialised)));
        }
        run(neighbour_kernel, {}, schedule, results.data<int>(), Between::kBarrierOfWarp);
        CHECK(findings().empty());
    }
}

TEST_CASE("a checked build finds every stray access") {
    if (!kChecked) return;
    const Buffer<float> to(6), from(4, Use::kInput);
    run(uninitialised_kernel, {1, 4}, {}, to.data<float>());
    CHECK(finds_only(Kind::kUninitialised));
    run(write_shared_kernel, {1, 1, 100}, {}, 25);  // no page ends there
    CHECK(finds_only(Kind::kSharedBounds));
    for (int index : {-1, 4}) {
        run(write_array_kernel, {1, 1}, {}, index);
        CHECK(has_finding(Kind::kSharedBounds));
    }
    run(write_array_kernel, {1, 1}, {}, 3);
    CHECK(findings().empty());
    run(read_global_kernel, {1, 1}, {}, from.data<const float>(), to.data<float>(), -1);
    CHECK(finds_only(Kind::kGlobalBounds));
    run(write_global_kernel, {1, 1}, {}, to.data<float>(), 6);  // inside the rounding to 16 bytes
    CHECK(finds_only(Kind::kGlobalBounds));
    run(write_global_kernel, {1, 1}, {}, from.data<float>(), 0);
    CHECK(finds_only(Kind::kReadOnly));
}

TEST_CASE("a checked build finds blocks that write the same word; launches are ordered") {
    if (!kChecked) return;
    const Buffer<int> to(1);
    run(write_block_kernel, {2, 1}, {}, to.data<int>());
    CHECK(finds_only(Kind::kGlobalRace));
    for (int i = 0; i < 2; ++i) {
        run(write_block_kernel, {1, 1}, {}, to.data<int>());
        CHECK(findings().empty());
    }
}

TEST_CASE("lanes that do not meet are found") {
    run(divergent_barrier_kernel, {1, 64}, {});
    CHECK(has_finding(Kind::kDivergence));
    run(half_a_warp_kernel, {}, {});
    CHECK(has_finding(Kind::kDeadlock));
    run(lonely_lane_kernel, {}, {});
    CHECK(finds_only(Kind::kDivergence));
    run(load_misaligned_kernel, {1, 32, 1024}, {});
    CHECK(finds_only(Kind::kMisaligned));
}

TEST_CASE("a launch that no device takes is refused") {
    const Buffer<int> to(1);
    run(write_block_kernel, {1, 1025}, {}, to.data<int>());
    CHECK(finds_only(Kind::kTooManyResources));
    run(write_block_kernel, {1, 1, kMaxDynamicShared + 1}, {}, to.data<int>());
    CHECK(finds_only(Kind::kTooManyResources));
}

TEST_CASE("schedules: lowest first, highest first, or by a seed that repeats") {
    const Buffer<int> count(1), ranks(64);
    const auto order = [&](const Schedule& schedule) {
        count[0] = 0;
        run(order_kernel, {1, 64}, schedule, count.data<int>(), ranks.data<int>());
        return std::vector<int>(ranks + 0, ranks + 64);
    };
    const std::vector<int> ascending = order({Order::kAscending}), descending = order({Order::kDescending});
    for (int i = 0; i < 64; ++i) {
        CHECK(ascending[i] == i);
        CHECK(descending[i] == 63 - i);
    }
    const std::vector<int> random = order({Order::kRandom, 5});
    CHECK(random != ascending);
    CHECK(random != order({Order::kRandom, 6}));
}

TEST_CASE("what earlier launches write may be read in order, or early by threads that wait") {
    for (const Schedule& schedule : kSchedules) {
        const Buffer<int> a(32), b(32), c(32);
        const auto next = [&](const Buffer<int>& from, const Buffer<int>& to, Wait wait, bool early) {
            launch(next_kernel, {{1}, {32}, 0, early}, schedule, from.data<const int>(), to.data<int>(), wait);
        };
        const auto first_two = [&](Wait wait) {
            checks_accesses() = kChecked;
            findings().clear();
            next(a, b, Wait::kNever, false);
            next(a, c, wait, true);  // does not read what the first one writes
        };
        first_two(Wait::kAfter);
        next(b, a, Wait::kBefore, true);
        next(c, b, Wait::kNever, false);
        CHECK(findings().empty());
        first_two(Wait::kNever);
        CHECK(finds_only(Kind::kNeverWaits));
        for (const Buffer<int>* written : {&b, &c}) {  // by the launch before, and by the one before that
            first_two(Wait::kAfter);
            next(*written, a, Wait::kAfter, true);
            CHECK(findings().empty() != kChecked);
        }
        first_two(Wait::kAfter);
        next(c, b, Wait::kAfter, true);
        CHECK(findings().empty() != kChecked);
    }
}
