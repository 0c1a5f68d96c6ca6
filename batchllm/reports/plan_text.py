"""A plan as text for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from batchllm.estimate.job_plan import CacheCrossover, JobPlan
from batchllm.estimate.simulate import Policy
from batchllm.reports.run_text import duration
from batchllm.text import printable

NAMES = {
    Policy.NONE: "no sharing",
    Policy.LRU: "LRU, as submitted",
    Policy.LRU_SORTED: "LRU, input sorted",
    Policy.RADIX_LPM: "radix, longest first",
    Policy.RADIX_DFS: "radix, depth-first",
    Policy.BATCHLLM_SINGLE: "BatchLLM, one level",
    Policy.BATCHLLM: "BatchLLM",
    Policy.BATCHLLM_BLEND: "BatchLLM, blended",
}


def print_plan(console: Console, plan: JobPlan) -> None:
    for sentence in assumptions(plan):
        say(console, sentence)
    console.print()
    console.print(level_table(plan))
    console.print(policy_table(plan))
    for sentence in conclusions(plan):
        say(console, sentence)
    if plan.shards:
        console.print()
        console.print(shard_table(plan))


def assumptions(plan: JobPlan) -> Iterator[str]:
    left_out = f" ({plan.failed_lines:,} more cannot run)" if plan.failed_lines else ""
    yield (
        f"{plan.lines:,} lines{left_out}, {plan.requests:,} requests, {plan.prompt_tokens:,} prompt tokens, "
        f"{plan.distinct_prompt_tokens:,} of them distinct"
    )
    limit = "the limit of its line"
    if plan.expected_output_tokens is not None:
        limit = f"{plan.expected_output_tokens:,} tokens, or {limit} if that is less"
    yield f"assumed: each request generates {limit}: {plan.assumed_output_tokens:,} output tokens"
    yield (
        f"assumed: {plan.model} on {plan.device}, {tokens_and_bytes(plan, plan.kv_tokens)} of KV memory, "
        f"up to {plan.max_batch_tokens:,} tokens per step"
    )
    if windows := [window_left + 1 for window_left in plan.windows if window_left >= 0]:
        kept = "K/V behind it is dropped (not by radix)" if -1 not in plan.windows else "others see all, so K/V is kept"
        which = "all layers have" if -1 not in plan.windows else "some layers have"
        yield f"{which} a window of {' or '.join(f'{window:,}' for window in windows)} tokens: {kept}"


def level_table(plan: JobPlan) -> Table:
    names = ("depth", "segments", "readers\nmedian", "\nmax", "tokens\nstored", "prompt tokens\nsaved", "\nof all")
    table = new_table("What is shared", *names)
    for level in plan.levels:
        table.add_row(
            str(level.depth),
            f"{level.segments:,}",
            f"{level.median_readers:,.0f}",
            f"{level.max_readers:,}",
            f"{level.stored_tokens:,}",
            f"{level.saved_tokens:,}",
            share(level.saved_tokens / plan.prompt_tokens),
        )
    segments, stored, saved = (
        sum(getattr(level, name) for level in plan.levels) for name in ("segments", "stored_tokens", "saved_tokens")
    )
    table.add_section()
    table.add_row(
        "total", f"{segments:,}", "", "", f"{stored:,}", f"{saved:,}", share(saved / max(plan.prompt_tokens, 1))
    )
    return table


def policy_table(plan: JobPlan) -> Table:
    names = ("policy", "prompt tokens\ncomputed", "\nsaved", "preempted", "steps", "peak KV\ntokens")
    table = new_table(
        "Policies, simulated (LRU as in vLLM, radix as in SGLang, with their defaults)",
        *names,
        "tokens per step\nmedian",
        "\nmean",
        "time\n(model)",
    )
    for figures in plan.policies:
        table.add_row(
            NAMES[figures.policy],
            f"{figures.computed_prompt_tokens:,}",
            share(figures.saved_share),
            f"{figures.preemptions:,}",
            f"{figures.steps:,}",
            f"{figures.peak_kv_tokens:,}",
            f"{figures.median_batch_tokens:,.0f}",
            f"{figures.mean_batch_tokens:,.0f}",
            seconds(figures.predicted_s),
        )
    return table


def conclusions(plan: JobPlan) -> Iterator[str]:
    ours, none = plan.of(Policy.BATCHLLM), plan.of(Policy.NONE)
    yield (
        f"BatchLLM: predicted KV peak {tokens_and_bytes(plan, ours.peak_kv_tokens)}, predicted {ours.steps:,} steps, "
        f"predicted time {seconds(ours.predicted_s)} ({none.predicted_s / ours.predicted_s:.2f} times faster than "
        "without sharing, by the roofline model)"
    )
    for crossover in plan.caches:
        yield f"{NAMES[crossover.policy]}: {cache_sentence(plan, crossover)}"
    if plan.read.prefix_tokens is None:
        yield "one read for all readers: nothing is shared"
    else:
        yield (
            f"one read for all readers: pays (bytes model) from a prefix of {plan.read.prefix_tokens:,} tokens at "
            f"{plan.read.median_readers:,} readers, this job's median"
        )


def cache_sentence(plan: JobPlan, crossover: CacheCrossover) -> str:
    if crossover.kv_tokens is None:
        more = crossover.least_computed_prompt_tokens / plan.of(Policy.BATCHLLM).computed_prompt_tokens - 1
        largest = tokens_and_bytes(plan, crossover.largest_kv_tokens)
        return (
            f"with any KV memory, {share(more)} more prompt tokens than BatchLLM (nothing is evicted from {largest} on)"
        )
    enough = tokens_and_bytes(plan, crossover.kv_tokens)
    return f"within 1% of BatchLLM's prompt tokens from about {enough} of KV memory on"


def shard_table(plan: JobPlan) -> Table:
    names = ("shard", "lines", "requests", "prompt\ntokens", "\ncomputed", "\nreplicated")
    directory = Path(plan.shards[0].file).parent
    table = new_table(f"Shards in {directory}", *names, "output\ntokens", "cost\n(model)")
    for shard in plan.shards:
        table.add_row(
            Path(shard.file).name,
            f"{shard.lines:,}",
            f"{shard.requests:,}",
            f"{shard.prompt_tokens:,}",
            f"{shard.computed_prompt_tokens:,}",
            f"{shard.replicated_tokens:,}",
            f"{shard.output_tokens:,}",
            seconds(shard.predicted_s),
        )
    return table


def new_table(title: str, first: str, *numbers: str) -> Table:
    table = Table(title=escape(printable(title)), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", vertical="bottom")
    return table


def say(console: Console, sentence: str) -> None:
    console.print(printable(sentence), highlight=False, markup=False, soft_wrap=True)


def tokens_and_bytes(plan: JobPlan, kv_tokens: int) -> str:
    num_bytes = kv_tokens * plan.kv_bytes_per_token
    unit, name = next(((2**p, n) for p, n in ((30, "GiB"), (20, "MiB")) if num_bytes >= 2**p), (1024, "KiB"))
    return f"{kv_tokens:,} tokens ({num_bytes / unit:.1f} {name})"


def share(fraction: float) -> str:
    return f"{100 * fraction:.1f}%"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 60 else f"{duration(value)} {'h' if value >= 3600 else 'min'}"
