// One token per row of logits, its log-probability, and the row's log-sum-exp; the definition stands at SampleParams.
//
//   grid    a block per row, whose warps share the row's tiles; which elements a lane adds up, and in which order,
//           depends on the vocabulary's size alone
//   reads   logits, ruled_logits, allowed, the parameters of each row      writes  token_ids, logprobs, lse
//   twin    row_sampler.inc::RowSampler; sums are in another order
//
// Phases: scan (the largest of each tile, the sum of exponentials) · cut (top-k, then top-p, each by a search for the
// least logit that is kept) · weigh the tiles · choose a tile, then a token of it.
//
// Nothing is sorted: a search looks at three pivots in one pass and ends after log4 of the number of values that a
// logit may have, 8 passes for bfloat16 and 16 for float32. A pass leaves out the tiles whose largest logit is below
// all pivots, which are most of them as soon as the search is among the likeliest tokens.
#pragma once

#include <cassert>
#include <cfloat>
#include <cmath>

#include "cuda/intrinsics.cuh"
#include "cuda/launch_grid.h"
#include "rows/cuda/row_vectors.h"

namespace batchllm::cuda {

constexpr int kSampleThreads = 512;
constexpr int kSampleWarps = kSampleThreads / 32;
constexpr int kLaneElements = 8;                        // neighbours, which a lane takes at a time
constexpr uint32_t kWarpElements = 32 * kLaneElements;  // neighbours, which a warp takes at a time
constexpr uint32_t kMaxSampleTiles = kSampleThreads;    // of a row: one per thread
constexpr int kPivots = 3;
constexpr float kLog2E = 1.44269504088896341f;
constexpr uint32_t kNoToken = UINT32_MAX;
constexpr uint32_t kAllEqual = UINT32_MAX;

// Of a block's row.
struct SampleMemory {
    float largest[kMaxSampleTiles];
    float mass[kMaxSampleTiles];      // the weights that are kept
    uint32_t equal[kMaxSampleTiles];  // first how many logits are the cut's; then how many of those may be kept
    double run_mass[32];              // of as many runs of tiles
    float of_warp[kSampleWarps][kPivots];
};

// What is kept: logits above `value`, and in the order of the vocabulary the first `num_equal` that are equal to it.
struct Cut {
    float value;
    uint32_t num_equal;
};

// Numbers in the order of the floats that a T may be, without gaps but those of NaNs.
template <typename T>
constexpr int kUnusedBits = 16;  // of a float32 that comes from a T
template <>
inline constexpr int kUnusedBits<float> = 0;
template <>
inline constexpr int kUnusedBits<Half> = 13;

template <typename T>
__device__ __forceinline__ uint32_t order_of(float value) {
    const auto bits = std::bit_cast<uint32_t>(value + 0.0f);  // -0 is 0
    return (bits & 0x80000000 ? ~bits : bits | 0x80000000) >> kUnusedBits<T>;
}
template <typename T>
__device__ __forceinline__ float value_of(uint32_t order) {
    const uint32_t bits = order << kUnusedBits<T>;
    if (bits & 0x80000000) return std::bit_cast<float>(bits & 0x7fffffff);
    return std::bit_cast<float>(~(bits | ((uint32_t{1} << kUnusedBits<T>)-1)));
}

// The same in every lane: the order of two terms does not matter.
template <typename Value, typename Combine>
__device__ __forceinline__ Value over_warp(Value value, const Combine& combine) {
    for (int lanes = 16; lanes > 0; lanes /= 2) value = combine(value, __shfl_xor_sync(kAllLanes, value, lanes));
    return value;
}
template <typename Value>
__device__ __forceinline__ Value sum_over_warp(Value value) {
    return over_warp(value, [](Value a, Value b) { return a + b; });
}
__device__ __forceinline__ float largest_of_warp(float value) {
    return over_warp(value, [](float a, float b) { return fmaxf(a, b); });
}
__device__ __forceinline__ uint32_t least_of_warp(uint32_t value) {
    return over_warp(value, [](uint32_t a, uint32_t b) { return a < b ? a : b; });
}

// Of this lane and those before it.
template <typename Value>
__device__ __forceinline__ Value sum_up_to_lane(Value value, int lane) {
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const Value before = __shfl_up_sync(kAllLanes, value, lanes);
        if (lane >= lanes) value += before;
    }
    return value;
}

// The first of [begin, end) with which the sum of masses exceeds `rest`, which becomes what the ones before it leave;
// by rounding there may be none: then the last that has a mass.
template <typename Mass>
__device__ __forceinline__ uint32_t find_mass(const Mass* masses, uint32_t begin, uint32_t end, double& rest) {
    uint32_t found = begin;
    double left = rest;
    for (uint32_t i = begin; i < end; ++i) {
        if (!(masses[i] > 0)) continue;
        found = i;
        rest = left;
        if (left < masses[i]) break;
        left -= masses[i];
    }
    return found;
}

// A block at work on one row. kVector: kVectorSize<T> where rows are aligned, else 1.
template <typename T, int kVector>
class RowSampler {
 public:
    __device__ __forceinline__ explicit RowSampler(uint32_t size)
        : memory_(*reinterpret_cast<SampleMemory*>(dynamic_shared_memory())),
          size_(size),
          tile_size_((size - 1) / (kMaxSampleTiles * kWarpElements) * kWarpElements + kWarpElements),
          num_tiles_((size - 1) / tile_size_ + 1),
          warp_(threadIdx.x / 32),
          lane_(static_cast<int>(threadIdx.x % 32)) {}

    // From now on tokens whose bit is 0 have -infinity for a logit; null: none.
    __device__ __forceinline__ void allow(const int32_t* allowed) { allowed_ = allowed; }

    // The largest logit and the largest of every tile. Returns log(sum(exp(logits))); NaN where a logit is NaN or
    // infinity, or none is finite.
    __device__ __forceinline__ float scan(const T* row) {
        row_ = row;
        float largest = -INFINITY, sum = 0.0f;
#pragma unroll 1
        for (uint32_t tile = warp_; tile < num_tiles_; tile += kSampleWarps) {
            float tile_largest = -INFINITY;
            for_each_step(tile, [&](uint32_t, const float (&x)[kLaneElements]) {
                float of_step = x[0];
                for (int i = 1; i < kLaneElements; ++i) of_step = fmaxf(of_step, x[i]);
                of_step = fmaxf(largest_of_warp(of_step), -INFINITY);  // not NaN
                tile_largest = fmaxf(tile_largest, of_step);
                if (of_step > largest) {
                    sum *= exp2_approx((largest - of_step) * kLog2E);
                    largest = of_step;
                }
                const float shift = largest == -INFINITY ? 0.0f : largest;
                float sum_of_step = 0.0f;
                for (int i = 0; i < kLaneElements; ++i) sum_of_step += exp2_approx((x[i] - shift) * kLog2E);
                sum += sum_of_step;
            });
            if (lane_ == 0) memory_.largest[tile] = tile_largest;
        }
        sum = sum_over_warp(sum);
        if (lane_ == 0) {
            memory_.of_warp[warp_][0] = largest;
            memory_.of_warp[warp_][1] = sum;
        }
        __syncthreads();
        largest_ = -INFINITY;
#pragma unroll 4
        for (int warp = 0; warp < kSampleWarps; ++warp) largest_ = fmaxf(largest_, memory_.of_warp[warp][0]);
        float total = 0.0f;
#pragma unroll 4
        for (int warp = 0; warp < kSampleWarps; ++warp) {
            total += memory_.of_warp[warp][1] * exp2_approx((memory_.of_warp[warp][0] - largest_) * kLog2E);
        }
        __syncthreads();
        return largest_ + logf(total);
    }

    __device__ __forceinline__ bool can_draw() const { return std::isfinite(largest_); }

    // After scan, the first of the largest logits. By one warp.
    __device__ __forceinline__ uint32_t first_largest() const {
        uint32_t tile = kNoToken;
        for (uint32_t i = lane_; i < num_tiles_; i += 32) {
            if (tile == kNoToken && memory_.largest[i] == largest_) tile = i;
        }
        tile = least_of_warp(tile);
        uint32_t token = kNoToken;
        for_each_step(tile, [&](uint32_t at, const float (&x)[kLaneElements]) {
            for (int i = kLaneElements - 1; i >= 0; --i) {
                if (x[i] == largest_ && token > at + i) token = at + i;
            }
        });
        token = least_of_warp(token);
        return token < size_ ? token : 0;  // where no logit is a number above -infinity
    }

    // After scan, a token by temperature and filters; the first warp has it.
    __device__ __forceinline__ uint32_t draw(float temperature, int32_t top_k, float top_p, float min_p,
                                             double uniform) {
        scale_ = fminf(fmaxf(quotient(kLog2E, temperature), FLT_MIN), FLT_MAX);
        const uint32_t end = order_of<T>(largest_) + 1;
        uint32_t begin = order_of<T>(-INFINITY);
        if (min_p > 0) begin = first_weighing(log2f(min_p), begin, end - 1);
        Cut cut{value_of<T>(begin), kAllEqual};
        if (top_k > 0 && static_cast<uint32_t>(top_k) < size_) cut = cut_by_count(top_k, begin, end);
        double total = weigh(cut);
        if (top_p < 1) {
            cut = cut_by_mass(top_p, total, cut, end);
            total = weigh(cut);
        }
        return warp_ == 0 ? choose(uniform * total, cut) : kNoToken;
    }

 private:
    // Calls step(at, x) with the elements [at, at + kLaneElements) of each lane, -infinity behind the row's end.
    template <typename Step>
    __device__ __forceinline__ void for_each_step(uint32_t tile, const Step& step) const {
        const uint32_t begin = tile * tile_size_, end = min_of(size_, begin + tile_size_);
#pragma unroll 1
        for (uint32_t first = begin; first < end; first += kWarpElements) {
            const uint32_t at = first + lane_ * kLaneElements;
            float x[kLaneElements];
            if (at + kLaneElements <= size_) {
#pragma unroll
                for (int i = 0; i < kLaneElements; i += kVector) {
                    const auto vector = load_vector<kVector>(row_ + at + i);
                    for (int j = 0; j < kVector; ++j) x[i + j] = to_float(vector.elements[j]);
                }
            } else {
#pragma unroll
                for (int i = 0; i < kLaneElements; ++i) x[i] = at + i < size_ ? to_float(row_[at + i]) : -INFINITY;
            }
            if (allowed_ != nullptr && at < size_) {
                const uint32_t bits = static_cast<uint32_t>(allowed_[at / 32]) >> (at % 32);
#pragma unroll
                for (int i = 0; i < kLaneElements; ++i) x[i] = bits >> i & 1 ? x[i] : -INFINITY;
            }
            step(at, x);
        }
    }

    __device__ __forceinline__ static uint32_t min_of(uint32_t a, uint32_t b) { return a < b ? a : b; }

    // Of the likeliest token 1.
    __device__ __forceinline__ float weight(float x) const { return exp2_approx((x - largest_) * scale_); }

    // The first of [begin, end] whose weight is 2^exponent or more; `end` has weight 1.
    __device__ __forceinline__ uint32_t first_weighing(float exponent, uint32_t begin, uint32_t end) const {
        while (begin < end) {
            const uint32_t middle = begin + (end - begin) / 2;
            if ((value_of<T>(middle) - largest_) * scale_ >= exponent) {
                end = middle;
            } else {
                begin = middle + 1;
            }
        }
        return begin;
    }

    // Between `begin`, which reaches the target, and `end`, which does not: the last that does becomes `begin`. Returns
    // what is reached by those behind it. sum_from(pivots, sums) adds up what is no less than each of the pivots.
    template <typename Sum, typename Target, typename SumFrom>
    __device__ __forceinline__ Sum search(Target target, uint32_t& begin, uint32_t end, const SumFrom& sum_from) {
        Sum behind{};
#pragma unroll 1
        while (end - begin > 1) {
            const uint32_t first = begin, step = (end - begin) / (kPivots + 1) + ((end - begin) <= kPivots);
            float pivots[kPivots];
            Sum sums[kPivots] = {};
            for (int i = 0; i < kPivots; ++i) pivots[i] = value_of<T>(first + (i + 1) * step);
            sum_from(pivots, sums);
            sum_over_block(sums);
#pragma unroll
            for (int i = kPivots - 1; i >= 0; --i) {  // down to the first that reaches it
                const uint32_t pivot = first + (i + 1) * step;
                if (begin != first || pivot >= end) continue;
                if (static_cast<Target>(sums[i]) >= target) {
                    begin = pivot;
                } else {
                    end = pivot;
                    behind = sums[i];
                }
            }
        }
        return behind;
    }

    template <typename Sum, typename Measure>
    __device__ __forceinline__ void sum_from(const float (&pivots)[kPivots], Sum (&sums)[kPivots],
                                             const Measure& measure) const {
#pragma unroll 1
        for (uint32_t tile = warp_; tile < num_tiles_; tile += kSampleWarps) {
            if (memory_.largest[tile] < pivots[0]) continue;
            for_each_step(tile, [&](uint32_t, const float (&x)[kLaneElements]) {
                Sum of_step[kPivots] = {};
                for (int i = 0; i < kLaneElements; ++i) {
                    const Sum measured = measure(x[i]);
                    for (int j = 0; j < kPivots; ++j) of_step[j] += x[i] >= pivots[j] ? measured : Sum{};
                }
                for (int j = 0; j < kPivots; ++j) sums[j] += of_step[j];
            });
        }
    }

    template <typename Sum>
    __device__ __forceinline__ void sum_over_block(Sum (&sums)[kPivots]) {
        for (int i = 0; i < kPivots; ++i) {
            const Sum of_warp = sum_over_warp(sums[i]);
            if (lane_ == 0) memory_.of_warp[warp_][i] = std::bit_cast<float>(of_warp);
        }
        __syncthreads();
        for (int i = 0; i < kPivots; ++i) {
            sums[i] = Sum{};
#pragma unroll 4
            for (int warp = 0; warp < kSampleWarps; ++warp) sums[i] += std::bit_cast<Sum>(memory_.of_warp[warp][i]);
        }
        __syncthreads();
    }

    // The k likeliest from `begin` on.
    __device__ __forceinline__ Cut cut_by_count(uint32_t k, uint32_t begin, uint32_t end) {
        if (k <= num_tiles_) {  // as many tiles with a logit of at least this have as many logits of at least this
            search<uint32_t>(k, begin, end, [&](const float (&pivots)[kPivots], uint32_t (&sums)[kPivots]) {
                for (int i = 0; i < kPivots; ++i) {
                    sums[i] = threadIdx.x < num_tiles_ && memory_.largest[threadIdx.x] >= pivots[i];
                }
            });
        }
        const uint32_t above =
            search<uint32_t>(k, begin, end, [&](const float (&pivots)[kPivots], uint32_t (&sums)[kPivots]) {
                sum_from(pivots, sums, [](float) { return 1u; });
            });
        return {value_of<T>(begin), k - above};
    }

    // The fewest of the likeliest whose mass reaches top_p of the total, that of what `cut` keeps.
    __device__ __forceinline__ Cut cut_by_mass(float top_p, double total, const Cut& cut, uint32_t end) {
        const double target = top_p * total;
        // All together, tokens of less weight than this have less mass than may be left out.
        const float least = quotient(static_cast<float>(total - target), static_cast<float>(size_));
        uint32_t begin = first_weighing(log2f(least), order_of<T>(cut.value), end - 1);
        const float above =
            search<float>(target, begin, end, [&](const float (&pivots)[kPivots], float (&sums)[kPivots]) {
                sum_from(pivots, sums, [&](float x) { return weight(x); });
            });
        const float value = value_of<T>(begin);
        const float rest = quotient(static_cast<float>(target - above), weight(value));
        const uint32_t most = value == cut.value ? cut.num_equal : kAllEqual;
        // No vocabulary has 2^31 tokens.
        const uint32_t needed = rest > 1.0f ? static_cast<uint32_t>(ceilf(fminf(rest, 0x1p31f))) : 1;
        return {value, min_of(needed, most)};
    }

    // The masses that a cut leaves of all tiles; returns their sum.
    __device__ __forceinline__ double weigh(const Cut& cut) {
#pragma unroll 1
        for (uint32_t tile = warp_; tile < num_tiles_; tile += kSampleWarps) {
            float mass = 0.0f;
            uint32_t equal = 0;
            if (memory_.largest[tile] >= cut.value) {
                for_each_step(tile, [&](uint32_t, const float (&x)[kLaneElements]) {
                    float of_step = 0.0f;
                    for (int i = 0; i < kLaneElements; ++i) {
                        of_step += x[i] > cut.value ? weight(x[i]) : 0.0f;
                        equal += x[i] == cut.value;
                    }
                    mass += of_step;
                });
            }
            mass = sum_over_warp(mass);
            equal = sum_over_warp(equal);
            if (lane_ == 0) {
                memory_.mass[tile] = mass;
                memory_.equal[tile] = equal;
            }
        }
        __syncthreads();
        if (warp_ == 0) keep_equal(cut);
        __syncthreads();
        double total = 0.0;
#pragma unroll 4
        for (int run = 0; run < 32; ++run) total += memory_.run_mass[run];
        return total;
    }

    // Shares out what the cut keeps of the logits that are equal to it. By one warp, a run of tiles per lane.
    __device__ __forceinline__ void keep_equal(const Cut& cut) {
        const uint32_t run_size = tiles_per_run(), begin = lane_ * run_size;
        const uint32_t end = min_of(num_tiles_, begin + run_size);
        uint32_t in_run = 0;
        for (uint32_t tile = begin; tile < end; ++tile) in_run += memory_.equal[tile];
        uint32_t before = sum_up_to_lane(in_run, lane_) - in_run;
        const float weight_of_equal = weight(cut.value);
        double mass = 0.0;
        for (uint32_t tile = begin; tile < end; ++tile) {
            const uint32_t in_tile = memory_.equal[tile];
            const uint32_t allowed = cut.num_equal > before ? cut.num_equal - before : 0;
            memory_.mass[tile] += static_cast<float>(min_of(in_tile, allowed)) * weight_of_equal;
            memory_.equal[tile] = allowed;
            mass += memory_.mass[tile];
            before += in_tile;
        }
        memory_.run_mass[lane_] = mass;
    }

    __device__ __forceinline__ uint32_t tiles_per_run() const { return (num_tiles_ - 1) / 32 + 1; }

    // The first token, in the order of the vocabulary, with which the mass of those that are kept exceeds `rest`. By
    // one warp.
    __device__ __forceinline__ uint32_t choose(double rest, const Cut& cut) const {
        const uint32_t run = find_mass(memory_.run_mass, 0, 32, rest);
        const uint32_t begin = run * tiles_per_run();
        const uint32_t tile = find_mass(memory_.mass, begin, min_of(num_tiles_, begin + tiles_per_run()), rest);
        uint32_t allowed = memory_.equal[tile];
        auto left = static_cast<float>(rest);
        uint32_t found = kNoToken, last = 0;
        for_each_step(tile, [&](uint32_t at, const float (&x)[kLaneElements]) {
            uint32_t equal = 0;
            for (int i = 0; i < kLaneElements; ++i) equal += x[i] == cut.value;
            const uint32_t equal_up_to_here = sum_up_to_lane(equal, lane_);
            uint32_t before = equal_up_to_here - equal;
            float weights[kLaneElements], mass = 0.0f;
            for (int i = 0; i < kLaneElements; ++i) {
                const bool is_kept = x[i] > cut.value || (x[i] == cut.value && before++ < allowed);
                weights[i] = is_kept ? weight(x[i]) : 0.0f;
                mass += weights[i];
            }
            const float mass_up_to_here = sum_up_to_lane(mass, lane_);
            float sum = mass_up_to_here - mass;
            uint32_t first = kNoToken;
            for (int i = 0; i < kLaneElements; ++i) {
                sum += weights[i];
                if (!(weights[i] > 0)) continue;
                last = at + i;
                if (sum > left && first == kNoToken) first = at + i;
            }
            found = min_of(found, least_of_warp(first));
            left -= __shfl_sync(kAllLanes, mass_up_to_here, 31);
            const uint32_t in_step = __shfl_sync(kAllLanes, equal_up_to_here, 31);
            allowed = allowed > in_step ? allowed - in_step : 0;
        });
        last = over_warp(last, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
        return found == kNoToken ? last : found;
    }

    SampleMemory& memory_;
    const T* row_;
    const int32_t* allowed_ = nullptr;
    uint32_t size_, tile_size_, num_tiles_;
    int warp_, lane_;
    float largest_, scale_;
};

// The row's place among those of which there are `num`; null where it is none of them.
template <typename T>
__device__ __forceinline__ const T* row_of(const T* first, int64_t stride, int64_t num, const int32_t* places,
                                           int64_t row) {
    if (places == nullptr || places[row] < 0 || places[row] >= num) return nullptr;
    return first + places[row] * stride;
}

// After a scan, the row's token; the first warp has it.
template <typename Sampler>
__device__ __forceinline__ uint32_t sample_row(Sampler& sampler, const SampleParams& p, int64_t row) {
    if (p.temperature[row] > 0 && sampler.can_draw()) {
        return sampler.draw(p.temperature[row], p.top_k[row], p.top_p[row], p.min_p[row], p.uniform[row]);
    }
    return threadIdx.x < 32 ? sampler.first_largest() : kNoToken;
}

template <typename T, bool kIsAligned>
__global__ void __launch_bounds__(kSampleThreads, 2) sample_kernel(const __grid_constant__ SampleParams p) {
    const int64_t row = blockIdx.x;
    const auto size = static_cast<uint32_t>(p.vocab_size);
    const T* const logits = static_cast<const T*>(p.logits) + row * p.row_stride;
    RowSampler<T, kIsAligned ? kVectorSize<T> : 1> sampler(size);
    const float lse = sampler.scan(logits);
    const float* const ruled = row_of(p.ruled_logits, p.ruled_row_stride, p.num_ruled, p.ruled_rows, row);
    const int32_t* const allowed = row_of(p.allowed, p.allowed_stride, p.num_allowed, p.allowed_rows, row);
    uint32_t token;
    if (ruled != nullptr) {
        RowSampler<float, kIsAligned ? kVectorSize<float> : 1> ruled_sampler(size);
        ruled_sampler.allow(allowed);
        ruled_sampler.scan(ruled);
        token = sample_row(ruled_sampler, p, row);
    } else {
        if (allowed != nullptr) {
            sampler.allow(allowed);
            sampler.scan(logits);
        }
        token = sample_row(sampler, p, row);
    }
    if (threadIdx.x == 0) {
        p.token_ids[row] = static_cast<int32_t>(token);
        p.logprobs[row] = to_float(logits[token]) - lse;
        p.lse[row] = lse;
    }
}

template <typename T>
bool has_aligned_rows(const SampleParams& p, int64_t num_rows) {
    const uintptr_t bits = offset_bits(p.logits) | offset_bits<T>(num_rows, p.row_stride) |
                           offset_bits(p.ruled_logits) | offset_bits<float>(p.num_ruled, p.ruled_row_stride);
    return bits % kVectorBytes == 0;
}

// One launch; none where there are no rows. launch(kernel, grid, shared_bytes, argument) is a stream's or the
// emulator's.
template <typename Launcher>
void launch_sample(const SampleParams& params, int64_t num_rows, const Launcher& launch) {
    if (num_rows == 0) return;
    assert(num_rows <= kMaxBlocks && params.vocab_size > 0);
    by_type(params.dtype, [&]<typename T>(T) {
        launch(has_aligned_rows<T>(params, num_rows) ? sample_kernel<T, true> : sample_kernel<T, false>,
               LaunchGrid{static_cast<uint32_t>(num_rows), kSampleThreads}, static_cast<int>(sizeof(SampleMemory)),
               params);
    });
}

}  // namespace batchllm::cuda
