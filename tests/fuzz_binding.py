"""Random calls into batchllm_ext: right ones, with an argument or two exchanged for something else.

    python -m tests.fuzz_binding SECONDS [FIRST_SEED]

A call returns, or raises one of REFUSALS; it never ends the process, and never takes longer than SECONDS_A_ROUND. Each
round has a seed, written before it begins, so that the last one written is the one that failed: with it as FIRST_SEED
and 0 as SECONDS that round runs again, alone. At the end, as JSON, how often each function returned and refused.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import resource
import sys
import threading
import time
from array import array as stdlib_array
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import batchllm_ext as ext

SECONDS_A_ROUND = 60
MEMORY_BYTES = 4 << 30  # beyond what the process has when it begins
REFUSALS = (TypeError, ValueError, IndexError, MemoryError)
PROTOCOL = (
    "next_batch: the previous batch",
    "commit: no batch is in flight",
)  # of RuntimeErrors, which audits raise too
CLASSES = [value for value in vars(ext).values() if isinstance(value, type)]

NUMBERS = [-(2**63), -(2**31) - 1, -(2**31), -1, 0, 1, 2, 3, 7, 64, 1024, 1025, 2**30, 2**31 - 65, 2**31 - 2, 2**31 - 1]
NUMBERS += [2**31, 2**32 - 1, 2**32 + 3, 2**63 - 1, 2**64]
ELEMENTS = [-(2**31), -1, 0, 1, 5, 2**16, 2**30, 2**31 - 65, 2**31 - 2, 2**31 - 1]
FLOATS = [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-300, 0.5, 3.0, 1e300]
DTYPES = [
    "V0",
    "V3",
    "?",
    "i1",
    "u2",
    "i2",
    "i4",
    ">i4",
    "i8",
    "u8",
    "f2",
    "f4",
    "f8",
    "c8",
    "O",
    "S0",
    "U0",
    "M8[s]",
    [],
]


class Nothing(ctypes.Structure):
    _fields_ = ()


class OnlyDLPack:
    def __init__(self, array: np.ndarray):
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)


class Fuzzer:
    def __init__(self, seed: int, outcomes: dict[str, list[int]]):
        self.rng = np.random.default_rng(seed)
        self.outcomes = outcomes
        self.strangeness = float(self.rng.choice([0.0, 0.03, 0.15]))

    def choice(self, options: list[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def between(self, least: int, most: int) -> int:
        return int(self.rng.integers(least, most + 1))

    def ints(self, values: Any) -> np.ndarray:
        return np.array(values, np.int32)

    def floats(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, np.float32)

    def call(self, name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What the function returns; None if it refuses."""
        try:
            arguments = tuple(self.distorted(value) for value in arguments)
            options = {key: self.distorted(value) for key, value in options.items()}
        except Exception:  # NumPy's, which would not make it
            return None
        returned = False
        try:
            result = function(*arguments, **options)
            returned = True
            return result
        except REFUSALS:
            return None
        except RuntimeError as error:
            if not str(error).startswith(PROTOCOL):
                raise
            return None
        finally:
            self.outcomes[name][0 if returned else 1] += 1

    def distorted(self, value: Any) -> Any:
        if self.rng.random() >= self.strangeness:
            return value
        if self.rng.random() < 0.05:
            return self.choice(
                [None, "text", [1, 2], object(), 3, 0.5, b"1234", *(cls.__new__(cls) for cls in CLASSES)]
            )
        if isinstance(value, np.ndarray):
            return self.distorted_array(value)
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return self.choice(NUMBERS)
        if isinstance(value, float):
            return self.choice(FLOATS)
        return value

    def distorted_array(self, array: np.ndarray) -> Any:
        axis = self.between(0, max(array.ndim - 1, 0))
        size = array.shape[axis] if array.ndim else 1

        def with_element() -> np.ndarray:
            changed = array.copy()
            if changed.size:
                changed.flat[self.between(0, changed.size - 1)] = self.choice(ELEMENTS)
            return changed

        def unaligned() -> np.ndarray:
            memory = np.zeros(array.nbytes + 8, np.uint8)
            return memory[1 : 1 + array.nbytes].view(array.dtype).reshape(array.shape)

        def read_only() -> np.ndarray:
            changed = array.copy()
            changed.flags.writeable = False
            return changed

        def in_a_longer_row() -> np.ndarray:
            wide = np.zeros((*array.shape[:-1], array.shape[-1] + 5), array.dtype)
            wide[..., 2:-3] = array
            return wide[..., 2:-3]

        # Broadcast along a dimension, near 2^31 of which hold no more memory than one.
        extent = self.choice([0, 1, 2, size, 2**31 - 1, 2**31, 2**33]) if axis + 1 < array.ndim else size
        return self.choice(
            [
                with_element,
                with_element,
                with_element,
                unaligned,
                read_only,
                in_a_longer_row,
                lambda: array.astype(np.dtype(self.choice(DTYPES))),
                lambda: np.zeros(array.shape, np.dtype(self.choice(DTYPES))),
                lambda: np.take(array, range(size - 1), axis=axis),
                lambda: np.concatenate([array, array], axis=axis),
                lambda: np.repeat(array, 2, axis=axis)[(slice(None),) * axis + (slice(None, None, 2),)],
                lambda: np.flip(array, axis),
                lambda: array.T,
                lambda: array.T.copy(),
                lambda: array[None],
                lambda: array[None, None, None, None],
                lambda: array.reshape(-1),
                lambda: np.zeros((0,) * array.ndim, array.dtype),
                lambda: np.zeros((), array.dtype),
                lambda: np.broadcast_to(
                    np.take(array, [0], axis=axis), (*array.shape[:axis], extent, *array.shape[axis + 1 :])
                ),
                lambda: OnlyDLPack(array),
                lambda: memoryview(array),
                lambda: stdlib_array("i", array.reshape(-1).tolist()),
                lambda: array.tolist(),
                lambda: (Nothing * max(size, 1))(),
            ]
        )()

    # --- rounds

    def job(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """tokens, indptr, output_tokens, max_output_tokens of prompts that share beginnings."""
        prompts: list[list[int]] = []
        for _ in range(self.between(1, 12)):
            head = self.choice(prompts)[: self.between(0, 9)] if prompts and self.rng.random() < 0.7 else []
            prompts.append(head + self.rng.integers(0, 3, self.between(1, 9)).tolist())
        indptr = np.cumsum([0, *map(len, prompts)]).astype(self.choice([np.int32, np.int64]))
        outputs = self.rng.integers(1, 6, len(prompts))
        return self.ints(np.concatenate(prompts)), indptr, self.ints(outputs), self.ints(outputs + self.between(0, 3))

    def segments(self, tokens: np.ndarray, indptr: np.ndarray) -> ext.Segments | None:
        trie = self.call("PrefixTrie", ext.PrefixTrie, tokens, indptr, drop_last=1, num_threads=self.between(0, 3))
        if trie is None:
            return None
        trie.audit()
        str(trie)
        options = (
            {"method": "exact", "reader_cost": self.choice([0.0, 2.0])}
            if self.rng.random() < 0.7
            else {"method": "paper"}
        )
        segments = self.call("choose_segments", ext.choose_segments, trie, self.choice([None, 1]), **options)
        if segments is not None and self.rng.random() < 0.3:
            names = ("parent", "token_begin", "token_end", "owner_request", "request_segment")
            arrays = {name: getattr(segments, name) for name in names}
            segments = self.call("Segments", ext.Segments, **arrays, prompt_tokens=segments.prompt_tokens)
        return segments

    def plan_a_job(self) -> None:
        tokens, indptr, _, max_output = self.job()
        segments = self.segments(tokens, indptr)
        if segments is None:
            return
        page_size = self.between(1, 5)
        planner = self.call(
            "BatchPlanner",
            ext.BatchPlanner,
            tokens,
            indptr,
            segments,
            max_output_tokens=max_output,
            num_pages=self.between(1, 60),
            page_size=page_size,
            max_batch_tokens=self.between(1, 30),
            expected_output_tokens=self.choice([None, max_output]),
            order=self.choice(["decode_first", "arrival", "blend"]),
            max_running_requests=self.choice([None, self.between(1, 9)]),
            window_left=self.choice([-1, self.between(-2, 9)]),
        )
        self.call(
            "BatchPlanner",
            ext.BatchPlanner.most_segment_pages,
            page_size=page_size,
            max_batch_tokens=self.between(1, 30),
            window_left=self.between(-2, 9),
        )
        if planner is None:
            return
        if self.rng.random() < 0.5:
            return self.run_steps(planner, tokens, indptr, segments, max_output)
        errors: list[BaseException] = []

        def run(fuzzer: Fuzzer) -> None:
            try:
                fuzzer.run_steps(planner, tokens, indptr, segments, max_output)
            except BaseException as error:
                errors.append(error)

        threads = [
            threading.Thread(target=run, args=(Fuzzer(self.between(0, 2**31), self.outcomes),))
            for _ in range(self.between(2, 3))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def run_steps(
        self,
        planner: ext.BatchPlanner,
        tokens: np.ndarray,
        indptr: np.ndarray,
        segments: ext.Segments,
        bounds: np.ndarray,
    ) -> None:
        for _ in range(self.between(1, 40)):
            if self.rng.random() < 0.1:
                self.call("BatchPlanner", planner.add_requests, tokens, indptr, segments, max_output_tokens=bounds)
            batch = self.call("BatchPlanner", planner.next_batch)
            if batch is not None:
                self.outcomes["TokenBatch"][0] += 1
                self.attend(batch if self.rng.random() < 0.5 else batch.logit_batch(), page_size=self.between(1, 5))
                slots = np.zeros(self.between(0, 60), np.int64)
                rows = {"token_ids": np.zeros(len(slots), np.int32), "positions": self.ints([0] * len(slots))}
                self.call("TokenBatch", batch.write_rows, slots=slots, **rows)
            sampled = self.ints([7] * (0 if batch is None else len(batch.logit_rows)))
            self.call("BatchPlanner", planner.commit, sampled, self.choice([None, sampled.astype(bool)]))
            planner.audit()
            self.call("BatchPlanner", planner.output_tokens, self.between(0, 12))
            self.call("BatchPlanner", planner.num_cached_tokens, self.between(0, 12))
            self.call("BatchPlanner", planner.outputs, self.ints([self.between(0, 12)]))
            str((planner.stats, planner.order, planner.refused, batch))

    def simulate(self) -> None:
        tokens, indptr, outputs, bounds = self.job()
        pool = {
            "kv_tokens": self.between(10, 100),
            "page_size": self.between(1, 4),
            "max_batch_tokens": self.between(1, 40),
            "windows": self.choice([(-1,), [self.between(0, 20), self.between(-1, 20)], [], (2**31,), None]),
        }
        job = tokens, indptr, outputs, bounds
        kind = self.between(0, 2)
        if kind == 0:
            options = {"max_num_seqs": self.between(1, 9), "is_sorted": bool(self.between(0, 1))}
            self.call("simulate_lru", ext.simulate_lru, *job, **pool, **options)
        elif kind == 1:
            options = {"max_running_requests": self.between(1, 9), "order": self.choice(["lpm", "dfs", "x"])}
            self.call("simulate_radix", ext.simulate_radix, *job, **pool, **options)
        else:
            segments = self.segments(tokens, indptr)
            lengths = self.choice(["known", "learned", "bound"])
            self.call("simulate_planned", ext.simulate_planned, *job, segments, **pool, lengths=lengths)

    def batch(self, page_size: int) -> dict[str, np.ndarray]:
        """Spans of a few rows, each at the end of its own segment, behind a shared one."""
        num_spans = self.between(1, 4)
        rows = self.rng.integers(1, self.choice([2, 30]), num_spans)
        first = self.choice([0, 0, 100, 2**31 - 1 - 400])
        shared = self.between(1, 300)
        lengths = [shared, *(rows + self.between(0, 5))]
        pages = [-(-length // page_size) for length in lengths]
        return {
            "span_indptr": self.ints([0, *np.cumsum(rows)]),
            "span_begin": self.ints(first + shared + np.array(lengths[1:]) - rows),
            "link_indptr": self.ints(2 * np.arange(num_spans + 1)),
            "link_segment": self.ints([link for span in range(num_spans) for link in (0, span + 1)]),
            "segment_page_indptr": self.ints([0, *np.cumsum(pages)]),
            "segment_page_ids": self.ints(self.rng.permutation(sum(pages))),
            "segment_begin": self.ints([first] + [first + shared] * num_spans),
            "segment_num_tokens": self.ints(lengths),
        }

    def attend(self, batch: Any = None, page_size: int = 4) -> None:
        arrays = self.batch(page_size) if batch is None else {name: getattr(batch, name) for name in self.batch(1)}
        num_kv_heads, group, head_dim = self.between(1, 3), self.between(1, 3), self.choice([1, 8, 20, 64])
        num_pages = int(max(arrays["segment_page_ids"].max(initial=0) + 1, 1))
        q = self.floats(int(arrays["span_indptr"][-1]), group * num_kv_heads, head_dim)
        k_pages, v_pages = self.floats(2, num_pages, page_size, num_kv_heads, head_dim)
        window = {"window_left": self.choice([-1, -1, 0, 20, 2**31 - 1])}
        options: dict[str, Any] = {
            "softmax_scale": self.choice([None, 0.3]),
            "soft_cap": self.choice([0.0, 5.0]),
            "sinks": self.choice([None, self.floats(group * num_kv_heads)]),
        }
        if self.rng.random() < 0.2:
            options |= {"out": np.zeros_like(q), "lse": np.zeros(q.shape[:2], np.float32)}
        if self.rng.random() < 0.3:
            q, k_pages, v_pages = ((tensor.view(np.uint32) >> 16).astype(np.uint16) for tensor in (q, k_pages, v_pages))
            options |= {"dtype": "bfloat16", "out": None}
        if self.rng.random() < 0.2:
            self.call("attention_ref", ext.attention_ref, *arrays.values(), q, k_pages, v_pages, **options, **window)
        plan = self.call(
            "plan_attention",
            ext.plan_attention,
            *arrays.values(),
            num_qo_heads=group * num_kv_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            page_size=page_size,
            num_threads=self.choice([0, 1, 2, 3, 1000]),
            share=self.choice([True, False, "always"]),
            device=self.choice(["cpu", "cpu", "cuda", "h200"]),
            **window,
        )
        if plan is None:
            return
        self.outcomes["AttentionPlan"][0] += 1
        num_threads = self.choice([0, 1, 2, 3])
        self.call("attention", ext.attention, plan, q, k_pages, v_pages, **options, num_threads=num_threads)
        self.call("AttentionPlan", plan.explain, kv_dtype=self.choice(["float32", "bfloat16", "x"]))
        self.call("AttentionPlan", plan.predict_seconds, flops_per_s=1e12, bytes_per_s=1e12, launch_s=1e-6)
        rows = self.ints(sorted({self.between(-1, len(q)) for _ in range(self.between(0, 5))}))
        some = self.call("AttentionPlan", plan.for_rows, rows)
        str((plan, plan.buffers, some))
        layout = self.call(
            "PlanLayout", ext.PlanLayout, plan, num_pages, **{self.choice(list(plan.sizes)): self.between(0, 99)}
        )
        if layout is not None and layout.num_ints < 1 << 20:
            buffer = np.zeros(layout.num_ints, np.int32)
            self.call("PlanLayout", layout.pack, plan, buffer)
            self.call("DevicePlan", ext.DevicePlan, layout, buffer, self.floats(10))

    def work_on_rows(self) -> None:
        num_rows, num_heads, size = self.between(0, 9), self.between(0, 3), self.choice([0, 1, 2, 6, 32, 130])
        large = self.choice([1, 1, 1, 4000])  # enough for threads
        x, delta = self.floats(2, large * num_rows, num_heads, size)
        threads = {"num_threads": self.choice([0, 1, 2, 3, 1024])}
        kind = self.between(0, 6)
        if kind == 0:
            more = {"delta": delta} if self.rng.random() < 0.5 else {}
            self.call("rms_norm", ext.rms_norm, x, self.floats(size), eps=1e-5, out=delta.copy(), **more, **threads)
        elif kind == 1:
            self.call("rotate", ext.rotate, x, *self.floats(2, len(x), size // 2), **threads)
        elif kind == 2:
            self.call(
                "silu_and_mul",
                ext.silu_and_mul,
                self.floats(len(x), 2 * size),
                out=self.floats(len(x), size),
                **threads,
            )
        elif kind == 3:
            outputs = {"token_ids": np.zeros(len(x), np.int32), "lse": np.zeros(len(x), np.float32)}
            logits = self.floats(len(x), size)
            self.call("argmax_and_lse", ext.argmax_and_lse, logits, **outputs, **threads)
            names = ("temperature", "top_p", "min_p", "logprobs")
            columns = {name: self.floats(len(x)) for name in names} | {"uniform": self.rng.random(len(x))}
            ints = {"top_k": self.rng.integers(-2, 300, len(x), np.int32)}
            ruled = {
                "ruled_logits": self.floats(self.between(0, 3), size),
                "ruled_rows": self.rng.integers(-2, 5, len(x), np.int32),
            }
            more = ruled if self.rng.random() < 0.5 else {}
            self.call("sample", ext.sample, logits, **outputs, **columns, **ints, **more, **threads)
        elif kind == 4:
            k_pages, v_pages = self.floats(2, 4, 3, num_heads, size)
            slots = self.rng.integers(0, 12, len(x))
            self.call("append_kv", ext.append_kv, x, delta, slots, k_pages, v_pages, **threads)
        elif kind == 5:
            self.quantize(len(x), size, threads)
        else:
            lse = self.floats(2, len(x), num_heads)
            base = {"lse_base": self.choice(["e", "2"])}
            self.call("merge_state", ext.merge_state, x, lse[0], delta, lse[1], **base)
            states = self.floats(len(x), 3, num_heads, size)
            self.call("merge_states", ext.merge_states, states, self.floats(len(x), 3, num_heads), **base)

    def quantize(self, num_rows: int, size: int, threads: dict[str, int]) -> None:
        x, delta, both = *self.floats(2, num_rows, size), self.floats(num_rows, 2 * size)
        scales, bias = self.floats(num_rows), self.floats(2 * size)
        to = {"out": np.zeros((num_rows, size), np.uint8), "scales": np.zeros(num_rows, np.float32)}
        self.call("quantize_rows", ext.quantize_rows, x, **to, **threads)
        self.call("dequantize_rows", ext.dequantize_rows, both, scales, out=both, bias=bias, **threads)
        deltas = {"delta": delta, "delta_scales": scales, "delta_bias": bias[:size]}
        more = deltas if self.rng.random() < 0.5 else {}
        self.call("norm_quantize", ext.norm_quantize, x, eps=1e-5, **to, **more, **threads)
        segments = {"num_segments": self.choice([1, 2, 16, 64])}
        self.call("silu_mul_quantize", ext.silu_mul_quantize, both, scales, bias=bias, **to, **segments, **threads)

    def ask(self) -> None:
        for name in ("gpu_peaks", "gpu_models", "has_cuda", "gpu_head_dims", "cpu_isa", "cpu_isas"):
            self.call(name, getattr(ext, name))

    def play_a_round(self) -> None:
        self.choice(
            [self.plan_a_job, self.simulate, self.attend, self.attend, self.work_on_rows, self.work_on_rows, self.ask]
        )()


def main(seconds: float, first_seed: int) -> None:
    outcomes: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
    end = time.monotonic() + seconds
    seed = first_seed
    while True:
        sys.stdout.write(f"seed {seed}\n")
        sys.stdout.flush()
        faulthandler.dump_traceback_later(SECONDS_A_ROUND, exit=True)
        Fuzzer(seed, outcomes).play_a_round()
        if time.monotonic() >= end:
            break
        seed += 1
    print(json.dumps(outcomes))


if __name__ == "__main__":
    faulthandler.enable()
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else int.from_bytes(np.random.bytes(3), "little"))
