// The CUDA kernels, thread by thread on the CPU, against the CPU's own functions.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "attention/append_kv.h"
#include "attention/cuda/append_kv_thread.h"
#include "attention/cuda/merge_states_thread.h"
#include "attention/merge.h"
#include "attention/run_every_thread.h"

using namespace batchllm;
using namespace batchllm::cuda;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// --- append

struct AppendCase {
    int64_t num_tokens, num_kv_heads, head_bytes, page_size;
    int64_t padding;  // bytes between heads, on both sides
    int64_t shift;    // bytes that both sides begin after an aligned address
    bool vectors;     // what is_vector_aligned is to say
};

constexpr int64_t kNumPages = 5;

struct AppendMemory {
    AppendCase c;
    int64_t pitch = c.head_bytes + c.padding;
    std::vector<__int128> tokens = memory(c.num_tokens), pages = memory(kNumPages * c.page_size);
    std::vector<int64_t> slots;

    explicit AppendMemory(const AppendCase& append_case) : c(append_case) {
        std::mt19937 random(7);
        const auto bytes = reinterpret_cast<unsigned char*>(tokens.data());
        for (size_t i = 0; i < tokens.size() * sizeof(__int128); ++i) bytes[i] = static_cast<unsigned char>(random());
        slots.resize(kNumPages * c.page_size);
        std::iota(slots.begin(), slots.end(), int64_t{0});
        std::shuffle(slots.begin(), slots.end(), random);
        slots.resize(c.num_tokens);
    }

    std::vector<__int128> memory(int64_t num_rows) const {
        return std::vector<__int128>((num_rows * c.num_kv_heads * pitch + c.shift) / sizeof(__int128) + 1);
    }

    // Pages hold their heads first: [num_pages, num_kv_heads, page_size, head_dim] in memory.
    AppendParams params() {
        return {
            .tokens = reinterpret_cast<const char*>(tokens.data()) + c.shift,
            .token_stride = c.num_kv_heads * pitch,
            .token_head_stride = pitch,
            .pages = reinterpret_cast<char*>(pages.data()) + c.shift,
            .page_stride = c.num_kv_heads * c.page_size * pitch,
            .slot_stride = pitch,
            .page_head_stride = c.page_size * pitch,
            .slots = slots.data(),
            .num_tokens = c.num_tokens,
            .num_kv_heads = c.num_kv_heads,
            .page_size = c.page_size,
            .head_bytes = c.head_bytes,
        };
    }
};

const AppendCase kAppendCases[] = {
    {0, 2, 64, 4, 0, 0, true},     // no tokens
    {1, 1, 16, 1, 0, 0, true},     // one vector
    {20, 3, 64, 4, 0, 0, true},    // every slot
    {17, 3, 64, 4, 16, 16, true},  // aligned padding
    {17, 3, 64, 4, 0, 2, false},   // a pointer between two vectors
    {17, 3, 64, 4, 2, 0, false},   // strides between two vectors
    {17, 3, 14, 4, 0, 0, false},   // head_dim 7 in bf16
    {9, 2, 4, 2, 0, 4, false},     // head_dim 1 in float32
    {5, 2, 0, 4, 0, 0, true},      // head_dim 0
    {30, 4, 256, 7, 0, 0, true},   // several blocks
    {30, 4, 254, 7, 2, 0, false},
};

template <int kUnitBytes>
void check_append(const AppendCase& c, int64_t max_items) {
    AppendMemory expected(c), got(c);
    append_to_pages(expected.params(), 1);
    run_every_thread(AppendWork<kUnitBytes>{got.params(), checked_num_slots(kNumPages * c.page_size)}, max_items);
    CHECK(got.pages == expected.pages);
}

// --- merge

struct MergeCase {
    int64_t num_tokens, num_heads, head_dim;
    std::vector<int64_t> num_states;  // of each input
};

const MergeCase kMergeCases[] = {
    {0, 3, 8, {2}},     {2, 3, 8, {0}}, {2, 3, 8, {}},  {2, 3, 7, {1}},   {4, 2, 33, {3}},
    {4, 2, 33, {1, 1}}, {3, 1, 1, {5}}, {2, 3, 0, {2}}, {5, 3, 128, {4}}, {1, 1, 257, {2, 3}},
};

// What a row's lse may be. Where it is infinite the state is empty; there, and at -1000, out holds NaN.
constexpr float kLse[] = {0.5f, -3.0f, 12.0f, -INFINITY, INFINITY, -1000.0f, 1000.0f};

template <typename T>
struct MergeMemory {
    std::vector<std::vector<T>> outs;
    std::vector<std::vector<float>> lses;
    std::vector<T> merged_out;
    std::vector<float> merged_lse;
    MergeWork<T> work;

    MergeMemory(const MergeCase& c, LseBase base, bool all_empty) {
        std::mt19937 random(11);
        std::normal_distribution<float> normal;
        const int64_t pitch = c.head_dim + 3;  // elements between heads
        work = {{}, static_cast<int>(c.num_states.size()), {}, c.num_tokens, c.num_heads, c.head_dim, base};
        int input = 0;
        for (int64_t num_states : c.num_states) {
            std::vector<float> lse;
            std::vector<T> out;
            for (int64_t i = 0; i < c.num_tokens * num_states * c.num_heads; ++i) {
                lse.push_back(all_empty ? kLse[3 + random() % 2] : kLse[random() % std::size(kLse)]);
                for (int64_t d = 0; d < pitch; ++d) {
                    out.push_back(
                        from_float<T>(std::isinf(lse.back()) || lse.back() == -1000.0f ? kNan : normal(random)));
                }
            }
            outs.push_back(std::move(out));
            lses.push_back(std::move(lse));
            const int64_t heads = c.num_heads;
            work.inputs[input++] = {outs.back().data(),
                                    {num_states * heads * pitch, heads * pitch, pitch},
                                    lses.back().data(),
                                    {num_states * heads, heads, 1},
                                    num_states};
        }
        merged_out.assign(c.num_tokens * c.num_heads * pitch, from_float<T>(77.0f));
        merged_lse.assign(c.num_tokens * c.num_heads, 77.0f);
        // Heads first, unlike the inputs.
        work.merged = {merged_out.data(), {pitch, 0, c.num_tokens * pitch}, merged_lse.data(), {1, 0, c.num_tokens}, 1};
    }
};

bool same_bits(float a, float b) {
    return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

template <typename T>
void check_merge(const MergeCase& c, LseBase base, bool all_empty, int64_t max_items) {
    MergeMemory<T> expected(c, base, all_empty), got(c, base, all_empty);
    const MergeWork<T>& work = expected.work;
    merge_states<T>({work.inputs, static_cast<size_t>(work.num_inputs)}, work.merged, c.num_tokens, c.num_heads,
                    c.head_dim, base);
    run_every_thread(got.work, max_items);
    for (size_t i = 0; i < got.merged_lse.size(); ++i) {
        CHECK(same_bits(got.merged_lse[i], expected.merged_lse[i]));
        if (all_empty) CHECK(got.merged_lse[i] == -INFINITY);
    }
    for (size_t i = 0; i < got.merged_out.size(); ++i) {
        CHECK(same_bits(to_float(got.merged_out[i]), to_float(expected.merged_out[i])));
    }
}

struct CountItems {
    std::vector<std::vector<int>>* counts;
    int64_t row_count() const { return static_cast<int64_t>(counts->size()); }
    int64_t items_per_row() const { return counts->empty() ? 0 : static_cast<int64_t>(counts->front().size()); }
    void operator()(int64_t row, uint32_t item) const { ++counts->at(row).at(item); }
};

// So many of them, without memory.
struct FarRows {
    int64_t num_rows, num_items;
    int64_t row_count() const { return num_rows; }
    int64_t items_per_row() const { return num_items; }
    void operator()(int64_t, uint32_t) const {}
};

}  // namespace

TEST_CASE("every item is done by exactly one thread of one launch") {
    for (int num_rows : {0, 1, 7, 255, 256, 257}) {
        for (int num_items : {0, 1, 3, 20, 257}) {
            for (int64_t max_items : {int64_t{257}, int64_t{1000}, kMaxItems}) {
                std::vector counts(num_rows, std::vector<int>(num_items));
                run_every_thread(CountItems{&counts}, max_items);
                CHECK(counts == std::vector(num_rows, std::vector<int>(num_items, 1)));
            }
        }
    }
}

TEST_CASE("more items than 32 bits count take more launches, of whole rows") {
    for (const FarRows& work : {FarRows{int64_t{1} << 30, 3000}, FarRows{3, kMaxItems}, FarRows{5, kMaxItems / 2}}) {
        int64_t next_row = 0;
        for_each_launch(work, [&](const WorkRows<FarRows>& rows, LaunchGrid grid) {
            CHECK(rows.row_begin == next_row);
            CHECK(rows.num_items % work.num_items == 0);
            CHECK(int64_t{grid.num_blocks} * grid.block_size >= rows.num_items);
            CHECK(int64_t{grid.num_blocks} * grid.block_size < rows.num_items + int64_t{kWorkThreads});
            next_row += rows.num_items / work.num_items;
        });
        CHECK(next_row == work.num_rows);
    }
    const auto nothing = [](const WorkRows<FarRows>&, LaunchGrid) {};
    CHECK_THROWS_WITH_AS(for_each_launch(FarRows{1, kMaxItems + 1}, nothing),
                         "expected rows of at most 2147483648 items, got 2147483649", std::invalid_argument);
}

TEST_CASE("append: the threads write what the CPU writes, and nothing else") {
    for (const AppendCase& c : kAppendCases) {
        CAPTURE(&c - kAppendCases);
        CHECK(is_vector_aligned(AppendMemory(c).params()) == c.vectors);
        for (int64_t max_items : {int64_t{2000}, kMaxItems}) {
            check_append<1>(c, max_items);
            if (c.vectors) check_append<kVectorBytes>(c, max_items);
        }
    }
}

TEST_CASE("append: a row whose slot lies outside the pages is not written") {
    for (int64_t outside : {int64_t{-1}, kNumPages * 4, std::numeric_limits<int64_t>::max()}) {
        AppendMemory memory({3, 2, 32, 4, 0, 0, true});
        std::fill(memory.slots.begin(), memory.slots.end(), outside);
        const auto before = memory.pages;
        run_every_thread(AppendWork<kVectorBytes>{memory.params(), kNumPages * 4}, kMaxItems);
        CHECK(memory.pages == before);
    }
}

TEST_CASE("append: a pool of more slots than 32 bits count is refused") {
    CHECK(checked_num_slots(UINT32_MAX) == UINT32_MAX);
    CHECK_THROWS_WITH_AS(checked_num_slots(int64_t{1} << 32),
                         "num_pages * page_size: expected at most 4294967295 on a GPU, got 4294967296",
                         std::invalid_argument);
}

TEST_CASE("append: slots beyond 2^31 are taken in full") {
    // The last slot of the largest pool; nothing of the others is memory.
    const float value = 5.0f;
    float page = 0.0f;
    const int64_t slot = UINT32_MAX - 1;
    for (int64_t page_size : {int64_t{1}, int64_t{16}, slot}) {
        const int64_t offset = slot / page_size * 4096 + slot % page_size * 8;
        const AppendParams p{.tokens = reinterpret_cast<const char*>(&value),
                             .token_stride = 4,
                             .token_head_stride = 4,
                             .pages = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(&page) - offset),
                             .page_stride = 4096,
                             .slot_stride = 8,
                             .page_head_stride = 4,
                             .slots = &slot,
                             .num_tokens = 1,
                             .num_kv_heads = 1,
                             .page_size = page_size,
                             .head_bytes = 4};
        page = 0.0f;
        run_every_thread(AppendWork<1>{p, UINT32_MAX}, kMaxItems);
        CHECK(page == value);
    }
}

TEST_CASE("append: vectors are copied only where every pointer and stride allows it") {
    AppendMemory memory({3, 2, 32, 4, 0, 0, true});
    AppendParams p = memory.params();
    for (int64_t* size :
         {&p.token_stride, &p.token_head_stride, &p.page_stride, &p.slot_stride, &p.page_head_stride, &p.head_bytes}) {
        *size += 2;
        CHECK(!is_vector_aligned(p));
        *size -= 2;
    }
    CHECK(is_vector_aligned(p));
    p.tokens += 2;
    CHECK(!is_vector_aligned(p));
    p.tokens -= 2;
    p.pages += 2;
    CHECK(!is_vector_aligned(p));
}

TEST_CASE("append: offsets beyond 2^31 bytes are taken in full") {
    // Two places 6 GiB apart. Only the second is memory; no item touches the first.
    constexpr int64_t kFar = int64_t{6} << 30;
    const float value = 5.0f;
    for (int64_t AppendParams::* stride : {&AppendParams::page_stride, &AppendParams::slot_stride}) {
        float page = 0.0f;
        const int64_t slot = 1;
        AppendParams p{.tokens = reinterpret_cast<const char*>(&value),
                       .token_stride = 4,
                       .token_head_stride = 4,
                       .pages = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(&page) - kFar),
                       .page_stride = 0,
                       .slot_stride = 0,
                       .page_head_stride = 4,
                       .slots = &slot,
                       .num_tokens = 1,
                       .num_kv_heads = 1,
                       .page_size = stride == &AppendParams::page_stride ? 1 : 2,
                       .head_bytes = 4};
        p.*stride = kFar;
        run_every_thread(AppendWork<1>{p, 2}, kMaxItems);
        CHECK(page == value);
    }
}

TEST_CASE_TEMPLATE("merge: the threads compute what the CPU computes, to the bit", T, float, Bf16) {
    for (const MergeCase& c : kMergeCases) {
        CAPTURE(&c - kMergeCases);
        for (LseBase base : {LseBase::kE, LseBase::kTwo}) {
            for (bool all_empty : {false, true}) {
                check_merge<T>(c, base, all_empty, kMaxItems);
                check_merge<T>(c, base, all_empty, 400);
            }
        }
    }
}
