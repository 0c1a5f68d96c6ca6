"""Mistakes that somebody could make in the CUDA kernels: each one, put in, must be caught by the emulated cases."""

from __future__ import annotations

from dataclasses import dataclass

TILE = "csrc/attention/cuda/tile_attention.cuh"
SHAPE = "csrc/attention/cuda/tile_shape.h"
KERNEL = "csrc/attention/cuda/attention_kernels.cuh"
WORK = "csrc/cuda/run_work.cuh"
TILES = "csrc/attention/cuda/attention_tiles.cpp"
LAYOUT = "csrc/attention/cuda/plan_layout.cpp"
MERGE = "csrc/attention/cuda/merge_rows_thread.h"
NORM = "csrc/rows/cuda/rms_norm_kernel.cuh"
LAYER = "csrc/rows/cuda/norm_rotate_append_kernel.cuh"
SAMPLE = "csrc/rows/cuda/sample_kernel.cuh"


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    original: str  # stands in the file once
    mutated: str
    build: str = "fast"  # the one that must catch it

    def __str__(self) -> str:
        return self.name


MUTANTS = [
    # Order of threads, copies and launches.
    Mutant(
        "slots_and_rows_are_read_before_they_are_found",
        TILE,
        "find_rows();\n        __syncthreads();",
        "find_rows();",
        "checked",
    ),
    Mutant(
        "no_barrier_behind_the_wait",
        TILE,
        "wait_for_copies<Shape::kStages - 2>();\n                __syncthreads();",
        "wait_for_copies<Shape::kStages - 2>();",
        "checked",
    ),
    Mutant(
        "a_warp_barrier_for_a_block_barrier",
        TILE,
        "wait_for_copies<Shape::kStages - 2>();\n                __syncthreads();",
        "wait_for_copies<Shape::kStages - 2>();\n                __syncwarp();",
        "checked",
    ),
    Mutant(
        "no_wait", TILE, "wait_for_copies<Shape::kStages - 2>();", "wait_for_copies<Shape::kStages - 1>();", "checked"
    ),
    Mutant(
        "next_keys_overwrite_these",
        TILE,
        "load((stage + Shape::kStages - 1) % Shape::kStages,",
        "load(stage,",
        "checked",
    ),
    Mutant("the_slots_of_the_wrong_stage", TILE, "slots(stage)[thread_] = slot", "slots(stage ^ 1)[thread_] = slot"),
    Mutant("one_place_for_the_queries_of_all_heads", TILE, "kv_head % Shape::kQueries *", "0 *", "checked"),
    Mutant("stages_begin_anew_with_each_head", TILE, "first_step += num_key_tiles_;", ""),
    Mutant("the_keys_of_a_block's_first_head", TILE, "load_keys(stage, step.kv_head)", "load_keys(stage, kv_head_)"),
    Mutant("pieces_go_on_with_the_next_head", TILE, "position < args_.pieces[piece_].position_begin", "false"),
    Mutant(
        "the_last_heads_are_left_out",
        KERNEL,
        "min(kv_head + args.heads_per_block, args.num_kv_heads)",
        "min(kv_head + args.heads_per_block, args.num_kv_heads - 1)",
    ),
    Mutant("the_merge_does_not_wait", WORK, "wait_for_earlier_launches();", "", "checked"),
    Mutant(
        "the_merge_waits_for_narrow_tiles_only",
        KERNEL,
        "if (blockIdx.x == gridDim.x - 1) wait_for_earlier_launches();",
        "",
    ),
    # Rows.
    Mutant(
        "rows_behind_the_last_are_read",
        TILE,
        "is_there ? tile_.packed_begin + row : tile_.packed_end - 1",
        "tile_.packed_begin + row",
    ),
    Mutant(
        "rows_behind_the_last_are_written",
        TILE,
        "is_there ? packed % args_.group_size : kNoHead",
        "packed % args_.group_size",
        "checked",
    ),
    Mutant("heads_in_the_place_of_tokens", TILE, "packed % args_.group_size", "packed / args_.group_size"),
    Mutant("the_item's_first_rows_in_every_tile", TILE, "is_there ? tile_.packed_begin + row :", "is_there ? row :"),
    Mutant(
        "queries_in_the_wrong_half",
        TILE,
        "element(query(kv_head_), row, dims, lane_ / 16)",
        "element(query(kv_head_), row, dims, lane_ / 8 % 2)",
    ),
    Mutant("rows_i_and_i_plus_8_are_one", TILE, "(block * 16 + 8 * i);", "block * 16;"),
    # Keys.
    Mutant("pieces_are_not_followed", TILE, "while (args_.pieces[piece_].position_end <= position) ++piece_;", ""),
    Mutant("a_slot_of_another_page", TILE, "piece.first_page + slot / args_.page_size", "piece.first_page"),
    Mutant("keys_behind_the_last_are_loaded", TILE, "if (position >= tile_.kv_end) return {-1, 0};", ""),
    Mutant("keys_in_the_wrong_half", TILE, "dims, lane_ / 8 % 2)", "dims, lane_ / 16)"),
    Mutant("values_are_not_transposed", TILE, "load_matrices_transposed(v", "load_matrices(v"),
    Mutant("all_warps_take_the_first_columns", TILE, "dim_warp_ * kOutBlocks + dims", "dims"),
    # Masks.
    Mutant("a_key_too_many", TILE, "at >= seen[i].kv_end", "at > seen[i].kv_end"),
    Mutant("a_key_too_few", TILE, "at < seen[i].kv_begin", "at <= seen[i].kv_begin"),
    Mutant("the_last_keys_are_not_masked", TILE, "position_end > range.all_end", "position_end > range.any_end"),
    Mutant("the_first_keys_are_not_masked", TILE, "position < range.all_begin", "position < range.any_begin"),
    Mutant("keys_that_some_rows_see_are_left_out", TILE, "position >= range.any_end", "position >= range.all_end"),
    Mutant("bounds_of_some_lanes_only", TILE, "lanes = 4; lanes < 32", "lanes = 4; lanes < 16"),
    Mutant("columns_of_a_pair_are_one", TILE, "lane_ % 4 * 2 + i % 2;", "lane_ % 4 * 2;"),
    # Softmax.
    Mutant("the_empty_maximum_is_subtracted", TILE, "max_score == -INFINITY ? 0.0f : max_score", "max_score"),
    Mutant(
        "the_maximum_of_half_a_row",
        TILE,
        "new_max[i] = fmaxf(new_max[i], __shfl_xor_sync(kAllLanes, new_max[i], 2));",
        "",
    ),
    Mutant("the_sum_of_half_a_row", TILE, "sum += __shfl_xor_sync(kAllLanes, sum, 2);", ""),
    Mutant("old_values_are_not_scaled", TILE, "*= factor[i / 2 % 2];", "*= 1.0f;"),
    Mutant("old_values_are_scaled_by_the_other_row", TILE, "*= factor[i / 2 % 2];", "*= factor[i / 4];"),
    Mutant("old_sums_are_not_scaled", TILE, "sum_[block][i] *= factor[i];", ";"),
    Mutant("only_a_first_row_that_moves_is_scaled", TILE, " || new_max[1] != max_[block][1])", ")"),
    Mutant(
        "weights_in_the_wrong_order",
        TILE,
        "pack<T>(w[i / 2][i % 2 * 2], w[i / 2][i % 2 * 2 + 1])",
        "pack<T>(w[i % 2][i / 2 * 2], w[i % 2][i / 2 * 2 + 1])",
    ),
    Mutant("the_cap_without_its_factor", LAYOUT, "2.0f * kLog2E / params.soft_cap", "kLog2E / params.soft_cap"),
    # States.
    Mutant("every_warp_writes_the_lse", TILE, "dim_warp_ != 0 || lane_ % 4 != 0", "lane_ % 4 != 0", "checked"),
    Mutant("every_warp_writes_the_first_columns", TILE, "to += dim_warp_ * Shape::kWarpDims + ", "to += "),
    Mutant("lse_in_base_2", TILE, "(max_score + log2f(sum)) * kLn2OfLog2", "(max_score + log2f(sum))"),
    Mutant("a_sink_in_every_partial_state", TILE, " && work.slot == kWriteThrough", ""),
    Mutant("no_sink", TILE, "sum * scale + exp2_approx(sink - zero_point(max_score))", "sum * scale"),
    Mutant("a_sink_does_not_scale_the_sum", TILE, "sum * scale + exp2_approx(sink", "sum + exp2_approx(sink"),
    Mutant("a_partial_state_becomes_the_result", TILE, "= work.slot != kWriteThrough;", "= false;"),
    Mutant("an_empty_row_is_divided_by_zero", MERGE, "float merged_lse = -INFINITY;", "float merged_lse = 0.0f;"),
    Mutant("the_last_state_is_not_merged", MERGE, "slot < row.slot_end", "slot < row.slot_end - 1"),
    Mutant("merged_rows_without_their_sink", MERGE, "if (sinks != nullptr)", "if (false)"),
    # Room behind a plan.
    Mutant("a_spare_tile_has_a_row", LAYOUT, "AttentionTile kNoTile{}", "AttentionTile kNoTile{0, 0, 1, 0, 0, 0}"),
    Mutant("a_spare_merge_has_a_token", LAYOUT, "MergeRow kNoMergeRow{-1, 0, 0}", "MergeRow kNoMergeRow{0, 0, 0}"),
    Mutant("a_merge_of_no_token_is_done", MERGE, "if (row.token < 0) return;", "", "checked"),
    # Tiles.
    Mutant("the_keys_of_the_first_row", TILES, "tile.kv_end = std::max(tile.kv_end, row.kv_end);", ""),
    Mutant(
        "a_tile_without_its_last_token",
        TILES,
        "(end - 1) / group_size - begin / group_size + 1",
        "(end - 1) / group_size - begin / group_size",
    ),
    Mutant("narrow_tiles_are_too_high", SHAPE, "constexpr int kNarrowRows = 16;", "constexpr int kNarrowRows = 32;"),
    Mutant(
        "medium_tiles_are_too_small",
        KERNEL,
        "num_rows <= Shapes::Medium::kRows",
        "num_rows <= 2 * Shapes::Medium::kRows",
    ),
    Mutant(
        "no_swizzle",
        SHAPE,
        "static constexpr int key(int row) { return kGroup == 8 ? row & 7 : row >> 1 & 3; }",
        "static constexpr int key(int) { return 0; }",
    ),
]

# No mistake: the same bits.
ALWAYS_SCALED = Mutant(
    "sums_are_scaled_by_1_where_no_maximum_moves", TILE, "if (__any_sync(", "if (true || __any_sync("
)

# A few for every test run: one of each kind.
QUICK = [
    mutant
    for mutant in MUTANTS
    if mutant.name
    in ("no_barrier_behind_the_wait", "no_wait", "rows_behind_the_last_are_read", "a_key_too_many", "no_swizzle")
]

# Those in row kernels are for the cases of test_row_kernels.cpp and test_norm_rotate_append.cpp.
ROW_MUTANTS = [
    Mutant("no_barrier_before_the_sums_of_warps", NORM, "    __syncthreads();\n", ""),
    Mutant("the_sum_of_half_a_warp", NORM, "int lanes = 16; lanes > 0", "int lanes = 8; lanes > 0"),
    Mutant(
        "squares_of_sums_that_are_not_rounded",
        NORM,
        "if (i * step < size) squares += sum_of_squares(held[i]);",
        """for (int64_t j = i * step; j < i * step + kVector && i * step < size; ++j) {
            const float sum = to_float(x[j]) + (delta == nullptr ? 0.0f : to_float(delta[j]));
            squares += sum * sum;
        }""",
    ),
    Mutant("all_lanes_write_the_sum_of_their_warp", NORM, "if (threadIdx.x % 32 == 0) of_warp", "of_warp", "checked"),
    Mutant("the_sum_without_the_last_warp", NORM, "warp < blockDim.x / 32", "warp + 1 < blockDim.x / 32"),
    Mutant("rows_behind_the_last", NORM, "if (index >= args.num_rows * p.num_heads) return;", ""),
    Mutant(
        "elements_behind_the_last", NORM, "if (i * step < size) held[i] =", "if (i * step <= size) held[i] =", "checked"
    ),
    Mutant("the_end_of_a_long_row_without_delta", NORM, "if (delta != nullptr) add(sum,", "if (false) add(sum,"),
    Mutant("the_end_of_a_long_row_does_not_count", NORM, "squares += sum_of_squares(total(at));", ";"),
    Mutant("x_does_not_become_the_sum", NORM, "if (delta != nullptr) store_vector(x + at, sum);", ""),
    Mutant("x_is_written_without_a_delta", NORM, "if (delta != nullptr) store_vector(x", "store_vector(x", "checked"),
    Mutant(
        "rounded_before_the_weight",
        NORM,
        "to_float(x.elements[i]) * scale * to_float",
        "to_float(from_float<T>(to_float(x.elements[i]) * scale)) * to_float",
    ),
    Mutant("no_epsilon", NORM, "static_cast<float>(p.size)) + p.eps", "static_cast<float>(p.size))"),
    # norm_rotate_append.
    Mutant("k_by_the_weight_of_q", LAYER, "is_q ? p.q_norm : p.k_norm", "p.q_norm"),
    Mutant("v_is_normed", LAYER, "if (is_there && !is_v) {", "if (is_there) {"),
    Mutant("v_is_turned", LAYER, "if (!is_v) {\n        rotate", "if (true) {\n        rotate"),
    Mutant("the_sum_of_half_a_head", LAYER, "sum_of_squares(first) + sum_of_squares(second)", "sum_of_squares(first)"),
    Mutant("the_sum_of_half_the_lanes", LAYER, "int lanes = kLanes / 2;", "int lanes = kLanes / 4;"),
    Mutant("the_sum_of_two_heads", LAYER, "int lanes = kLanes / 2;", "int lanes = kLanes;"),
    Mutant(
        "the_second_half_by_the_first_weight",
        LAYER,
        "load_vector<kVector>(weight + half)",
        "load_vector<kVector>(weight)",
    ),
    Mutant("k_stays_in_qkv", LAYER, "if (!is_q) {", "if (is_v) {"),
    Mutant("a_slot_below_zero_is_taken", LAYER, "p.slots[row] < 0 || ", ""),
    Mutant("a_slot_behind_the_last_is_taken", LAYER, " || p.slots[row] >= p.num_slots", ""),
    Mutant("v_into_the_pages_of_k", LAYER, "is_v ? p.v_pages : p.k_pages", "p.k_pages"),
    Mutant("the_head_of_v_counts_from_k", LAYER, "- (is_v ? p.num_kv_heads : 0)", ""),
    Mutant("rows_behind_the_last_have_heads", LAYER, "row < p.num_rows && i < half", "i < half"),
    Mutant("lanes_behind_the_last_have_pairs", LAYER, "row < p.num_rows && i < half", "row < p.num_rows"),
    # sample.
    Mutant("masks_are_passed_over", SAMPLE, "x[i] = bits >> i & 1 ? x[i] : -INFINITY;", ""),
    Mutant("the_mask_of_the_first_tokens_for_all", SAMPLE, "allowed_[at / 32]", "allowed_[0]"),
    Mutant("changed_logits_have_no_mask", SAMPLE, "ruled_sampler.allow(allowed);", ""),
    Mutant("elements_behind_the_row_s_end", SAMPLE, "if (at + kLaneElements <= size_) {", "if (at < size_) {"),
    Mutant("zeros_behind_the_row_s_end", SAMPLE, "to_float(row_[at + i]) : -INFINITY", "to_float(row_[at + i]) : 0.0f"),
    Mutant("a_sum_is_not_scaled_to_a_larger_logit", SAMPLE, "sum *= exp2_approx((largest - of_step) * kLog2E);", ""),
    Mutant("the_filters_count_only_the_first_step", SAMPLE, "sums[j] += of_step[j]", "sums[j] = of_step[j]"),
    Mutant("pivots_are_passed_by", SAMPLE, "x[i] >= pivots[j] ?", "x[i] > pivots[j] ?"),
    Mutant(
        "top_k_keeps_all_that_are_equal",
        SAMPLE,
        "return {value_of<T>(begin), k - above};",
        "return {value_of<T>(begin), kAllEqual};",
    ),
    Mutant("top_p_of_all_of_the_mass", SAMPLE, "double target = top_p * total;", "double target = top_p;"),
    Mutant("one_fewer_of_the_equal", SAMPLE, "static_cast<uint32_t>(ceilf(", "static_cast<uint32_t>(floorf("),
    Mutant("min_p_is_off", SAMPLE, "if (min_p > 0) begin", "if (min_p > 2) begin"),
    Mutant("tiles_share_the_equal_out_twice", SAMPLE, "before += in_tile;", ""),
    Mutant(
        "the_equal_of_a_tile_are_all_allowed",
        SAMPLE,
        "memory_.equal[tile] = allowed;",
        "memory_.equal[tile] = kAllEqual;",
    ),
    Mutant("a_later_step_allows_as_many_again", SAMPLE, "allowed = allowed > in_step ? allowed - in_step : 0;", ""),
    Mutant("a_step_leaves_the_rest_as_it_was", SAMPLE, "left -= __shfl_sync(kAllLanes, mass_up_to_here, 31);", ""),
    Mutant("a_token_without_weight", SAMPLE, "if (!(weights[i] > 0)) continue;", ""),
    Mutant("rounding_leaves_no_token", SAMPLE, "return found == kNoToken ? last : found;", "return found;"),
    Mutant(
        "the_log_probability_of_another_token", SAMPLE, "to_float(logits[token]) - lse", "to_float(logits[0]) - lse"
    ),
    Mutant("a_row_behind_the_ruled_ones", SAMPLE, "ruled >= 0 && ruled < p.num_ruled", "ruled >= 0"),
    Mutant("ruled_rows_are_passed_over", SAMPLE, "ruled >= 0 && ruled < p.num_ruled", "false"),
    Mutant(
        "masses_are_shared_out_before_all_are_there",
        SAMPLE,
        "__syncthreads();\n        if (warp_ == 0) keep_equal(cut);",
        "if (warp_ == 0) keep_equal(cut);",
        "checked",
    ),
    Mutant(
        "the_total_is_read_before_it_is_there",
        SAMPLE,
        "keep_equal(cut);\n        __syncthreads();",
        "keep_equal(cut);",
        "checked",
    ),
    Mutant("all_lanes_write_a_tile_s_largest", SAMPLE, "if (lane_ == 0) memory_.largest", "memory_.largest", "checked"),
]
QUICK_ROWS = [*ROW_MUTANTS[:3], *ROW_MUTANTS[-2:]]
