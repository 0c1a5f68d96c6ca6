"""Bugs that the planner, kernels, engine, sampler and jobs had or could have: each, when put back, turns its test
red."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    original: str  # stands in the file once
    mutated: str
    test: str  # that must fail: file::function, or the name of a doctest case
    unit: str = ""  # of a C++ file that is included, the source that is compiled with it

    def __str__(self) -> str:
        return self.name


PLANNER = "csrc/planner/batch_planner.cpp"
ADDED = "csrc/planner/batch_planner_job.cpp"
LEFT = "csrc/planner/batch_planner_end.cpp"
WRITTEN = "csrc/planner/batch_planner_spans.cpp"
PINNED = "csrc/planner/pinned_segments.cpp"
STORED = "csrc/planner/stored_segment.h"
BORROWING = "csrc/planner/borrowing.cpp"
ADMISSION = "csrc/planner/admission.h"
FORECAST = "csrc/planner/kv_forecast.h"
LENGTHS = "csrc/planner/length_estimator.h"
CHOICE = "csrc/planner/choose_segments.cpp"
SORT = "csrc/planner/lcp_sort.cpp"
ORDER = "csrc/planner/group_order.cpp"

EVERY_PROMISE = "every random job keeps every promise of the planner"
LARGEST_LIMITS = "limits up to the largest int32 are limits like others"
BEST_CHOICE = "choices are worth what the full table says, on tries too large for brute force"

PLANNER_MUTANTS = [
    # Admission and preemption.
    Mutant(
        "two_groups_pin_the_pool_between_them",
        ADMISSION,
        "const bool may = pinned_pages + largest <= pool_pages;",
        "const bool may = true;",
        EVERY_PROMISE,
        PLANNER,
    ),
    # Windows.
    Mutant(
        "a_window_is_dropped_a_token_early",
        STORED,
        "std::max(num_tokens - num_kept_, 0) / page_size_;",
        "std::max(num_tokens - num_kept_ + 1, 0) / page_size_;",
        EVERY_PROMISE,
        PLANNER,
    ),
    Mutant(
        "a_chunk_is_not_counted_beside_the_window",
        STORED,
        "page_size - 1 + max_batch_tokens);",
        "page_size - 1 + 1);",
        EVERY_PROMISE,
        ADDED,
    ),
    Mutant(
        "a_preempted_request_begins_where_its_window_began",
        PLANNER,
        "request.work->own.begin = request.own_begin;\n    request.work->own.num_stored = 0;",
        "request.work->own.num_stored = 0;",
        EVERY_PROMISE,
    ),
    Mutant(
        "what_has_dropped_tokens_is_borrowed_in_part",
        "csrc/planner/pinned_segments.h",
        "|| !window_.drops((*this)[source].num_tokens());",
        "|| true;",
        EVERY_PROMISE,
        PINNED,
    ),
    Mutant("a_preempted_request_stays_in_the_prefill_queue", PLANNER, "prefill_queue_.pop_back();", "", EVERY_PROMISE),
    Mutant(
        "the_last_token_takes_room_in_the_pool",
        ADDED,
        "max_output_tokens[request] - 1;",
        "max_output_tokens[request];",
        EVERY_PROMISE,
    ),
    Mutant(
        "what_fits_in_one_piece_keeps_its_chain",
        ADDED,
        "segments.detach(request);  // in one piece it rounds up to whole pages only once",
        "",
        EVERY_PROMISE,
    ),
    Mutant(
        "a_row_takes_the_token_of_its_own_place",
        "csrc/planner/token_batch.cpp",
        "~untold_logits[i]",
        "~untold_rows[i]",
        "rows for a device name the row that samples a token which is not told, and have nothing behind them",
    ),
    Mutant(
        "a_slot_is_counted_in_int32",
        WRITTEN,
        "int64_t{kv.pages[offset / page_size_]} * page_size_",
        "static_cast<int32_t>(uint32_t(kv.pages[offset / page_size_]) * uint32_t(page_size_))",
        LARGEST_LIMITS,
    ),
    # Arrivals.
    Mutant("a_source_goes_while_it_is_borrowed_from", PINNED, "++source.num_holders;", "", EVERY_PROMISE),
    Mutant(
        "borrowed_tokens_are_computed_ones",
        PLANNER,
        "if (shared_.can_borrow(s)) continue;",
        "",
        EVERY_PROMISE,
    ),
    Mutant(
        "sources_leave_a_chain_no_room",
        ADDED,
        "    forgo_sources_that_do_not_fit(first);\n",
        "",
        "a source that would leave a chain no room is not borrowed from",
    ),
    Mutant(
        "a_piece_of_a_source_follows_the_piece_before",
        BORROWING,
        "goes_on ? parent_[reached.segment.index] : reached.segment;",
        "reached.segment;",
        EVERY_PROMISE,
    ),
    Mutant(
        "what_is_borrowed_whole_is_another_segment_of_the_batch",
        WRITTEN,
        "segment = shared_.stored_as(segment);",
        "",
        "what is borrowed whole is read as its source",
    ),
    # Leaving.
    Mutant(
        "a_wave_keeps_its_prompts_while_one_before_it_runs",
        PLANNER,
        "if (--wave.num_unfinished == 0) wave.tokens_owner.reset();",
        "--wave.num_unfinished;",
        EVERY_PROMISE,
    ),
    Mutant("a_segment_keeps_prompts_that_nobody_reads", PINNED, "segment.tokens_owner.reset();", "", EVERY_PROMISE),
    Mutant("an_aborted_request_returns", PLANNER, "std::erase_if(preempted_, is_over);", "", EVERY_PROMISE),
    Mutant(
        "segments_are_computed_for_aborted_readers",
        PLANNER,
        "segment.is_shared() ? !shared_[segment.shared()].is_pinned : is_over(",
        "segment.is_own() && is_over(",
        EVERY_PROMISE,
    ),
    Mutant(
        "pages_of_a_request_that_moved_are_anothers",
        LEFT,
        "pages_.rename(request.work->own.pages, kept);",
        "",
        EVERY_PROMISE,
    ),
    Mutant(
        "the_next_in_order_is_one_that_moved",
        LEFT,
        "next_in_order_ = new_place[next_in_order_.index];",
        "",
        EVERY_PROMISE,
    ),
    Mutant(
        "a_source_is_forgotten_with_its_own_readers",
        LEFT,
        "if (shared_[s].num_holders > 0) new_segment[s.index] = kKept;",
        "",
        "a source outlives its own readers, forgotten or not, while it is borrowed from",
    ),
    # Tokens told late.
    Mutant(
        "a_row_takes_the_token_of_another_request",
        WRITTEN,
        "batch.untold_logits.push_back(work.untold);",
        "batch.untold_logits.push_back(0);",
        EVERY_PROMISE,
    ),
    Mutant(
        "a_request_that_stopped_is_told_of_one_more_token",
        PLANNER,
        "if (place != kNoPlace && is_over(place)) place = kNoPlace;",
        "",
        EVERY_PROMISE,
    ),
    Mutant(
        "who_was_aborted_is_told",
        PLANNER,
        "    untold_[request.work->untold] = kNoPlace;\n",
        "",
        EVERY_PROMISE,
    ),
    Mutant(
        "untold_tokens_stay_where_their_requests_were",
        LEFT,
        "for (auto* places : {&running_, &preempted_, &awaited_, &untold_}) {",
        "for (auto* places : {&running_, &preempted_, &awaited_}) {",
        EVERY_PROMISE,
    ),
    # Scores.
    Mutant(
        "a_scored_request_borrows",
        ADDED,
        "shared_[s].source = kNoSegment;\n            scored_readers_",
        "scored_readers_",
        EVERY_PROMISE,
    ),
    Mutant("a_score_before_the_wanted_ones", WRITTEN, "position + 1 < next || ", "", EVERY_PROMISE),
    Mutant(
        "what_can_never_start_is_waited_for",
        ADMISSION,
        "if (!may && is_idle_) {",
        "if (false) {",
        "where nothing runs and the next request does not fit, the planner says so with its numbers",
        "tests/planner/test_admission.cpp",
    ),
    # Lengths.
    Mutant(
        "a_request_counts_as_long_as_the_last_of_its_bin",
        FORECAST,
        "load.num_steps = std::max(load.num_steps, num_steps);",
        "load.num_steps = num_steps;",
        "the forecast is never below the true peak, and close to it",
        "tests/planner/test_kv_forecast.cpp",
    ),
    Mutant(
        "only_outputs_that_ended_teach",
        LENGTHS,
        "ended_[bin] / (reached_[bin] + 1.0)",
        "ended_[bin] / (num_ended_ + 1.0)",
        "the short ones, which finish first, do not mislead",
        "tests/planner/test_length_estimator.cpp",
    ),
    Mutant(
        "all_requests_stand_at_one_quantile",
        LENGTHS,
        "return kLeastQuantile + (1.0 - kLeastQuantile) * (turns - std::floor(turns));",
        "return 0.8;",
        "requests are expected to end together as the population does",
        "tests/planner/test_length_estimator.cpp",
    ),
    # Before a job.
    Mutant(
        "chains_where_a_single_level_is_worth_more",
        CHOICE,
        "chained.value() >= single.value() ? chained.segments() : single.segments();",
        "chained.segments();",
        BEST_CHOICE,
    ),
    Mutant(
        "readers_of_a_child_end_here_too",
        CHOICE,
        "open.back().num_leaves -= trie_.num_readers(node);",
        "",
        BEST_CHOICE,
    ),
    Mutant(
        "tokens_are_ordered_as_unsigned_numbers",
        SORT,
        "static_cast<uint32_t>(token) ^ 0x80000000u",
        "static_cast<uint32_t>(token)",
        "tokens are ordered as signed numbers, to both ends of their range",
    ),
    Mutant(
        "a_tree_arrives_with_its_last_request",
        ORDER,
        "first_request = std::min(first_request, child.first_request);",
        "first_request = child.first_request;",
        "order is its recursive definition",
    ),
]

QUANTIZE = "csrc/rows/row_quantize.inc"
BASE_ROWS = "csrc/rows/row_kernels_base.cpp"
AVX2_ROWS = "csrc/rows/row_kernels_avx2.cpp"

HALF_A_STEP = "a row in 8 bits stands for its numbers to half a 127th of the largest<float>"
LARGEST_MAGNITUDE = "the largest magnitude counts wherever it stands and whatever its sign"
SCALE_AND_BIAS = "products take their row's scale, then the bias, and are rounded once<float>"
NORM_IN_SCALE = "norm_quantize adds the products to x, and only the scale tells of the norm"
GATED_AND_MIXED = "silu_mul_quantize gates, and mixes its segments by an orthogonal Hadamard matrix"

ROW_MUTANTS = [
    Mutant(
        "the_largest_magnitude_is_the_largest_number",
        QUANTIZE,
        "(BitsVec)value & 0x7fffffff",
        "(BitsVec)value",
        LARGEST_MAGNITUDE,
        BASE_ROWS,
    ),
    Mutant(
        "half_of_a_step_has_no_magnitude",
        QUANTIZE,
        "max_magnitude(max_magnitude(largest_, pair.a), pair.b)",
        "max_magnitude(largest_, pair.a)",
        LARGEST_MAGNITUDE,
        BASE_ROWS,
    ),
    Mutant(
        "a_lane_has_no_magnitude",
        QUANTIZE,
        "for (int lane = 0; lane < kLanes; ++lane) bits",
        "for (int lane = 1; lane < kLanes; ++lane) bits",
        LARGEST_MAGNITUDE,
        BASE_ROWS,
    ),
    Mutant(
        "zeros_are_divided_by_zero",
        QUANTIZE,
        "value < kSmallest ? kSmallest : value",
        "value",
        "rows of zeros, of the smallest and of the largest numbers",
        BASE_ROWS,
    ),
    Mutant(
        "a_nan_is_passed_over",
        QUANTIZE,
        "return magnitude > largest ? magnitude : largest;",
        "return (magnitude > largest) & (value == value) ? magnitude : largest;",
        "NaN and infinity are told by the row's scale, wherever they stand",
        BASE_ROWS,
    ),
    Mutant(
        "bytes_are_cut_off_instead_of_rounded",
        QUANTIZE,
        "(BitsVec)(value + splat(12582912.0f)) + 128",
        "__builtin_convertvector(value, IntVec) + 128",
        "halves go to the even number",
        BASE_ROWS,
    ),
    Mutant(
        "the_last_vector_is_written_whole",
        QUANTIZE,
        "__builtin_memcpy(out + i, &bytes, min<int64_t>(kLanes, size - i));",
        "__builtin_memcpy(out + i, &bytes, kLanes);",
        HALF_A_STEP,
        BASE_ROWS,
    ),
    Mutant(
        "a_scale_counts_from_128",
        QUANTIZE,
        "return magnitude.largest() / kInt8Max;",
        "return magnitude.largest() / 128.0f;",
        HALF_A_STEP,
        BASE_ROWS,
    ),
    Mutant(
        "avx2_leaves_its_bytes_as_they_were_packed",
        QUANTIZE,
        "_mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)",
        "_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)",
        HALF_A_STEP,
        AVX2_ROWS,
    ),
    Mutant(
        "avx2_packs_a_vector_too_many",
        QUANTIZE,
        "for (; i + 4 * kLanes <= size; i += 4 * kLanes) {",
        "for (; i + 3 * kLanes <= size; i += 4 * kLanes) {",
        HALF_A_STEP,
        AVX2_ROWS,
    ),
    Mutant(
        "products_lose_their_bias",
        QUANTIZE,
        "return bias_ == nullptr ? value : value + load_pair(bias_ + i, part);",
        "return value;",
        SCALE_AND_BIAS,
        BASE_ROWS,
    ),
    Mutant(
        "products_take_the_first_rows_scale",
        QUANTIZE,
        "scale_(splat(rows.scales[row]))",
        "scale_(splat(rows.scales[0]))",
        SCALE_AND_BIAS,
        BASE_ROWS,
    ),
    Mutant("a_sum_is_not_kept", QUANTIZE, "store_pair(x + i, sum, part);", "", NORM_IN_SCALE, BASE_ROWS),
    Mutant("a_norm_forgets_eps", QUANTIZE, "(mean + p.eps)", "(mean)", NORM_IN_SCALE, BASE_ROWS),
    Mutant(
        "up_takes_the_bias_of_the_gate",
        QUANTIZE,
        "if (ups.bias != nullptr) ups.bias += p.size;",
        "",
        GATED_AND_MIXED,
        BASE_ROWS,
    ),
    Mutant("a_narrow_segment_only_adds", QUANTIZE, "y[i] = a - b;", "y[i] = a + b;", GATED_AND_MIXED, BASE_ROWS),
    Mutant(
        "a_transform_is_not_orthogonal",
        QUANTIZE,
        "scale / __builtin_sqrtf(static_cast<float>(num_segments))",
        "scale",
        GATED_AND_MIXED,
        BASE_ROWS,
    ),
]

TABLE = "batchllm/request_table.py"
ENGINE = "batchllm/engine/engine.py"
LLM = "batchllm/llm.py"
ASYNC = "batchllm/async_llm.py"
DRIVER = "batchllm/driver.py"
ANSWERS = "batchllm/answers.py"
DRAW = "batchllm/sampling/draw.py"
SAMPLER = "batchllm/sampling/sampler.py"
TEXT = "batchllm/sampling/growing_text.py"
STRINGS = "batchllm/sampling/stop_strings.py"
PENALTIES = "batchllm/sampling/penalties.py"
BAD_WORDS = "batchllm/sampling/bad_words.py"
BATCH = "batchllm/jobs/openai_batch.py"
BATCH_PARAMS = "batchllm/jobs/openai_params.py"
BATCH_PROMPTS = "batchllm/jobs/openai_prompts.py"
BATCH_TOOLS = "batchllm/jobs/openai_tools.py"
FILES = "batchllm/jobs/files.py"
ANSWERING = "batchllm/jobs/answering.py"
TEMPLATE = "batchllm/jobs/row_template.py"
READER = "batchllm/engine/logits_reader.py"
INPUTS = "batchllm/jobs/inputs.py"
LINE = "batchllm/jobs/line.py"
EARLIER = "batchllm/jobs/earlier.py"
RUN = "batchllm/jobs/run.py"
RECORDER = "batchllm/engine/recorder.py"

IN_ENGINE = "tests/engine/test_engine.py::"
IN_GENERATE = "tests/engine/test_generate.py::"
IN_GRAMMARS = "tests/engine/test_structured_outputs.py::"
IN_SAMPLING = "tests/engine/test_sampling.py::"
IN_STOPPING = "tests/engine/test_stopping.py::"
IN_RULES = "tests/engine/test_logits_rules.py::"
IN_LOGPROBS = "tests/engine/test_logprobs.py::"
IN_SCORING = "tests/engine/test_scoring.py::"
IN_MEMORY = "tests/integrations/test_transformers.py::"
IN_REASONING = "tests/engine/test_reasoning.py::"
IN_OPENAI = "tests/jobs/test_openai_answers.py::"
IN_INTERRUPTS = "tests/engine/test_interrupts.py::"
IN_ASYNC = "tests/engine/test_async_llm.py::"
IN_FILES = "tests/jobs/test_files.py::"
IN_BATCH = "tests/jobs/test_openai_batch.py::"
IN_TOOL_CALLS = "tests/jobs/test_openai_grammars.py::"
IN_TABLES = "tests/jobs/test_tables.py::"
IN_PARCELS = "tests/jobs/test_parcels.py::"
IN_RUNNER = "tests/jobs/test_runner.py::"
IN_WINDOWS = "tests/engine/test_windows.py::"
IN_RESUME = "tests/jobs/test_resume.py::"
IN_RECORDER = "tests/engine/test_recorder.py::"
IN_HTML = "tests/jobs/test_html.py::"
IN_TRANSFORMERS = "tests/engine/test_transformers.py::"
IN_AHEAD = "tests/engine/test_running_ahead.py::"

NARROW = "csrc/attention/cpu/narrow.inc"
WIDE_FLOAT32 = "csrc/attention/cpu/wide_float32.inc"
BASE_ATTENTION = "csrc/attention/cpu/kernel_base.cpp"
PLAN = "csrc/attention/plan/attention_plan.cpp"
ROWS_DRAFT = "csrc/attention/plan/draft_of_rows.cpp"
SOME_ROWS = "of some rows a plan does the work that it does of them among all, on the same keys"
COUNTS_OF_SOME_ROWS = "a plan for some rows counts what they read alone, and what they share"
ATTENTION = "attention on the CPU is what the reference says"

ATTENTION_MUTANTS = [
    Mutant(
        "every_head_has_the_first_ones_keys",
        NARROW,
        "load(tile.k[key + j] + offset + d)",
        "load(tile.k[key + j] + d)",
        ATTENTION,
        BASE_ATTENTION,
    ),
    Mutant(
        "every_head_has_the_first_ones_values",
        NARROW,
        "load(tile.v[key] + offset + d + n * kLanes)",
        "load(tile.v[key] + d + n * kLanes)",
        ATTENTION,
        BASE_ATTENTION,
    ),
    Mutant(
        "a_heads_rows_see_what_other_rows_see",
        NARROW,
        "(index + i) / args.group_size",
        "(row + i) / args.group_size",
        ATTENTION,
        BASE_ATTENTION,
    ),
    Mutant(
        "every_register_tile_has_the_first_columns",
        WIDE_FLOAT32,
        "return v[key][d + i];",
        "return v[key][i];",
        ATTENTION,
        BASE_ATTENTION,
    ),
    Mutant(
        "a_row_that_is_kept_reads_what_the_next_one_reads",
        ROWS_DRAFT,
        "draft.rows.push_back({token, row.kv_begin,",
        "draft.rows.push_back({token, row.kv_begin + 1,",
        SOME_ROWS,
    ),
    Mutant(
        "rows_that_are_left_out_are_read_for",
        ROWS_DRAFT,
        "if (tile.row_end - tile.row_begin < 2) continue;",
        "",
        COUNTS_OF_SOME_ROWS,
    ),
    Mutant(
        "a_plan_for_some_rows_is_for_one_thread",
        ROWS_DRAFT,
        "choose_cpu_splits(draft, cost, plan.num_threads());",
        "choose_cpu_splits(draft, cost, 1);",
        "what some rows read is divided among all threads of the plan",
    ),
    Mutant(
        "a_plan_for_some_rows_has_the_rows_of_all",
        PLAN,
        "batch_(std::make_shared<const BatchCopy>(all.batch_, rows)),",
        "batch_(all.batch_),",
        SOME_ROWS,
    ),
]

PYTHON_MUTANTS = [
    # Request table.
    Mutant(
        "a_slot_remembers_who_was_there",
        TABLE,
        "            column.values[slots] = column.fill\n",
        "            pass\n",
        IN_ENGINE + "test_a_request_table_finds_requests_wherever_ids_and_slots_have_come_to",
    ),
    Mutant(
        "a_slot_is_given_twice",
        TABLE,
        "list(reversed(range(capacity, 2 * capacity)))",
        "list(reversed(range(2 * capacity)))",
        IN_ENGINE + "test_a_request_table_finds_requests_wherever_ids_and_slots_have_come_to",
    ),
    Mutant(
        "ids_that_have_gone_keep_their_place",
        TABLE,
        "first = int(known[0]) if len(known) else self._end - self._base",
        "first = 0",
        IN_ENGINE + "test_waves_that_overlap_leave_nothing_behind",
    ),
    Mutant(
        "ids_are_looked_for_where_they_were",
        TABLE,
        "        self._base += first\n",
        "",
        IN_ENGINE + "test_a_request_table_finds_requests_wherever_ids_and_slots_have_come_to",
    ),
    # Engine.
    Mutant(
        "a_failed_step_leaves_its_requests",
        ENGINE,
        "            return self._step()\n        except BaseException:\n            self._reset()\n",
        "            return self._step()\n        except BaseException:\n",
        IN_ENGINE + "test_an_interrupted_step_leaves_an_empty_engine",
    ),
    Mutant(
        "requests_beside_a_refused_one_stay",
        ENGINE,
        "self._abort(np.arange(first, self._next_id, dtype=np.int32))",
        "pass",
        IN_ENGINE + "test_a_request_that_a_rule_refuses_is_named_and_none_is_added",
    ),
    Mutant(
        "rules_are_not_told_who_has_gone",
        "batchllm/sampling/rule_book.py",
        "                self._rules[place].forget(request)\n",
        "                pass\n",
        IN_ENGINE + "test_a_rule_is_told_of_every_request_when_it_comes_and_when_it_goes",
    ),
    Mutant(
        "the_planner_keeps_what_finished",
        ENGINE,
        "        self._planner.forget(request_ids)\n",
        "",
        IN_ENGINE + "test_waves_that_overlap_leave_nothing_behind",
    ),
    Mutant(
        "the_last_rule_says_why_a_request_ends",
        ENGINE,
        "if not stopped[row]:",
        "if True:",
        IN_ENGINE + "test_a_users_rule_bans_tokens_and_ends_requests_with_its_own_reason",
    ),
    Mutant(
        "logits_need_not_be_finite",
        ENGINE,
        "if not np.isfinite(logprobs).all():",
        "if False:",
        IN_GENERATE + "test_a_job_stops_at_the_first_step_whose_logits_are_not_finite",
    ),
    Mutant(
        "tokens_of_a_request_that_stopped_remain_to_be_generated",
        ENGINE,
        "self._remaining_tokens -= int(unused.sum())",
        "pass",
        IN_GENERATE + "test_progress_grows_to_the_whole_job",
    ),
    Mutant(
        "readers_of_a_scored_row_have_one_next_token",
        "batchllm/sampling/logprobs.py",
        "np.concatenate(token_ids, dtype=np.int64)",
        "np.concatenate([np.full_like(ids, ids[0]) for ids in token_ids], dtype=np.int64)",
        IN_LOGPROBS + "test_logprobs_are_transformers",
    ),
    Mutant(
        "a_length_is_known_in_spite_of_stop_strings",
        "batchllm/sampling_params.py",
        "(self.stop_token_ids or self.stop_strings or self.structured_outputs)",
        "(self.stop_token_ids or self.structured_outputs)",
        "tests/engine/test_sampling_params.py::test_a_length_is_known_only_where_nothing_can_end_a_request_early",
    ),
    # A GPU that runs ahead of the host.
    Mutant(
        "a_row_takes_a_token_of_an_earlier_step",
        "batchllm/engine/runner.py",
        "self._draw = Draw.into(self._drawn[:num_ints])",
        "self._draw = Draw.of(num_rows, self.gpu.device)",
        IN_AHEAD + "test_answers_and_why_they_end_are_those_of_the_cpu",
    ),
    Mutant(
        "tokens_are_read_before_they_have_come",
        "batchllm/device/transfer.py",
        "            copied.synchronize()\n            result",
        "            result",
        IN_AHEAD + "test_answers_and_why_they_end_are_those_of_the_cpu",
    ),
    Mutant(
        "a_request_that_stopped_is_looked_at_again",
        ENGINE,
        "            self._in_flight.forget(slots)\n",
        "            pass\n",
        IN_AHEAD + "test_whatever_comes_and_goes_each_answer_is_what_its_request_gets_from_the_cpu",
    ),
    Mutant(
        "a_rule_draws_before_it_has_seen_the_last_token",
        ENGINE,
        "return any(mask is not None and mask.any() for mask in concerned)",
        "return False",
        IN_AHEAD + "test_a_rule_that_must_see_tokens_before_the_next_draw_does",
    ),
    Mutant(
        "tokens_are_waited_for_before_the_next_step",
        ENGINE,
        "        if self.runner.new_event is None:\n            return True\n",
        "        return True\n",
        IN_AHEAD + "test_a_step_is_handed_over_before_the_tokens_of_the_last_one_are_waited_for",
    ),
    Mutant(
        "waiting_for_the_device_is_sampling",
        ENGINE,
        'with clock("sample" if self.runner.new_event is None else "wait"):',
        'with clock("sample"):',
        IN_AHEAD + "test_seconds_are_the_devices_and_waiting_is_not_sampling",
    ),
    Mutant(
        "a_graph_has_more_logit_rows_than_rows",
        "batchllm/engine/graphs.py",
        "min(logit_row_bucket(num_logit_rows), rows)",
        "logit_row_bucket(num_logit_rows)",
        "tests/engine/test_runner.py::test_a_bucket_has_room_for_its_rows_and_no_more_logit_rows_than_rows",
    ),
    Mutant(
        "every_bucket_is_captured_at_once",
        "batchllm/engine/graphs.py",
        "        if steps.num_met <= CAPTURED_AFTER:\n            return None\n",
        "",
        "tests/engine/test_runner.py::test_a_job_captures_few_graphs",
    ),
    # Sampler and rules.
    Mutant(
        "one_seed_for_all_prompts_is_one_noise",
        DRAW,
        '    hashed.update(np.asarray(prompt_token_ids, "<i4").tobytes())\n',
        "",
        IN_GENERATE + "test_one_seed_for_many_prompts_is_not_one_noise",
    ),
    Mutant(
        "all_tokens_of_a_request_are_drawn_by_one_number",
        DRAW,
        "(positions.astype(np.uint64) + np.uint64(1)) * ",
        "",
        IN_SAMPLING + "test_draws_follow_the_exact_distribution",
    ),
    Mutant(
        "logprobs_are_those_after_the_ban",
        SAMPLER,
        "ops.sample(logits, params, changed, allowed, out=out)",
        "logits = logits.float().index_copy(0, there, changed[0]) if changed else logits\n"
        "        ops.sample(logits, params, None, allowed, out=out)",
        IN_SAMPLING + "test_logprobs_are_those_of_the_model_before_rules",
    ),
    Mutant(
        "draws_pass_the_rules_over",
        SAMPLER,
        "ops.sample(logits, params, changed, allowed, out=out)",
        "ops.sample(logits, params, None, allowed, out=out)",
        IN_SAMPLING + "test_no_token_ends_a_request_before_min_tokens",
    ),
    Mutant(
        "every_row_has_the_first_of_the_ruled_logits",
        SAMPLER,
        "places[some] = np.arange(len(some))",
        "places[some] = 0",
        IN_SAMPLING + "test_rules_that_concern_different_rows_each_change_their_own",
    ),
    Mutant(
        "what_a_rule_does_to_some_rows_is_lost",
        SAMPLER,
        "            logits[places] = part\n",
        "",
        IN_SAMPLING + "test_rules_that_concern_different_rows_each_change_their_own",
    ),
    Mutant(
        "control_characters_in_bounded_strings",
        "batchllm/sampling/compile_grammar.py",
        r"""grammars.from_ebnf(rules.replace(r"[^\"\\\r\n]", r"[^\"\\\0-\x1f]"))""",
        "grammars.from_ebnf(rules)",
        IN_GRAMMARS + "test_answers_validate_against_their_schema",
    ),
    Mutant(
        "special_tokens_are_text",
        "batchllm/sampling/compile_grammar.py",
        " and token not in special",
        "",
        IN_GRAMMARS + "test_a_special_token_is_no_text_of_a_string",
    ),
    Mutant(
        "a_complete_grammar_without_stop_tokens_goes_on",
        "batchllm/sampling/grammar.py",
        "terminate_without_stop_token=not stops",
        "terminate_without_stop_token=False",
        IN_GRAMMARS + "test_answers_match_regex_choice_and_grammar",
    ),
    Mutant(
        "stop_tokens_of_one_request_end_all",
        "batchllm/sampling/stop_tokens.py",
        "            if token in self.token_ids(request):\n",
        "            if True:\n",
        IN_SAMPLING + "test_stop_sets_end_only_their_own_requests",
    ),
    Mutant(
        "a_stop_set_goes_with_the_first_request_that_had_it",
        "batchllm/sampling/stop_tokens.py",
        "if stop_set.num_requests == 0:",
        "if True:",
        IN_SAMPLING + "test_a_stop_set_goes_with_the_last_request_that_has_it",
    ),
    Mutant(
        "small_penalties_are_rounded_away",
        SAMPLER,
        "logits.index_select(0, there).float()",
        "logits.index_select(0, there)",
        IN_RULES + "test_small_penalties_of_large_logits_are_not_rounded_away",
    ),
    Mutant(
        "min_p_is_passed_over",
        SAMPLER,
        "self._min_p.values[request.slot] = params.min_p",
        "pass",
        IN_SAMPLING + "test_draws_follow_the_exact_distribution",
    ),
    Mutant(
        "a_token_of_the_prompt_is_not_repeated",
        PENALTIES,
        "torch.cat([prompt_tokens, in_output[1]])",
        "torch.cat([prompt_tokens.clamp(max=0), in_output[1]])",
        IN_RULES + "test_rules_make_of_logits_what_transformers_processors_make",
    ),
    Mutant(
        "frequency_is_presence",
        PENALTIES,
        "frequency * counts + presence",
        "frequency + presence",
        IN_RULES + "test_rules_make_of_logits_what_transformers_processors_make",
    ),
    Mutant(
        "each_time_that_a_token_comes_it_is_a_new_one",
        "batchllm/sampling/token_counts.py",
        "np.where(is_known, is_token.argmax(axis=1), sizes)",
        "sizes",
        IN_RULES + "test_rules_make_of_logits_what_transformers_processors_make",
    ),
    Mutant(
        "a_bias_is_added_to_the_neighbour",
        "batchllm/sampling/logit_bias.py",
        "np.array(list(logit_bias), np.int64)",
        "np.array(sorted(logit_bias), np.int64)",
        IN_RULES + "test_rules_make_of_logits_what_transformers_processors_make",
    ),
    Mutant(
        "a_request_ends_though_it_drew_an_allowed_token",
        "batchllm/sampling/allowed_tokens.py",
        "if tokens[row] not in self._allowed(rows[row])",
        "if tokens[row] != self._allowed(rows[row])[0]",
        IN_GENERATE + "test_a_request_that_is_left_with_no_token_ends_alone_with_an_error",
    ),
    Mutant(
        "whoever_is_left_with_no_token_goes_on",
        BAD_WORDS,
        "                ends.append((row, NO_TOKEN_LEFT))\n",
        "                pass\n",
        IN_GENERATE + "test_a_request_that_is_left_with_no_token_ends_alone_with_an_error",
    ),
    Mutant(
        "bad_words_are_looked_for_in_the_last_token_only",
        BAD_WORDS,
        "if output[-len(before) :] == before",
        "if output[-1:] == before[-1:]",
        IN_RULES + "test_rules_make_of_logits_what_transformers_processors_make",
    ),
    Mutant(
        "a_bad_word_may_follow_a_space",
        BAD_WORDS,
        "return [bare, spaced] if is_another_word else [bare]",
        "return [bare]",
        IN_RULES + "test_rules_make_of_logits_what_transformers_processors_make",
    ),
    Mutant(
        "what_rules_prepare_outlives_its_requests",
        "batchllm/sampling/prepared.py",
        "            users.discard(request.id)\n",
        "",
        IN_RULES + "test_what_rules_prepare_is_shared_by_the_completions_of_a_prompt_and_goes_with_the_last",
    ),
    Mutant(
        "logprobs_are_those_of_the_row_before",
        "batchllm/engine/logits_reader.py",
        "(there,) = to_device([asking], logits.device)",
        "(there,) = to_device([asking - 1], logits.device)",
        IN_LOGPROBS + "test_logprobs_are_transformers",
    ),
    Mutant(
        "tokens_are_drawn_from_the_rows_that_are_scored",
        READER,
        "hidden = hidden[_places(batch.logit_rows, batch, hidden.device)]",
        "hidden = hidden[: len(rows)]",
        IN_LOGPROBS + "test_logprobs_are_transformers",
    ),
    Mutant(
        "a_row_scores_its_own_token",
        READER,
        "batch.positions[rows] + 1, readers",
        "batch.positions[rows], readers",
        IN_SCORING + "test_scores_are_transformers",
    ),
    Mutant(
        "rows_after_the_first_256_have_the_readers_of_the_first",
        READER,
        "for i in range(begin, begin + len(rows))]",
        "for i in range(len(rows))]",
        IN_SCORING + "test_more_rows_are_scored_than_logits_are_made_of_at_once",
    ),
    Mutant(
        "equal_tokens_are_all_greedy",
        "batchllm/sampling/logprobs.py",
        "1 + num_likelier + is_second",
        "1 + num_likelier",
        IN_SCORING + "test_of_equal_tokens_the_first_is_greedy",
    ),
    Mutant(
        "a_scored_text_is_no_longer_than_another",
        "batchllm/requests.py",
        "prompt_len + is_scoring(params)",
        "prompt_len",
        IN_SCORING + "test_a_text_may_be_one_token_longer_than_what_the_model_takes",
    ),
    Mutant(
        "another_token_is_told_than_was_sampled",
        "batchllm/sampling/logprobs.py",
        "columns = torch.cat([tokens, columns])",
        "columns = torch.cat([tokens.clamp(max=0), columns])",
        IN_LOGPROBS + "test_logprobs_are_transformers",
    ),
    Mutant(
        "a_token_shows_no_space_before_it",
        "batchllm/tokenizer.py",
        "two[len(one) :] if two.startswith(one) else one",
        "one",
        IN_LOGPROBS + "test_the_texts_of_tokens_are_what_they_add_to_a_text",
    ),
    Mutant(
        "what_a_prompt_began_is_no_reasoning",
        ANSWERS,
        "tags, is_open=self._ends_in_reasoning(tags))",
        "tags, is_open=False)",
        IN_REASONING + "test_what_a_template_began_goes_on_in_the_text",
    ),
    Mutant(
        "reasoning_that_was_cut_is_the_answer",
        "batchllm/reasoning.py",
        "return reasoning, answer or None",
        "return (reasoning, answer) if answer else (None, reasoning)",
        IN_REASONING + "test_reasoning_is_what_stands_between_the_tags",
    ),
    Mutant(
        "a_text_is_decoded_without_its_prompts",
        TEXT,
        "    context, text = context_of(decode, prompt)\n",
        '    context, text = [], ""\n',
        IN_STOPPING + "test_prompt_and_text_are_the_decoded_whole",
    ),
    Mutant(
        "stop_strings_are_looked_for_without_the_prompts_text",
        STRINGS,
        "request.prompt_token_ids.tolist()",
        "[]",
        IN_STOPPING + "test_a_stop_string_with_a_leading_space_is_found_at_the_first_token",
    ),
    Mutant(
        "a_stop_string_is_looked_for_in_the_last_token_only",
        STRINGS,
        "max(0, changed_at - len(stop) + 1)",
        "changed_at",
        IN_STOPPING + "test_a_stop_string_split_over_tokens_stops_at_the_last_of_them",
    ),
    Mutant(
        "a_special_token_that_is_not_shown_stops_nothing",
        STRINGS,
        "if may_stop and special is not None and special in params.stop_strings:",
        "if False:",
        IN_STOPPING + "test_a_special_token_given_as_a_stop_string_stops_be_it_shown_or_not",
    ),
    Mutant(
        "a_text_outlives_its_request",
        STRINGS,
        "self._texts.pop(request.id, None)",
        "pass",
        IN_STOPPING + "test_a_text_goes_with_its_request",
    ),
    # Answers.
    Mutant(
        "completions_stand_as_they_end",
        ANSWERS,
        "outputs if len(outputs) == 1 else sorted(outputs, key=lambda output: output.index)",
        "outputs",
        IN_GENERATE + "test_completions_stand_in_order_whichever_ends_first",
    ),
    Mutant(
        "an_answer_does_not_say_that_the_model_cut_it",
        ANSWERS,
        "stop_reason = MODEL_LENGTH",
        "pass",
        IN_GENERATE + "test_without_max_tokens_a_request_fills_the_model",
    ),
    Mutant(
        "only_the_last_completion_computed_the_prompt",
        ANSWERS,
        "self._num_computed += len",
        "self._num_computed = len",
        IN_GENERATE + "test_completions_share_all_of_the_prompt_but_its_last_token",
    ),
    Mutant(
        "asking_again_gives_the_same_samples",
        LLM,
        '{self.options.seed}/{self._num_jobs}"',
        '{self.options.seed}"',
        IN_GENERATE + "test_asking_again_gives_other_samples_unless_a_seed_is_named",
    ),
    Mutant(
        "an_abandoned_job_runs_on",
        DRIVER,
        "        self._engine.abort([i for i in live",
        "        ([i for i in live",
        IN_ENGINE + "test_an_exception_in_a_callback_leaves_the_next_job_a_clean_engine",
    ),
    # Scoring.
    Mutant(
        "all_last_tokens_are_the_first_ones",
        "batchllm/scoring.py",
        "[self._continuations[place].token_ids[-1] for place in members]",
        "[first.token_ids[-1]]",
        IN_SCORING + "test_choices_of_one_token_are_one_request_without_anything_decoded",
    ),
    Mutant(
        "each_choice_is_a_request",
        "batchllm/scoring.py",
        "token_ids[:-1], np.int32).tobytes(), continuation.begin)",
        "token_ids, np.int32).tobytes(), continuation.begin)",
        IN_SCORING + "test_choices_of_one_token_are_one_request_without_anything_decoded",
    ),
    Mutant(
        "scores_of_a_part_of_the_prompt_stand_from_its_begin",
        "batchllm/sampling/logprobs.py",
        "int(positions[row]) - len(request.prompt_token_ids)",
        "int(positions[row]) - 1",
        IN_SCORING + "test_scores_are_transformers",
    ),
    Mutant(
        "a_token_that_joins_prompt_and_continuation_is_the_prompts",
        "batchllm/continuations.py",
        "begin = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))",
        "begin = sum(1 for _ in pairs)",
        IN_SCORING + "test_a_tokenizer_may_join_the_prompts_end_with_what_follows",
    ),
    Mutant(
        "the_drawn_token_is_the_scored_one",
        "batchllm/jobs/openai_logprobs.py",
        "scored.append(list(completion.logprobs[0].items())[-1])",
        "scored.append(list(completion.logprobs[0].items())[0])",
        "tests/jobs/test_scores.py::test_scores_are_those_of_llm_score",
    ),
    Mutant(
        "a_line_that_is_scored_may_ask_for_draws",
        BATCH_PARAMS,
        " if kind.draws else frozenset()\n",
        "\n",
        "tests/jobs/test_scores.py::test_what_cannot_be_scored_is_refused_by_place",
    ),
    # Many callers.
    Mutant(
        "whoever_stops_listening_is_answered_on",
        ASYNC,
        "self._loop.mail.send(partial(_abort, caller))\n",
        "pass\n",
        IN_ASYNC + "test_whoever_stops_listening_aborts_the_request",
    ),
    Mutant(
        "whoever_left_while_the_engine_was_busy_is_added",
        ASYNC,
        "self._add([caller for caller in new if not caller.left])",
        "self._add(new)",
        IN_ASYNC + "test_whoever_left_before_the_engine_looked_is_never_added",
    ),
    Mutant(
        "all_who_came_together_are_refused_with_one",
        ASYNC,
        "            for caller in callers:  # the others are not to blame\n                self._add([caller])\n",
        "            for caller in callers:\n                caller.tell([error])\n",
        IN_ASYNC + "test_what_the_engine_refuses_is_that_callers_alone",
    ),
    Mutant(
        "a_request_id_is_taken_for_ever",
        ASYNC,
        "            self._used_ids.discard(name)\n",
        "",
        IN_ASYNC + "test_what_is_refused_is_that_callers_alone",
    ),
    Mutant(
        "an_event_loop_that_is_closed_ends_the_engines_thread",
        ASYNC,
        "with suppress(RuntimeError):",
        "with suppress():",
        IN_ASYNC + "test_a_caller_whose_event_loop_is_closed_is_told_nothing",
    ),
    Mutant(
        "an_abort_that_fails_is_told_to_nobody",
        ASYNC,
        "        try:\n            for item in items:\n                if not isinstance(item, Caller):\n"
        "                    item(self)\n",
        "        for item in items:\n            if not isinstance(item, Caller):\n"
        "                item(self)\n        try:\n",
        IN_ASYNC + "test_an_abort_that_fails_is_told_to_all_and_the_engine_goes_on",
    ),
    # Ctrl-C.
    Mutant(
        "an_interrupted_add_leaves_what_the_table_does_not_know",
        ENGINE,
        "know different requests\n                self._reset()\n",
        "know different requests\n                pass\n",
        IN_INTERRUPTS + "test_an_interrupted_job_leaves_the_next_one_a_clean_engine",
    ),
    # Jobs.
    Mutant(
        "a_call_that_is_to_be_alone_may_have_others",
        BATCH_TOOLS,
        'schema["maxItems"] = 1',
        'schema["maxItems"] = 2',
        IN_TOOL_CALLS + "test_a_required_call_is_bound_to_a_list_of_calls_of_the_tools",
    ),
    Mutant(
        "an_echo_alone_goes_on",
        BATCH_PARAMS,
        "AnswerForm(echo=True, generates=False)",
        "AnswerForm(echo=True)",
        "tests/jobs/test_openai_answers.py::test_an_echo_is_the_prompt_before_its_completion",
    ),
    Mutant(
        "a_chats_flag_is_a_number",
        BATCH_PARAMS,
        "return count if is_asked_for else None",
        "return count + 1 if is_asked_for else None",
        IN_BATCH + "test_a_chat_asks_for_logprobs_by_a_flag_and_a_number",
    ),
    Mutant(
        "an_answer_goes_on_with_a_turn_that_is_closed",
        BATCH_PROMPTS,
        'return asked_for if opens else asked_for | {"add_generation_prompt": False}',
        "return asked_for",
        IN_BATCH + "test_tools_and_the_last_turn_go_to_the_chat_template",
    ),
    Mutant(
        "an_unlikely_sampled_token_is_among_the_likeliest",
        "batchllm/jobs/openai_logprobs.py",
        "for item in entry.items() if item[0] in likeliest or item[0] in named",
        "for item in entry.items()",
        IN_OPENAI + "test_a_chats_likeliest_tokens_are_without_the_sampled_one_where_it_is_not_likely",
    ),
    Mutant(
        "old_answers_go_before_there_is_a_new_one",
        RUN,
        "        results = answers(llm, prompts, on_step, recorder)\n",
        "        job.begin(sink, errors)\n        results = answers(llm, prompts, on_step, recorder)\n",
        IN_RUNNER + "test_old_answers_stay_until_there_is_a_new_one",
    ),
    Mutant(
        "an_output_is_emptied_when_it_is_opened",
        FILES,
        "os.O_CREAT | os.O_APPEND",
        "os.O_CREAT | os.O_TRUNC | os.O_APPEND",
        IN_FILES + "test_a_file_that_holds_something_is_refused_unless_it_may_be_replaced",
    ),
    Mutant(
        "an_interrupted_write_leaves_half_a_line",
        FILES,
        "        except BaseException as error:\n            if self._is_regular:\n                os.ftruncate",
        "        except OSError as error:\n            if self._is_regular:\n                os.ftruncate",
        IN_FILES + "test_an_interrupted_write_leaves_whole_records",
    ),
    Mutant(
        "an_output_that_is_gone_is_a_success",
        FILES,
        "                self._check_unharmed()\n",
        "                pass\n",
        IN_FILES + "test_what_was_written_is_what_is_there_or_an_error",
    ),
    Mutant(
        "a_file_is_its_name",
        FILES,
        'return (status.st_dev, status.st_ino, "") if is_file_or_pipe else None',
        "return (0, 0, str(path)) if is_file_or_pipe else None",
        IN_FILES + "test_no_output_is_the_input_or_another_output_by_any_name",
    ),
    Mutant(
        "an_output_may_be_a_file_of_the_model",
        FILES,
        "names.setdefault(file_id, name)",
        "pass",
        IN_FILES + "test_no_output_is_a_file_of_the_model",
    ),
    Mutant(
        "of_two_byte_order_marks_one_stays",
        INPUTS,
        "    while line.startswith(UTF8_BOM):\n",
        "    if line.startswith(UTF8_BOM):\n",
        IN_FILES + "test_byte_order_marks_of_concatenated_files_are_no_part_of_a_line",
    ),
    Mutant(
        "a_torn_record_is_whole",
        EARLIER,
        'record.endswith(b"\\n") and b"\\0" not in record',
        "True",
        IN_RESUME + "test_what_a_crash_has_torn_is_cut_and_answered_again",
    ),
    Mutant(
        "a_resumed_job_may_be_another",
        RUN,
        "if found := differences(manifest.fingerprint, here):",
        "if False:",
        IN_RESUME + "test_another_job_is_refused_by_what_differs",
    ),
    Mutant(
        "duplicates_are_answered_once_their_errors_have_gone",
        EARLIER,
        "num_duplicates < manifest.num_duplicates",
        "False",
        IN_RESUME + "test_errors_that_keep_a_custom_id_from_coming_twice_must_be_there",
    ),
    Mutant(
        "an_answered_line_is_read_again",
        "batchllm/jobs/sources.py",
        "line < len(done) and done[line]",
        "False",
        IN_RESUME + "test_a_job_goes_on_wherever_it_was_cut_off",
    ),
    Mutant(
        "prompts_of_a_line_stand_as_they_end",
        "batchllm/jobs/answering.py",
        "[outputs[i] for i in range(len(outputs))]",
        "list(outputs.values())",
        IN_RUNNER + "test_every_line_is_answered_or_reported",
    ),
    Mutant(
        "a_line_is_answered_with_its_first_prompt",
        ANSWERING,
        "if len(outputs) == prompts.num_prompts(line):",
        "if outputs:",
        IN_RUNNER + "test_every_line_is_answered_or_reported",
    ),
    Mutant(
        "only_the_first_completion_of_a_prompt_can_fail",
        ANSWERING,
        "        for completion in output.outputs:",
        "        for completion in output.outputs[:1]:",
        IN_RUNNER + "test_an_answer_that_cannot_be_decoded_is_its_lines_error",
    ),
    Mutant(
        "a_template_reaches_into_python",
        TEMPLATE,
        "jinja2.sandbox.ImmutableSandboxedEnvironment(",
        "jinja2.Environment(",
        IN_TABLES + "test_what_is_wrong_with_a_row_is_that_rows_error",
    ),
    Mutant(
        "a_column_that_is_missing_is_empty",
        TEMPLATE,
        "jinja2.StrictUndefined",
        "jinja2.Undefined",
        IN_TABLES + "test_what_is_wrong_with_a_row_is_that_rows_error",
    ),
    Mutant(
        "a_template_writes_as_much_as_it_likes",
        TEMPLATE,
        "if len(text) <= most else",
        "if len(text) else",
        IN_TABLES + "test_a_template_has_bounds_of_time_memory_and_length",
    ),
    Mutant(
        "all_prompts_of_a_packed_line_have_the_first_ones_seed",
        "batchllm/jobs/parcels.py",
        "[_params_of(params) for _, params in packed.prompts]",
        "[_params_of(packed.params) for _ in packed.prompts]",
        IN_PARCELS + "test_a_replica_reads_what_was_packed",
    ),
    Mutant(
        "a_packed_line_forgets_the_form_of_its_answer",
        "batchllm/jobs/parcels.py",
        "form=packed.form",
        "form=AnswerForm()",
        IN_PARCELS + "test_a_replica_reads_what_was_packed",
    ),
    Mutant(
        "a_custom_id_is_answered_twice",
        BATCH,
        "line_of.setdefault(custom_id, line)",
        "line_of.get(custom_id, line)",
        IN_RUNNER + "test_every_line_is_answered_or_reported",
    ),
    Mutant(
        "a_key_may_stand_twice",
        BATCH,
        "        _check_keys(data, record)\n",
        "",
        IN_BATCH + "test_a_key_that_stands_twice_is_refused",
    ),
    Mutant(
        "the_order_of_the_file_is_in_the_seeds",
        LINE,
        "{job_seed}/{prompt_index}/{self.custom_id}",
        "{job_seed}/{prompt_index}/{self.line}",
        IN_RUNNER + "test_seeds_do_not_depend_on_the_order_of_the_file",
    ),
    Mutant(
        "zero_is_false",
        BATCH_PARAMS,
        "isinstance(value, bool) is isinstance(allowed, bool) and value == allowed",
        "value == allowed",
        IN_BATCH + "test_fields_that_would_change_the_answer_are_refused_by_name",
    ),
    Mutant(
        "the_models_file_limits_lines_that_name_no_limit",
        LINE,
        ' and k != "max_tokens"',
        "",
        IN_RUNNER + "test_what_a_line_does_not_give_is_the_models",
    ),
    Mutant(
        "an_answer_names_the_model_of_its_line",
        "batchllm/jobs/openai_records.py",
        '"model": model,',
        '"model": request.model,',
        IN_RUNNER + "test_the_summary_counts_lines_of_another_model_and_answers_that_were_cut",
    ),
    Mutant(
        "the_last_line_of_a_shard_has_no_end",
        "batchllm/jobs/shards.py",
        'yield text if text.endswith(b"\\n") else text + b"\\n"',
        "yield text",
        "tests/jobs/test_shards.py::test_lines_keep_their_bytes",
    ),
    # Models.
    Mutant(
        "a_window_is_a_position_too_long",
        "batchllm/models/layer_spec.py",
        "window_left=window - 1",
        "window_left=window",
        IN_WINDOWS + "test_a_row_sees_its_window",
    ),
    Mutant(
        "every_layer_attends_by_the_plan_of_the_first_kind",
        "batchllm/models/decoder.py",
        "ops.attention(plans[kind],",
        "ops.attention(plans[0],",
        IN_WINDOWS + "test_a_row_sees_its_window",
    ),
    Mutant(
        "every_plan_is_of_the_first_kind",
        "batchllm/models/layer_spec.py",
        "window_left=kind.window_left,",
        "window_left=kinds[0].window_left,",
        IN_WINDOWS + "test_preempted_requests_see_their_windows",
    ),
    Mutant(
        "every_layer_is_rotated",
        "batchllm/models/decoder.py",
        "angles if spec.rotation is not None else None",
        "angles",
        "tests/engine/test_families.py::test_logits_equal_transformers",
    ),
    Mutant(
        "the_first_layers_slide",
        "batchllm/models/families.py",
        "window if layer >= num_full_layers else None",
        "window if layer < num_full_layers else None",
        "tests/engine/test_config.py::test_every_supported_setting_is_read",
    ),
    Mutant(
        "a_plan_of_another_kind_outgrows_its_room",
        "batchllm/device/step.py",
        "return all(layout.has_room_for(plan)",
        "return any(layout.has_room_for(plan)",
        "tests/engine/test_runner.py::test_a_layout_has_room_where_every_plan_has",
    ),
    # Models by transformers' modules.
    Mutant(
        "a_rotation_depends_on_the_longest_of_its_batch",
        "batchllm/models/transformers_config.py",
        "length = min(length, rotation",
        "length = max(length, rotation",
        IN_TRANSFORMERS + "test_rotations_equal_transformers_to_the_longest_context",
    ),
    Mutant(
        "a_window_is_what_the_module_says",
        "batchllm/models/transformers_attention.py",
        "attention_mask, scaling, sliding_window, softcap,",
        'attention_mask, scaling, getattr(module, "sliding_window", None), softcap,',
        IN_TRANSFORMERS + "test_every_kind_of_layer_is_described",
    ),
    Mutant(
        "packed_sequences_are_not_compared",
        "batchllm/models/transformers_check.py",
        "if not error <= TOLERANCES[model.dtype]:",
        "if error < 0:",
        IN_TRANSFORMERS + "test_a_module_that_looks_at_the_row_before_is_refused",
    ),
    Mutant(
        "a_config_names_code",
        "batchllm/models/transformers_config.py",
        'if name.removeprefix("_") not in CODE_FIELDS',
        "if name",
        IN_TRANSFORMERS + "test_code_that_a_config_names_is_neither_fetched_nor_run",
    ),
    Mutant(
        "experts_of_another_function_are_replaced",
        "batchllm/models/transformers_experts.py",
        "if not gives_the_same(",
        "if gives_the_same is None and not gives_the_same(",
        "tests/engine/test_transformers_experts.py::test_what_is_another_function_stays_as_it_is",
    ),
    Mutant(
        "all_experts_are_multiplied_with",
        "batchllm/models/transformers_config.py",
        "total * chosen // num_experts",
        "total",
        IN_TRANSFORMERS + "test_weights_of_experts_are_counted_by_how_many_a_row_goes_to",
    ),
    Mutant(
        "a_model_in_memory_keeps_what_a_job_gave_its_modules",
        "batchllm/models/held_model.py",
        "vars(module).update(attributes)",
        "pass",
        IN_MEMORY + "test_the_model_comes_back_as_it_was",
    ),
    Mutant(
        "a_model_in_memory_keeps_our_attention",
        "batchllm/models/held_model.py",
        "of_module._attn_implementation_internal = implementation",
        "pass",
        IN_MEMORY + "test_the_model_comes_back_as_it_was",
    ),
    Mutant(
        "a_model_that_was_given_back_still_answers",
        "batchllm/models/held_model.py",
        "ours.is_held = False",
        "pass",
        IN_MEMORY + "test_what_is_lent_is_used_in_its_block_alone",
    ),
    Mutant(
        "a_length_with_the_prompt_is_one_without",
        "batchllm/integrations/transformers.py",
        "max_tokens = config.max_length - prompt_tokens",
        "max_tokens = config.max_length",
        IN_MEMORY + "test_settings_mean_what_they_mean_to_model_generate",
    ),
    # What is seen of a job.
    Mutant(
        "what_an_answer_says_is_markup",
        "batchllm/reports/html.py",
        "Environment(autoescape=True, trim",
        "Environment(autoescape=False, trim",
        IN_HTML + "test_what_prompts_and_answers_say_is_text",
    ),
    Mutant(
        "prompts_of_one_line_have_the_answers_of_all",
        "batchllm/reports/browser_data.py",
        "answer.completions[at * n : (at + 1) * n]",
        "answer.completions",
        IN_HTML + "test_prompts_of_one_line_have_their_own_answers",
    ),
    Mutant(
        "prefixes_end_within_words",
        "batchllm/reports/prefix_tree.py",
        "if a[at - 1].isspace()",
        "if a",
        "tests/jobs/test_prefix_tree.py::test_a_shared_text_ends_with_a_word",
    ),
    Mutant(
        "a_full_timeline_forgets_every_second_point",
        RECORDER,
        "self._sums.reshape(half, 2, -1).sum(axis=1)",
        "self._sums.reshape(half, 2, -1)[:, 0]",
        IN_RECORDER + "test_a_timeline_is_bounded_and_loses_nothing",
    ),
    Mutant(
        "a_prefill_that_goes_on_is_nobodys",
        RECORDER,
        "spent_s[num_decodes] += self._unfinished_s",
        "pass",
        IN_RECORDER + "test_the_prefill_of_a_request_is_its_groups_in_all_steps_that_it_takes",
    ),
    Mutant(
        "the_environment_makes_a_log_a_terminal",
        "batchllm/cli/console.py",
        "force_terminal=is_terminal, ",
        "",
        "tests/jobs/test_cli.py::test_a_log_has_no_control_codes_whatever_the_environment_wishes",
    ),
    Mutant(
        "metrics_are_written_where_they_are_read",
        "batchllm/reports/metrics.py",
        "        os.replace(file.name, target)",
        "        target.write_bytes(content), os.unlink(file.name)",
        "tests/jobs/test_metrics.py::test_the_file_is_replaced_now_and_then_and_in_the_end",
    ),
    Mutant(
        "a_parcel_ends_where_it_is_full",
        "batchllm/estimate/packing.py",
        "return last if last == num_items else last - int(np.argmin(repeated[first : last + 1][::-1]))",
        "return last",
        "tests/jobs/test_packing.py::test_documents_are_not_torn_where_a_parcel_may_end_between_them",
    ),
    Mutant(
        "a_small_job_is_cut_as_a_large_one",
        "batchllm/estimate/packing.py",
        "if enough > room:",
        "if False:",
        "tests/jobs/test_packing.py::test_a_small_job_is_not_cut_where_it_would_mostly_repeat",
    ),
    Mutant(
        "tokens_of_a_run_are_compared_by_their_lowest_bytes",
        "batchllm/jobs/depth_first.py",
        'np.dtype(">i4")',
        'np.dtype("<i4")',
        "tests/jobs/test_depth_first.py::test_runs_that_are_merged_have_the_order_of_one_trie",
    ),
    Mutant(
        "a_line_s_completions_are_one_request",
        "batchllm/jobs/parcels.py",
        "num_completions = np.array([params.n for params in prompts.params], np.int64)",
        "num_completions = np.ones(len(prompts), np.int64)",
        "tests/jobs/test_parcels.py::test_the_planner_sees_a_request_for_each_completion",
    ),
]
