// One tile of rows against a run of keys, for one KV head after another: what a block of an attention kernel does.
//
// Phases: find rows and keys; for each head, for each tile of keys { wait, load what comes kStages - 1 tiles later;
// scores, softmax, sum of values }; write the head's states. The keys of all heads have the same slots, so these are
// looked up for the first head while nothing else is done, and from then on ahead of their use: the loads of the next
// head begin while this one computes.
//
// kStages tiles of keys are in shared memory at a time. The barrier at the top of an iteration says that this tile's
// copies are there, that nobody reads the one before any more, and that the slots of the next keys have been found.
#pragma once

#include "attention/cuda/attention_args.h"
#include "attention/cuda/tile_shape.h"
#include "cuda/intrinsics.cuh"

namespace batchllm::cuda {

constexpr float kLn2OfLog2 = 0.693147180559945309f;

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
          dim_warp_(thread_ / 32 / Shape::kRowWarps),
          num_key_tiles_(max((tile_.kv_end - tile_.kv_begin + Shape::kKeys - 1) / Shape::kKeys, 1)),
          piece_(tile.piece_begin),
          shared_(dynamic_shared_memory()) {}

    // The heads [kv_head, kv_head_end).
    __device__ __forceinline__ void run(int kv_head_end) {
        for (int stage = 0; stage < Shape::kStages; ++stage) {
            if (thread_ < Shape::kKeys) slots(stage)[thread_] = find_key(step_after({kv_head_, 0}, stage));
        }
        find_rows();
        __syncthreads();
        find_visible_range();
        for (int stage = 0; stage < Shape::kStages - 1; ++stage) {
            load(stage, step_after({kv_head_, 0}, stage), kv_head_end);
        }
        int first_step = 0;  // of the head
        for (; kv_head_ < kv_head_end; ++kv_head_) {
            start_state();
            for (int key_tile = 0; key_tile < num_key_tiles_; ++key_tile) {
                const int stage = (first_step + key_tile) % Shape::kStages;
                wait_for_copies<Shape::kStages - 2>();
                __syncthreads();
                load((stage + Shape::kStages - 1) % Shape::kStages,
                     step_after({kv_head_, key_tile}, Shape::kStages - 1), kv_head_end);
                KeySlot slot;  // on its way while the warp computes
                if (thread_ < Shape::kKeys) slot = find_key(step_after({kv_head_, key_tile}, Shape::kStages));
                if (kKeepsQuery && key_tile == 0) keep_query();
                attend(stage, tile_.kv_begin + key_tile * Shape::kKeys);
                if (thread_ < Shape::kKeys) slots(stage)[thread_] = slot;
            }
            write_states();
            first_step += num_key_tiles_;
        }
    }

 private:
    static constexpr int kRowBlocks = Shape::kRowBlocks;
    static constexpr int kKeyBlocks = Shape::kKeys / 16;
    static constexpr int kDimBlocks = Shape::kHeadDim / 16;
    static constexpr int kOutBlocks = Shape::kWarpDims / 16;
    static constexpr bool kHasMoreHeads = Shape::kQueries > 1;
    // A warp with one block of rows keeps its queries, unless they and the sums would take all registers.
    static constexpr bool kKeepsQuery = kRowBlocks == 1 && Shape::kHeadDim <= (kHasMoreHeads ? 96 : 128);

    // A tile of keys for a head.
    struct Step {
        int kv_head, key_tile;
    };

    // A 16 x 16 block of float32 in a warp's registers: [half][i] is row lane / 4 + i / 2 * 8, column
    // half * 8 + lane % 4 * 2 + i % 2.
    using Block = float[2][4];

    // --- shared memory

    __device__ __forceinline__ T* query(int kv_head) const {
        return reinterpret_cast<T*>(shared_ + kv_head % Shape::kQueries * Shape::kQueryBytes);
    }
    __device__ __forceinline__ T* keys(int stage) const {
        return reinterpret_cast<T*>(shared_ + Shape::kQueries * Shape::kQueryBytes + 2 * stage * Shape::kKeyBytes);
    }
    __device__ __forceinline__ T* values(int stage) const { return keys(stage) + Shape::kKeyBytes / sizeof(T); }
    __device__ __forceinline__ KeySlot* slots(int stage) const {
        return reinterpret_cast<KeySlot*>(shared_ + Shape::kLoopBytes) + stage * Shape::kKeys;
    }
    __device__ __forceinline__ TileRow* rows() const {
        return reinterpret_cast<TileRow*>(shared_ + Shape::kLoopBytes + Shape::kSlotBytes);
    }
    __device__ __forceinline__ VisibleRange& visible() const {  // of the warp's rows
        return reinterpret_cast<VisibleRange*>(shared_ + Shape::kLoopBytes + Shape::kSlotBytes +
                                               Shape::kRowBytes)[thread_ / 32];
    }
    __device__ static __forceinline__ T* element(T* matrix, int row, int chunk) {
        return matrix + 8 * Swizzle<Shape::kChunks>::at(row, chunk);
    }
    // Columns 0 or 8 (half 0 or 1) of the 16 of a block.
    __device__ static __forceinline__ const T* element(const T* matrix, int row, int block, int half) {
        return matrix + 8 * Swizzle<Shape::kChunks>::at(row, block, half);
    }

    // --- rows

    // Rows behind the last see what it sees, with no query.
    __device__ __forceinline__ void find_rows() {
        for (int row = thread_; row < Shape::kRows; row += Shape::kThreads) {
            const bool is_there = row < tile_.packed_end - tile_.packed_begin;
            const int packed = is_there ? tile_.packed_begin + row : tile_.packed_end - 1;
            rows()[row] = {args_.rows[tile_.row_begin + packed / args_.group_size],
                           is_there ? packed % args_.group_size : kNoHead};
        }
    }

    // The tile's row of this lane's: i = 0 or 1 in a block of 16.
    __device__ __forceinline__ int row_of_lane(int block, int i) const {
        return (row_warp_ * (16 * kRowBlocks) + lane_ / 4) + (block * 16 + 8 * i);
    }

    __device__ __forceinline__ void load_query(int kv_head) const {
        const QueryTensor& q = args_.params.q;
#pragma unroll(kHasMoreHeads ? 1 : 2)
        for (int i = thread_; i < Shape::kRows * Shape::kChunks; i += Shape::kThreads) {
            const int row = i / Shape::kChunks, chunk = i % Shape::kChunks;
            const int head = rows()[row].head;
            const T* from = static_cast<const T*>(q.data) + rows()[row].work.token * q.token_stride +
                            (kv_head * args_.group_size + max(head, 0)) * q.head_stride + chunk * 8;
            copy_async(element(query(kv_head), row, chunk), from, head != kNoHead);
        }
    }

    __device__ __forceinline__ void find_visible_range() {
        VisibleRange range{INT32_MAX, 0, 0, INT32_MAX};
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const WorkRow& row = rows()[row_of_lane(block, i)].work;
                range = {min(range.any_begin, row.kv_begin), max(range.any_end, row.kv_end),
                         max(range.all_begin, row.kv_begin), min(range.all_end, row.kv_end)};
            }
        }
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) {  // lanes of different rows
            range = {min(range.any_begin, __shfl_xor_sync(kAllLanes, range.any_begin, lanes)),
                     max(range.any_end, __shfl_xor_sync(kAllLanes, range.any_end, lanes)),
                     max(range.all_begin, __shfl_xor_sync(kAllLanes, range.all_begin, lanes)),
                     min(range.all_end, __shfl_xor_sync(kAllLanes, range.all_end, lanes))};
        }
        if (lane_ == 0) visible() = range;  // read behind the barrier of the loop
    }

    __device__ __forceinline__ void start_state() {
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                max_[block][i] = -INFINITY;
                sum_[block][i] = 0.0f;
            }
#pragma unroll
            for (int dims = 0; dims < kOutBlocks; ++dims) clear(out_[block][dims]);
        }
    }

    __device__ static __forceinline__ void clear(Block& block) {
#pragma unroll
        for (int i = 0; i < 8; ++i) block[i / 4][i % 4] = 0.0f;
    }

    // --- keys

    // What is computed so many tiles of keys later.
    __device__ __forceinline__ Step step_after(Step step, int num_key_tiles) const {
        step.key_tile += num_key_tiles;
        while (kHasMoreHeads && step.key_tile >= num_key_tiles_) {
            step.key_tile -= num_key_tiles_;
            ++step.kv_head;
        }
        return step;
    }

    // The slot of this thread's key. Asked for step after step.
    __device__ __forceinline__ KeySlot find_key(Step step) {
        const int position = tile_.kv_begin + step.key_tile * Shape::kKeys + thread_;
        if (position >= tile_.kv_end) return {-1, 0};
        if (kHasMoreHeads && position < args_.pieces[piece_].position_begin) piece_ = tile_.piece_begin;
        while (args_.pieces[piece_].position_end <= position) ++piece_;
        const KvPiece& piece = args_.pieces[piece_];
        const int slot = position - piece.segment_begin;
        return {args_.page_ids[piece.first_page + slot / args_.page_size], slot % args_.page_size};
    }

    // A tile of keys, the first of a head with its queries: one group of copies, which is empty behind the last.
    __device__ __forceinline__ void load(int stage, Step step, int kv_head_end) const {
        if (kHasMoreHeads ? step.kv_head < kv_head_end : step.key_tile < num_key_tiles_) {
            if (step.key_tile == 0) load_query(step.kv_head);
            load_keys(stage, step.kv_head);
        }
        commit_copies();
    }

    // Keys that are not there become zeros, so their products are numbers.
    __device__ __forceinline__ void load_keys(int stage, int kv_head) const {
        const PagedTensor& k_pages = args_.params.k_pages;
        const PagedTensor& v_pages = args_.params.v_pages;
        const T* k = static_cast<const T*>(k_pages.data) + kv_head * k_pages.head_stride;
        const T* v = static_cast<const T*>(v_pages.data) + kv_head * v_pages.head_stride;
#pragma unroll 2
        for (int i = 0; i < Shape::kKeys * Shape::kChunks / Shape::kThreads; ++i) {
            const int key = (thread_ + i * Shape::kThreads) / Shape::kChunks,
                      chunk = (thread_ + i * Shape::kThreads) % Shape::kChunks;
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

    // This warp's rows against a tile of keys, the first of which is at `position`.
    __device__ __forceinline__ void attend(int stage, int position) {
        const int position_end = position + Shape::kKeys;
        const VisibleRange range = visible();
        if (position >= range.any_end || position_end <= range.any_begin) return;
        Block scores[kRowBlocks][kKeyBlocks];
        compute_scores(stage, scores);
        const bool is_masked = position < range.all_begin || position_end > range.all_end;
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
            scale(scores[block]);
            if (is_masked) mask(scores[block], block, position);
            update_state(scores[block], block);
        }
        add_values(stage, scores);
    }

    __device__ __forceinline__ void keep_query() {
#pragma unroll
        for (int dims = 0; dims < (kKeepsQuery ? kDimBlocks : 0); ++dims) load_query_block(query_[dims], 0, dims);
    }

    __device__ __forceinline__ void load_query_block(uint32_t (&registers)[4], int block, int dims) const {
        const int row = (row_warp_ * kRowBlocks + block) * 16 + lane_ % 16;
        load_matrices(registers, element(query(kv_head_), row, dims, lane_ / 16));
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
                const int key = key_block * 16 + lane_ / 16 * 8 + lane_ % 8;
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
        const WorkRow seen[2] = {rows()[row_of_lane(block, 0)].work, rows()[row_of_lane(block, 1)].work};
        for_each(scores, [&](float& score, int i, int column) {
            const int at = position + column;
            if (at < seen[i].kv_begin || at >= seen[i].kv_end) score = -INFINITY;
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
            for (int dims = 0; dims < kOutBlocks; ++dims) {
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

    // visit(score, which of the lane's two rows, column of the tile's keys)
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
            const int key = key_block * 16 + lane_ % 16;
#pragma unroll
            for (int dims = 0; dims < kOutBlocks; ++dims) {
                uint32_t v[4];
                load_matrices_transposed(v, element(values(stage), key, dim_warp_ * kOutBlocks + dims, lane_ / 16));
#pragma unroll
                for (int block = 0; block < kRowBlocks; ++block) {
                    multiply_accumulate<T>(out_[block][dims], p[block], v);
                }
            }
        }
    }

    // --- results

    __device__ __forceinline__ void write_states() {
#pragma unroll
        for (int block = 0; block < kRowBlocks; ++block) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                float sum = sum_[block][i];
                sum += __shfl_xor_sync(kAllLanes, sum, 1);
                sum += __shfl_xor_sync(kAllLanes, sum, 2);
                write_row(block, i, sum);
            }
        }
    }

    // One of the lane's rows, of which it has every fourth pair of columns.
    __device__ __forceinline__ void write_row(int block, int i, float sum) {
        const int row = row_of_lane(block, i);
        const WorkRow work = rows()[row].work;
        if (rows()[row].head == kNoHead) return;
        const int head = kv_head_ * args_.group_size + rows()[row].head;
        float max_score = max_[block][i];
        float scale = 1.0f;
        if (args_.params.sinks != nullptr && work.slot == kWriteThrough) {
            // A sink is a key with v = 0 that is counted once: here if this item is all that the row sees.
            const float sink = args_.params.sinks[head] * kLog2E;
            max_score = fmaxf(max_score, sink);
            scale = exp2_approx(max_[block][i] - zero_point(max_score));
            sum = sum * scale + exp2_approx(sink - zero_point(max_score));
        }
        scale = sum == 0.0f ? 0.0f : scale * reciprocal_approx(sum);
        const float lse = sum == 0.0f ? -INFINITY : (max_score + log2f(sum)) * kLn2OfLog2;
        const bool is_partial = work.slot != kWriteThrough;
        const int64_t state = int64_t{work.slot} * args_.num_kv_heads * args_.group_size + head;
        const OutputTensor& outs = args_.params.out;
        T* to = is_partial ? static_cast<T*>(args_.partial_out) + state * Shape::kHeadDim
                           : static_cast<T*>(outs.data) + work.token * outs.token_stride + head * outs.head_stride;
        to += dim_warp_ * Shape::kWarpDims + lane_ % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2 * kOutBlocks; ++half) {
            const float* from = out_[block][half / 2][half % 2] + 2 * i;
            *reinterpret_cast<uint32_t*>(to + half * 8) = pack<T>(from[0] * scale, from[1] * scale);
        }
        if (dim_warp_ != 0 || lane_ % 4 != 0) return;
        const LseTensor& lses = args_.params.lse;
        if (is_partial) {
            args_.partial_lse[state] = lse;
        } else if (lses.data != nullptr) {
            lses.data[work.token * lses.token_stride + head * lses.head_stride] = lse;
        }
    }

    const AttentionArgs& args_;
    const AttentionTile& tile_;
    int kv_head_;  // that is computed
    const int thread_, lane_;
    const int row_warp_, dim_warp_;

    const int num_key_tiles_;  // an empty one where there are no keys
    int piece_;                // of the key that this thread found last

    unsigned char* const shared_;

    // Of the lane's rows: two in each block.
    float max_[kRowBlocks][2];  // of the scores in base 2
    float sum_[kRowBlocks][2];  // of the weights that this lane computed
    Block out_[kRowBlocks][kOutBlocks];
    uint32_t query_[kKeepsQuery ? kDimBlocks : 1][4];
};

}  // namespace batchllm::cuda
