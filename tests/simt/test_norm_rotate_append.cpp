// norm_rotate_append's kernel, executed on the emulator, against the CPU's rms_norm, rotate and append_to_pages in
// turn. Built twice, with fast and with checked kernels.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "attention/append_kv.h"
#include "rows/element_type.h"
#include "rows/row_ops.h"
#include "simt/emulator/findings.h"
#include "simt/emulator/memory.h"
#include "simt/emulator/shadow.h"
#include "simt/row_kernels.h"

using namespace batchllm;
using namespace simt;
using namespace simt_test;

namespace {

const Schedule kSchedules[] = {{Order::kAscending}, {Order::kDescending}, {Order::kRandom, 1, 7}};
constexpr float kEps = 1e-5f;
constexpr int64_t kNumPages = 3;

struct LayerCase {
    int64_t num_rows, num_qo_heads, num_kv_heads, size, page_size;
    bool has_norms;
    bool heads_first;  // pages [num_pages, num_kv_heads, page_size, size] in memory
    int64_t padding;   // elements behind each row of qkv, and behind each head of the pages
};

const LayerCase kCases[] = {
    {7, 4, 2, 64, 4, true, false, 0},   {7, 4, 2, 64, 4, false, false, 0}, {5, 3, 1, 96, 3, true, true, 8},
    {6, 8, 2, 128, 16, true, false, 8}, {6, 1, 1, 128, 2, false, true, 0}, {3, 2, 1, 256, 1, true, false, 16},
    {1, 1, 1, 16, 1, true, true, 0},    {0, 4, 2, 64, 4, true, false, 0},  {40, 5, 1, 48, 16, true, false, 0},
};

// All of a layer's memory, the same in every one of a case.
struct Layer {
    LayerCase c;
    int64_t num_heads = c.num_qo_heads + 2 * c.num_kv_heads;
    int64_t row_stride = num_heads * c.size + c.padding, pitch = c.size + c.padding;
    int64_t num_page_elements = kNumPages * c.page_size * c.num_kv_heads * pitch;
    GlobalBuffer qkv{"qkv", static_cast<size_t>(c.num_rows * row_stride) * 2, Use::kOutput};
    GlobalBuffer k_pages{"k_pages", static_cast<size_t>(num_page_elements) * 2, Use::kOutput};
    GlobalBuffer v_pages{"v_pages", static_cast<size_t>(num_page_elements) * 2, Use::kOutput};
    GlobalBuffer q_norm{"q_norm", static_cast<size_t>(c.size) * 2, Use::kInput};
    GlobalBuffer k_norm{"k_norm", static_cast<size_t>(c.size) * 2, Use::kInput};
    GlobalBuffer cos{"cos", static_cast<size_t>(c.num_rows * c.size / 2) * 4, Use::kInput};
    GlobalBuffer sin{"sin", static_cast<size_t>(c.num_rows * c.size / 2) * 4, Use::kInput};
    GlobalBuffer slots{"slots", static_cast<size_t>(c.num_rows) * 8, Use::kInput};

    explicit Layer(const LayerCase& layer_case) : c(layer_case) {
        std::mt19937 random(5);
        std::normal_distribution<float> normal(0.0f, 3.0f);
        for (const GlobalBuffer* buffer : {&qkv, &k_pages, &v_pages, &q_norm, &k_norm}) {
            for (size_t i = 0; i < buffer->size() / 2; ++i) {
                buffer->data<Bf16>()[i] = from_float<Bf16>(normal(random));
            }
        }
        for (int64_t i = 0; i < c.num_rows * c.size / 2; ++i) {
            const float angle = normal(random);
            cos.data<float>()[i] = std::cos(angle);
            sin.data<float>()[i] = std::sin(angle);
        }
        std::vector<int64_t> all(kNumPages * c.page_size);
        std::iota(all.begin(), all.end(), int64_t{0});
        std::shuffle(all.begin(), all.end(), random);
        for (int64_t row = 0; row < c.num_rows; ++row) {
            const bool has_slot = row % 5 != 3 && row < std::ssize(all);
            slots.data<int64_t>()[row] = has_slot ? all[row] : row % 2 == 0 ? -1 : kNumPages * c.page_size;
        }
    }

    PagedHeads pages(const GlobalBuffer& buffer) const {
        const int64_t page_stride = c.page_size * c.num_kv_heads * pitch;
        if (c.heads_first) return {buffer.data<void>(), page_stride, pitch, c.page_size * pitch};
        return {buffer.data<void>(), page_stride, c.num_kv_heads * pitch, pitch};
    }

    NormRotateAppendParams params() const {
        return {.dtype = DType::kBFloat16,
                .qkv = {qkv.data<void>(), row_stride, c.size},
                .q_norm = c.has_norms ? q_norm.data<void>() : nullptr,
                .k_norm = c.has_norms ? k_norm.data<void>() : nullptr,
                .eps = kEps,
                .cos = cos.data<float>(),
                .sin = sin.data<float>(),
                .cos_stride = c.size / 2,
                .sin_stride = c.size / 2,
                .slots = slots.data<int64_t>(),
                .k_pages = pages(k_pages),
                .v_pages = pages(v_pages),
                .page_size = c.page_size,
                .num_slots = static_cast<uint32_t>(kNumPages * c.page_size),
                .num_rows = c.num_rows,
                .num_qo_heads = c.num_qo_heads,
                .num_kv_heads = c.num_kv_heads,
                .size = c.size};
    }

    // Heads [begin, begin + num) of all rows.
    HeadRows heads(int64_t begin) const { return {qkv.data<Bf16>() + begin * c.size, row_stride, c.size}; }

    void run_on_cpu() const {
        if (c.has_norms) {
            const auto norm = [&](int64_t begin, int64_t num, const GlobalBuffer& weight) {
                const RmsNormParams params{.dtype = DType::kBFloat16,
                                           .x = heads(begin),
                                           .delta = {},
                                           .weight = weight.data<void>(),
                                           .out = heads(begin),
                                           .num_heads = num,
                                           .size = c.size,
                                           .eps = kEps};
                rms_norm(params, c.num_rows, 1);
            };
            norm(0, c.num_qo_heads, q_norm);
            norm(c.num_qo_heads, c.num_kv_heads, k_norm);
        }
        const RotateParams turn{.dtype = DType::kBFloat16,
                                .x = heads(0),
                                .cos = cos.data<float>(),
                                .sin = sin.data<float>(),
                                .cos_stride = c.size / 2,
                                .sin_stride = c.size / 2,
                                .num_heads = c.num_qo_heads + c.num_kv_heads,
                                .size = c.size};
        rotate(turn, c.num_rows, 1);
        for (int64_t row = 0; row < c.num_rows; ++row) {  // one at a time: the CPU takes no row without a slot
            const int64_t* const slot = slots.data<int64_t>() + row;
            if (*slot < 0 || *slot >= kNumPages * c.page_size) continue;
            append(row, slot, c.num_qo_heads, pages(k_pages));
            append(row, slot, c.num_qo_heads + c.num_kv_heads, pages(v_pages));
        }
    }

    void append(int64_t row, const int64_t* slot, int64_t first_head, const PagedHeads& to) const {
        const HeadRows from = heads(first_head);
        append_to_pages({.tokens = static_cast<const char*>(from.data) + row * row_stride * 2,
                         .token_stride = 0,
                         .token_head_stride = c.size * 2,
                         .pages = static_cast<char*>(to.data),
                         .page_stride = to.page_stride * 2,
                         .slot_stride = to.slot_stride * 2,
                         .page_head_stride = to.head_stride * 2,
                         .slots = slot,
                         .num_tokens = 1,
                         .num_kv_heads = c.num_kv_heads,
                         .page_size = c.page_size,
                         .head_bytes = c.size * 2},
                        1);
    }
};

// Sums of squares have another order and products may fuse, so a result may round to the neighbour twice.
bool agree(const GlobalBuffer& got, const GlobalBuffer& expected, size_t begin, size_t end, float bound) {
    for (size_t i = begin; i < end; ++i) {
        const float a = to_float(got.data<Bf16>()[i]), b = to_float(expected.data<Bf16>()[i]);
        if (!(std::abs(a - b) <= kUlp<Bf16> * (2.0f * std::abs(b) + bound))) return false;
    }
    return true;
}

}  // namespace

TEST_CASE("norm_rotate_append is the norm, the rotation and the append, whatever thread runs first") {
    for (const LayerCase& c : kCases) {
        CAPTURE(&c - kCases);
        Layer expected(c);
        expected.run_on_cpu();
        for (const Schedule& schedule : kSchedules) {
            checks_accesses() = SIMT_CHECKED;
            findings().clear();
            const Layer layer(c);
            const Layer untouched(c);
            run_norm_rotate_append(layer.params(), schedule);
            INFO(describe_findings());
            CHECK(findings().empty());
            // A turned element is a sum of two products, whose roundings count by the larger.
            CHECK(agree(layer.k_pages, expected.k_pages, 0, layer.num_page_elements, 16.0f));
            CHECK(std::memcmp(layer.v_pages.data(), expected.v_pages.data(), layer.v_pages.size()) == 0);
            for (int64_t row = 0; row < c.num_rows; ++row) {
                const int64_t begin = row * layer.row_stride, k_begin = begin + c.num_qo_heads * c.size;
                CHECK(agree(layer.qkv, expected.qkv, begin, k_begin, 16.0f));
                const size_t rest = (layer.row_stride - c.num_qo_heads * c.size) * 2;
                CHECK(std::memcmp(layer.qkv.data<Bf16>() + k_begin, untouched.qkv.data<Bf16>() + k_begin, rest) == 0);
            }
        }
    }
}
