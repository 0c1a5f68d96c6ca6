// The attention of one query head over a set of keys, and how two of them become one.
//
//   out   softmax-weighted mean of v over the set;  0 for the empty set
//   lse   ln sum exp(score) over the set;           -inf for the empty set
//
// Merging is commutative and associative, and the empty state is its identity. A state of weight 0 is left out, not
// multiplied by 0: `out` of an empty state may hold anything, even NaN.
#pragma once

#include <cmath>

#include "base/host_device.h"

namespace batchllm {

struct MergeWeights {
    float a;  // out = a * out_a + b * out_b
    float b;
    float lse;  // of the union
};

BATCHLLM_HOST_DEVICE inline MergeWeights merge_weights(float lse_a, float lse_b) {
    if (lse_a == -INFINITY && lse_b == -INFINITY) return {0.0f, 0.0f, -INFINITY};
    const float lse_max = fmaxf(lse_a, lse_b);  // ignores a NaN, which sum_a or sum_b then restores
    const float sum_a = expf(lse_a - lse_max);
    const float sum_b = expf(lse_b - lse_max);
    const float sum = sum_a + sum_b;
    return {quotient(sum_a, sum), quotient(sum_b, sum), lse_max + logf(sum)};
}

// One element of the merged out.
BATCHLLM_HOST_DEVICE inline float merge_out(const MergeWeights& weights, float out_a, float out_b) {
    if (weights.a == 0.0f) return weights.b == 0.0f ? 0.0f : weights.b * out_b;
    return weights.b == 0.0f ? weights.a * out_a : weights.a * out_a + weights.b * out_b;
}

// FlashAttention-2 and FlashMLA write lse = +inf for the empty set, others work in base 2. All external states
// pass through here once.
enum class LseBase { kE, kTwo };

constexpr float kLn2 = 0.693147180559945309f;

BATCHLLM_HOST_DEVICE inline float natural_lse(float lse, LseBase base) {
    if (lse == INFINITY) return -INFINITY;
    return base == LseBase::kTwo ? lse * kLn2 : lse;
}

BATCHLLM_HOST_DEVICE inline float lse_in_base(float natural, LseBase base) {
    return base == LseBase::kTwo ? natural * (1.0f / kLn2) : natural;
}

}  // namespace batchllm
