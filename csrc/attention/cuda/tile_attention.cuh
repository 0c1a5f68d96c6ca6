// One tile of rows against a run of keys: what a block of the attention kernel does.
//
// Phases: load q, find keys; for each tile of keys { wait, load the next; scores, softmax, sum of values }; merge the
// states of the warps that share rows, and write them.
//
// Two tiles of keys are in shared memory at a time. The barrier at the top of an iteration says that this tile's copies
// are there, that nobody reads the other tile any more, and that the slots of the next keys have been found.
#pragma once

#include "attention/cuda/attention_args.h"
#include "attention/cuda/tile_shape.h"
#include "cuda/intrinsics.cuh"

namespace batchllm::cuda {

constexpr float kLn2OfLog2 = 0.693147180559945309f;

// Positions that rows see: by at least one of them, and by all.
struct VisibleRange {
    int any_begin, any_end;
    int all_begin, all_end;
};

template <typename T, typename Shape>
class TileAttention {
 public:
    __device__ __forceinline__ TileAttention(const AttentionArgs& args, const AttentionTile& tile, int kv_head)
        : args_(args),
          tile_(tile),
          kv_head_(kv_head),
          thread_(static_cast<int>(threadIdx.x)),
          lane_(thread_ % 32),
          row_warp_(thread_ / 32 % Shape::kRowWarps),
          key_warp_(thread_ / 32 / Shape::kRowWarps),
          piece_(args.pieces + tile.piece_begin),
          shared_(dynamic_shared_memory()) {}

    __device__ __forceinline__ void run() {
        const int num_key_tiles = (tile_.kv_end - tile_.kv_begin + Shape::kKeys - 1) / Shape::kKeys;
        load_query();
        for (int stage = 0; stage < kStages; ++stage) {
            if (thread_ < Shape::kKeys) slots(stage)[thread_] = find_key(stage);
        }
        start_state();
        __syncthreads();
        load_keys(0);
        commit_copies();
        for (int key_tile = 0; key_tile < num_key_tiles; ++key_tile) {
            const int stage = key_tile % kStages;
            wait_for_copies<0>();
            __syncthreads();
            if (key_tile + 1 < num_key_tiles) load_keys(1 - stage);
            commit_copies();
            KeySlot slot;  // on its way while the warp computes
            if (thread_ < Shape::kKeys) slot = find_key(key_tile + kStages);
            attend(stage, tile_.kv_begin + key_tile * Shape::kKeys + key_warp_ * Shape::kWarpKeys);
            if (thread_ < Shape::kKeys) slots(stage)[thread_] = slot;
        }
        __syncthreads();  // the states take the place of the keys
        stage_states();
        __syncthreads();
        write_states();
    }

 private:
    static constexpr int kRowBlocks = Shape::kRowBlocks;
    static constexpr int kKeyBlocks = Shape::kWarpKeys / 16;
    static constexpr int kDimBlocks = Shape::kHeadDim / 16;
    // A warp with one block of rows keeps its queries, unless they and the sums would take all registers.
    static constexpr bool kKeepsQuery = kRowBlocks == 1 && Shape::kHeadDim <= 128;

    // A 16 x 16 block of float32 in a warp's registers: [half][i] is row lane / 4 + i / 2 * 8, column
    // half * 8 + lane % 4 * 2 + i % 2.
    using Block = float[2][4];

    // --- shared memory

    __device__ __forceinline__ T* query() const { return reinterpret_cast<T*>(shared_); }
    __device__ __forceinline__ T* keys(int stage) const {
        return reinterpret_cast<T*>(shared_ + Shape::kQueryBytes + 2 * stage * Shape::kKeyBytes);
    }
    __device__ __forceinline__ T* values(int stage) const {
        return reinterpret_cast<T*>(shared_ + Shape::kQueryBytes + (2 * stage + 1) * Shape::kKeyBytes);
    }
    __device__ __forceinline__ KeySlot* slots(int stage) const {
        return reinterpret_cast<KeySlot*>(shared_ + Shape::kLoopBytes) + stage * Shape::kKeys;
    }
    __device__ __forceinline__ float* state_out(int key_warp, int row) const {
        return reinterpret_cast<float*>(shared_) + (key_warp * Shape::kRows + row) * Shape::kOutPitch;
    }
    __device__ __forceinline__ float& state_max(int key_warp, int row) const {
        return state_out(Shape::kKeyWarps, 0)[key_warp * Shape::kRows + row];
    }
    __device__ __forceinline__ float& state_sum(int key_warp, int row) const {
        return state_out(Shape::kKeyWarps, 0)[(Shape::kKeyWarps + key_warp) * Shape::kRows + row];
    }
    __device__ static __forceinline__ T* element(T* matrix, int row, int chunk) {
        return matrix + 8 * Swizzle<Shape::kChunks>::at(row, chunk);
    }
    // Columns 0 or 8 (half 0 or 1) of the 16 of a block.
    __device__ static __forceinline__ const T* element(const T* matrix, int row, int block, int half) {
        return matrix + 8 * Swizzle<Shape::kChunks>::at(row, block, half);
    }

    // --- rows

    __device__ __forceinline__ int num_rows() const { return tile_.packed_end - tile_.packed_begin; }

    // Rows behind the last repeat it, up to the full height of the tile.
    __device__ __forceinline__ int packed_row(int row) const { return tile_.packed_begin + min(row, num_rows() - 1); }
    __device__ __forceinline__ const WorkRow& work_row(int row) const {
        return args_.rows[tile_.row_begin + packed_row(row) / args_.group_size];
    }
    __device__ __forceinline__ int qo_head(int row) const {
        return kv_head_ * args_.group_size + packed_row(row) % args_.group_size;
    }

    // The tile's row of this lane's: i = 0 or 1 in a block of 16.
    __device__ __forceinline__ int row_of_lane(int block, int i) const {
        return (row_warp_ * kRowBlocks + block) * 16 + lane_ / 4 + 8 * i;
    }

    __device__ __forceinline__ void load_query() {
        const QueryTensor& q = args_.params.q;
        for (int i = thread_; i < Shape::kRows * Shape::kChunks; i += kThreads) {
            const int row = i / Shape::kChunks, chunk = i % Shape::kChunks;
            const T* from = static_cast<const T*>(q.data) + work_row(row).token * q.token_stride +
                            qo_head(row) * q.head_stride + chunk * 8;
            copy_async(element(query(), row, chunk), from, true);
        }
    }

    __device__ __forceinline__ void start_state() {
        visible_ = {INT32_MAX, 0, 0, INT32_MAX};
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const WorkRow& row = work_row(row_of_lane(block, i));
                visible_ = {min(visible_.any_begin, row.kv_begin), max(visible_.any_end, row.kv_end),
                            max(visible_.all_begin, row.kv_begin), min(visible_.all_end, row.kv_end)};
                max_[block][i] = -INFINITY;
                sum_[block][i] = 0.0f;
            }
#pragma unroll
            for (int dims = 0; dims < kDimBlocks; ++dims) clear(out_[block][dims]);
        }
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) {  // lanes of different rows
            visible_ = {min(visible_.any_begin, __shfl_xor_sync(kAllLanes, visible_.any_begin, lanes)),
                        max(visible_.any_end, __shfl_xor_sync(kAllLanes, visible_.any_end, lanes)),
                        max(visible_.all_begin, __shfl_xor_sync(kAllLanes, visible_.all_begin, lanes)),
                        min(visible_.all_end, __shfl_xor_sync(kAllLanes, visible_.all_end, lanes))};
        }
    }

    __device__ static __forceinline__ void clear(Block& block) {
#pragma unroll
        for (int i = 0; i < 8; ++i) block[i / 4][i % 4] = 0.0f;
    }

    // --- keys

    // The slot of this thread's key of a tile of keys. Asked for tile after tile.
    __device__ __forceinline__ KeySlot find_key(int key_tile) {
        const int position = tile_.kv_begin + key_tile * Shape::kKeys + thread_;
        if (position >= tile_.kv_end) return {-1, 0};
        while (piece_->position_end <= position) ++piece_;
        const int slot = position - piece_->segment_begin;
        return {args_.page_ids[piece_->first_page + slot / args_.page_size], slot % args_.page_size};
    }

    // Keys that are not there become zeros, so their products are numbers.
    __device__ __forceinline__ void load_keys(int stage) {
        const PagedTensor& k_pages = args_.params.k_pages;
        const PagedTensor& v_pages = args_.params.v_pages;
        const T* k = static_cast<const T*>(k_pages.data) + kv_head_ * k_pages.head_stride;
        const T* v = static_cast<const T*>(v_pages.data) + kv_head_ * v_pages.head_stride;
#pragma unroll 2
        for (int i = 0; i < Shape::kKeys * Shape::kChunks / kThreads; ++i) {
            const int key = (thread_ + i * kThreads) / Shape::kChunks,
                      chunk = (thread_ + i * kThreads) % Shape::kChunks;
            const KeySlot slot = slots(stage)[key];
            const bool valid = slot.page_id >= 0;
            const int64_t page_id = valid ? slot.page_id : 0;
            copy_async(element(keys(stage), key, chunk),
                       k + page_id * k_pages.page_stride + slot.offset * k_pages.slot_stride + chunk * 8, valid);
            copy_async(element(values(stage), key, chunk),
                       v + page_id * v_pages.page_stride + slot.offset * v_pages.slot_stride + chunk * 8, valid);
        }
    }

    // --- computation

    // This warp's rows against its keys, the first of which is at `position`.
    __device__ __forceinline__ void attend(int stage, int position) {
        if constexpr (kKeepsQuery) {
            if (position - key_warp_ * Shape::kWarpKeys == tile_.kv_begin) {
#pragma unroll
                for (int dims = 0; dims < kDimBlocks; ++dims) load_query_block(query_[dims], 0, dims);
            }
        }
        const int position_end = position + Shape::kWarpKeys;
        if (position >= visible_.any_end || position_end <= visible_.any_begin) return;
        Block scores[kRowBlocks][kKeyBlocks];
        compute_scores(stage, scores);
        const bool is_masked = position < visible_.all_begin || position_end > visible_.all_end;
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
            scale(scores[block]);
            if (is_masked) mask(scores[block], block, position);
            update_state(scores[block], block);
        }
        add_values(stage, scores);
    }

    __device__ __forceinline__ void load_query_block(uint32_t (&registers)[4], int block, int dims) const {
        const int row = (row_warp_ * kRowBlocks + block) * 16 + lane_ % 16;
        load_matrices(registers, element(query(), row, dims, lane_ / 16));
    }

    __device__ __forceinline__ void compute_scores(int stage, Block (&scores)[kRowBlocks][kKeyBlocks]) const {
#pragma unroll
        for (int i = 0; i < kRowBlocks * kKeyBlocks; ++i) clear(scores[i / kKeyBlocks][i % kKeyBlocks]);
#pragma unroll
        for (int dims = 0; dims < kDimBlocks; ++dims) {
            uint32_t q[kRowBlocks][4];
            if constexpr (kKeepsQuery) {
#pragma unroll
                for (int i = 0; i < 4; ++i) q[0][i] = query_[dims][i];
            } else {
#pragma unroll
                for (int block = 0; block < kRowBlocks; ++block) load_query_block(q[block], block, dims);
            }
#pragma unroll
            for (int key_block = 0; key_block < kKeyBlocks; ++key_block) {
                // k transposed: its rows are the product's columns.
                const int key = key_warp_ * Shape::kWarpKeys + key_block * 16 + lane_ / 16 * 8 + lane_ % 8;
                uint32_t k[4];
                load_matrices(k, element(keys(stage), key, dims, lane_ / 8 % 2));
#pragma unroll
                for (int block = 0; block < kRowBlocks; ++block) {
                    multiply_accumulate<T>(scores[block][key_block], q[block], k);
                }
            }
        }
    }

    // To base 2, for ex2.
    __device__ __forceinline__ void scale(Block (&scores)[kKeyBlocks]) const {
        if (args_.soft_cap == 0.0f) {
            for_each(scores, [&](float& score, int, int) { score *= args_.score_factor; });
        } else {
            for_each(scores, [&](float& score, int, int) {  // tanh(x) = 1 - 2 / (e^2x + 1)
                const float quotient = reciprocal_approx(exp2_approx(score * args_.score_factor) + 1.0f);
                score = args_.soft_cap - 2.0f * args_.soft_cap * quotient;
            });
        }
    }

    __device__ __forceinline__ void mask(Block (&scores)[kKeyBlocks], int block, int position) const {
        // Read anew: tiles of keys at a border of what a row sees are few, and registers too.
        const WorkRow rows[2] = {work_row(row_of_lane(block, 0)), work_row(row_of_lane(block, 1))};
        for_each(scores, [&](float& score, int i, int column) {
            const int at = position + column;
            if (at < rows[i].kv_begin || at >= rows[i].kv_end) score = -INFINITY;
        });
    }

    // Scores become weights 2^(score - max). Where a maximum moves, what was summed before is scaled to the new one.
    __device__ __forceinline__ void update_state(Block (&scores)[kKeyBlocks], int block) {
        float new_max[2] = {max_[block][0], max_[block][1]};
        for_each(scores, [&](float& score, int i, int) { new_max[i] = fmaxf(new_max[i], score); });
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            new_max[i] = fmaxf(new_max[i], __shfl_xor_sync(kAllLanes, new_max[i], 1));
            new_max[i] = fmaxf(new_max[i], __shfl_xor_sync(kAllLanes, new_max[i], 2));
        }
        if (__any_sync(kAllLanes, new_max[0] != max_[block][0] || new_max[1] != max_[block][1])) {
            const float factor[2] = {exp2_approx(max_[block][0] - zero_point(new_max[0])),
                                     exp2_approx(max_[block][1] - zero_point(new_max[1]))};
#pragma unroll
            for (int i = 0; i < 2; ++i) sum_[block][i] *= factor[i];
#pragma unroll
            for (int dims = 0; dims < kDimBlocks; ++dims) {
#pragma unroll
                for (int i = 0; i < 8; ++i) out_[block][dims][i / 4][i % 4] *= factor[i / 2 % 2];
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) max_[block][i] = new_max[i];
        for_each(scores, [&](float& score, int i, int) {
            score = exp2_approx(score - zero_point(new_max[i]));
            sum_[block][i] += score;
        });
    }

    // What is subtracted of scores; of no score at all, -inf - -inf would be NaN.
    __device__ static __forceinline__ float zero_point(float max_score) {
        return max_score == -INFINITY ? 0.0f : max_score;
    }

    // visit(score, which of the lane's two rows, column of the warp's keys)
    template <typename Visit>
    __device__ __forceinline__ void for_each(Block (&scores)[kKeyBlocks], const Visit& visit) const {
#pragma unroll
        for (int key_block = 0; key_block < kKeyBlocks; ++key_block) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int column = key_block * 16 + i / 4 * 8 + lane_ % 4 * 2 + i % 2;
                visit(scores[key_block][i / 4][i % 4], i / 2 % 2, column);
            }
        }
    }

    __device__ __forceinline__ void add_values(int stage, const Block (&weights)[kRowBlocks][kKeyBlocks]) {
#pragma unroll
        for (int key_block = 0; key_block < kKeyBlocks; ++key_block) {
            uint32_t p[kRowBlocks][4];
#pragma unroll
            for (int block = 0; block < kRowBlocks; ++block) {
                const Block& w = weights[block][key_block];
#pragma unroll
                for (int i = 0; i < 4; ++i) p[block][i] = pack<T>(w[i / 2][i % 2 * 2], w[i / 2][i % 2 * 2 + 1]);
            }
            const int key = key_warp_ * Shape::kWarpKeys + key_block * 16 + lane_ % 16;
#pragma unroll
            for (int dims = 0; dims < kDimBlocks; ++dims) {
                uint32_t v[4];
                load_matrices_transposed(v, element(values(stage), key, dims, lane_ / 16));
#pragma unroll
                for (int block = 0; block < kRowBlocks; ++block) {
                    multiply_accumulate<T>(out_[block][dims], p[block], v);
                }
            }
        }
    }

    // --- results

    __device__ __forceinline__ void stage_states() {
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int row = row_of_lane(block, i);
                float* out = state_out(key_warp_, row) + lane_ % 4 * 2;
#pragma unroll
                for (int dims = 0; dims < kDimBlocks; ++dims) {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float* from = out_[block][dims][half] + 2 * i;
                        *reinterpret_cast<float2*>(out + dims * 16 + half * 8) = {from[0], from[1]};
                    }
                }
                float sum = sum_[block][i];
                sum += __shfl_xor_sync(kAllLanes, sum, 1);
                sum += __shfl_xor_sync(kAllLanes, sum, 2);
                if (lane_ % 4 == 0) {
                    state_max(key_warp_, row) = max_[block][i];
                    state_sum(key_warp_, row) = sum;
                }
            }
        }
    }

    // Eight columns of one row at a time: the states of the warps that share it become one, in the order of the warps.
    __device__ __forceinline__ void write_states() const {
        for (int i = thread_; i < num_rows() * Shape::kChunks; i += kThreads) {
            const int row = i / Shape::kChunks, chunk = i % Shape::kChunks;
            const WorkRow& work = work_row(row);
            const int head = qo_head(row);
            // A sink is a key with v = 0 that is counted once: here if this item is all that the row sees.
            const bool has_sink = args_.params.sinks != nullptr && work.slot == kWriteThrough;
            const float sink = has_sink ? args_.params.sinks[head] * kLog2E : -INFINITY;
            float max_score = sink;
#pragma unroll
            for (int warp = 0; warp < Shape::kKeyWarps; ++warp) max_score = fmaxf(max_score, state_max(warp, row));
            const float zero = zero_point(max_score);
            float sum = exp2_approx(sink - zero);
            float out[8] = {};
#pragma unroll
            for (int warp = 0; warp < Shape::kKeyWarps; ++warp) {
                const float weight = exp2_approx(state_max(warp, row) - zero);
                sum += weight * state_sum(warp, row);
                const float4* from = reinterpret_cast<const float4*>(state_out(warp, row) + chunk * 8);
                const float4 low = from[0], high = from[1];
                const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
                for (int d = 0; d < 8; ++d) out[d] += weight * values[d];
            }
            const float factor = sum == 0.0f ? 0.0f : reciprocal_approx(sum);
#pragma unroll
            for (int d = 0; d < 8; ++d) out[d] *= factor;
            const float lse = sum == 0.0f ? -INFINITY : (max_score + log2f(sum)) * kLn2OfLog2;
            write(work, head, chunk, out, lse);
        }
    }

    __device__ __forceinline__ void write(const WorkRow& work, int head, int chunk, const float (&out)[8],
                                          float lse) const {
        if (work.slot != kWriteThrough) {
            const int64_t state = int64_t{work.slot} * args_.num_kv_heads * args_.group_size + head;
            auto* to = reinterpret_cast<float4*>(args_.partial_out + state * Shape::kHeadDim + chunk * 8);
            to[0] = {out[0], out[1], out[2], out[3]};
            to[1] = {out[4], out[5], out[6], out[7]};
            if (chunk == 0) args_.partial_lse[state] = lse;
            return;
        }
        const OutputTensor& outs = args_.params.out;
        T* to = static_cast<T*>(outs.data) + work.token * outs.token_stride + head * outs.head_stride + chunk * 8;
        *reinterpret_cast<uint4*>(to) = {pack<T>(out[0], out[1]), pack<T>(out[2], out[3]), pack<T>(out[4], out[5]),
                                         pack<T>(out[6], out[7])};
        const LseTensor& lses = args_.params.lse;
        if (chunk == 0 && lses.data != nullptr) lses.data[work.token * lses.token_stride + head * lses.head_stride] = lse;
    }

    const AttentionArgs& args_;
    const AttentionTile& tile_;
    const int kv_head_;
    const int thread_, lane_;
    const int row_warp_, key_warp_;
    const KvPiece* piece_;  // of the key that this thread found last
    unsigned char* const shared_;

    // Of the lane's rows: two in each block.
    VisibleRange visible_;      // of all rows of the warp
    float max_[kRowBlocks][2];  // of the scores in base 2
    float sum_[kRowBlocks][2];  // of the weights that this lane computed
    Block out_[kRowBlocks][kDimBlocks];
    uint32_t query_[kKeepsQuery ? kDimBlocks : 1][4];
};

}  // namespace batchllm::cuda
