// The CPU's kernels of the instruction set in use against plain loops in float64: whole and torn vectors of head_dim,
// float32 and bfloat16 keys, narrow and wide items, several heads to a task.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "attention/cpu/attention_cpu.h"
#include "attention/cpu/attention_ref.h"
#include "base/bf16.h"

using namespace batchllm;

namespace {

constexpr int32_t kPageSize = 4, kNumKvHeads = 3, kGroupSize = 2;
constexpr int32_t kPrefix = 70, kOwn = 67;  // more than a tile of keys, neither whole register tiles

std::vector<float> bf16_numbers(int64_t num, std::mt19937& random) {
    std::normal_distribution<float> normal;
    std::vector<float> values(num);
    for (float& value : values) value = to_float(from_float<Bf16>(normal(random)));
    return values;
}

}  // namespace

TEST_CASE("attention on the CPU is what the reference says") {
    std::mt19937 random(1);
    for (const int32_t head_dim : {64, 40, 36, 5}) {
        for (const int32_t num_rows : {1, 3, 20}) {  // of each of two spans that share a prefix
            for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
                CAPTURE(head_dim);
                CAPTURE(num_rows);
                CAPTURE(static_cast<int>(dtype));
                const std::vector<int32_t> span_indptr{0, num_rows, 2 * num_rows}, link_indptr{0, 2, 4};
                const std::vector<int32_t> span_begin(2, kPrefix + kOwn - num_rows), links{0, 1, 0, 2};
                const std::vector<int32_t> page_indptr{0, 18, 35, 52}, segment_begin{0, kPrefix, kPrefix};
                const std::vector<int32_t> num_tokens{kPrefix, kOwn, kOwn};
                std::vector<int32_t> page_ids;
                for (int32_t page = 0; page < 52; ++page) page_ids.push_back(51 - page);
                const AttentionBatch batch{span_indptr, span_begin, link_indptr,   links,
                                           page_indptr, page_ids,   segment_begin, num_tokens};
                const AttentionShape shape{kNumKvHeads * kGroupSize, kNumKvHeads, head_dim, kPageSize};
                const int64_t slot = int64_t{kNumKvHeads} * head_dim, token = kGroupSize * slot;
                const std::vector<float> q = bf16_numbers(2 * num_rows * token, random);
                const std::vector<float> k = bf16_numbers(52 * kPageSize * slot, random);
                const std::vector<float> v = bf16_numbers(52 * kPageSize * slot, random);
                std::vector<Bf16> k_bits, v_bits;
                for (const float value : k) k_bits.push_back(from_float<Bf16>(value));
                for (const float value : v) v_bits.push_back(from_float<Bf16>(value));
                const bool is_float = dtype == DType::kFloat32;
                std::vector<float> out(q.size()), expected(q.size());
                const auto pages = [&](const void* data) {
                    return PagedTensor{data, kPageSize * slot, slot, head_dim};
                };
                AttentionParams params{.q = {q.data(), DType::kFloat32, token, head_dim},
                                       .k_pages = pages(is_float ? static_cast<const void*>(k.data()) : k_bits.data()),
                                       .v_pages = pages(is_float ? static_cast<const void*>(v.data()) : v_bits.data()),
                                       .kv_dtype = dtype,
                                       .out = {out.data(), DType::kFloat32, token, head_dim},
                                       .lse = {},
                                       .softmax_scale = 1 / std::sqrt(static_cast<float>(head_dim))};
                run_attention_cpu(AttentionPlan(batch, shape, 2, Sharing::kAlways), params, 2);
                params.out.data = expected.data();
                attention_ref(batch, shape, params);
                float error = 0.0f;
                for (size_t i = 0; i < out.size(); ++i) {
                    error = std::isnan(out[i]) ? INFINITY : std::max(error, std::fabs(out[i] - expected[i]));
                }
                CHECK(error < 2e-5f);
            }
        }
    }
}
