"""What the reference policies do, token by token: why each prompt token is computed, and the figures of every step."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from batchllm.estimate.simulate import Simulation

STEP_FIELDS = (
    "num_decode_tokens",
    "num_prefill_tokens",
    "num_running",
    "used_kv_tokens",
    "attention_pairs",
    "kv_tokens_read",
)
TOTALS = (
    "computed_prompt_tokens",
    "first_tokens",
    "unshared_tokens",
    "evicted_tokens",
    "preempted_tokens",
    "recomputed_output_tokens",
    "output_tokens",
    "preemptions",
)


def visible(position: int, window_left: int) -> range:
    return range(0 if window_left < 0 else max(position - window_left, 0), position + 1)


class Ledger:
    def __init__(
        self, prompts: Sequence[Sequence[int]], output_tokens: Sequence[int], windows: Sequence[int] = (-1,)
    ) -> None:
        self.prompts, self.output_tokens, self.windows = prompts, output_tokens, windows
        self.num_outputs = [0] * len(prompts)
        self.had = [0] * len(prompts)  # positions a request had KV for at its best
        self.findable = [0] * len(prompts)
        self.computed: set[tuple[int, ...]] = set()  # prefixes, by anybody
        self.computed_prompt_tokens = self.first_tokens = self.unshared_tokens = self.evicted_tokens = 0
        self.preempted_tokens = self.recomputed_output_tokens = self.preemptions = 0
        self.steps: list[dict[str, int | list[int]]] = []
        self.num_sampled: list[int] = []
        self.rows: list[tuple[int, int]] = []  # (request, position) of the step under way

    @property
    def output_tokens_made(self) -> int:
        return sum(self.num_outputs)

    def tokens(self, request: int) -> list[Hashable]:
        """Prompt and generated tokens; what a request generates is like nothing else."""
        return [*self.prompts[request], *(("out", request, i) for i in range(self.num_outputs[request]))]

    def admit(self, request: int, findable: int) -> None:
        self.findable[request] = findable

    def compute(self, request: int, begin: int, end: int) -> None:
        prompt = tuple(self.prompts[request])
        for position in range(begin, end):
            self.rows.append((request, position))
            if position >= len(prompt):
                self.recomputed_output_tokens += position < self.had[request]
                continue
            self.computed_prompt_tokens += 1
            prefix = prompt[: position + 1]
            if position < self.had[request]:
                self.preempted_tokens += 1
            elif position < self.findable[request]:
                self.evicted_tokens += 1
            elif prefix in self.computed:
                self.unshared_tokens += 1
            else:
                self.first_tokens += 1
            self.computed.add(prefix)
        self.had[request] = max(self.had[request], end)

    def end_step(self, used_kv_tokens: int, num_running: int) -> None:
        ends: dict[int, int] = {}
        counts: dict[int, int] = {}
        for request, position in self.rows:
            ends[request] = position + 1
            counts[request] = counts.get(request, 0) + 1
        decodes = [
            request
            for request in counts
            if counts[request] == 1 and ends[request] > len(self.prompts[request])
            if ends[request] == len(self.tokens(request))
        ]
        self.steps.append(
            {
                "num_decode_tokens": len(decodes),
                "num_prefill_tokens": len(self.rows) - len(decodes),
                "num_running": num_running,
                "used_kv_tokens": used_kv_tokens,
                "attention_pairs": [
                    sum(len(visible(position, window)) for _, position in self.rows) for window in self.windows
                ],
                "kv_tokens_read": [
                    len({(request, key) for request, position in self.rows for key in visible(position, window)})
                    for window in self.windows
                ],
            }
        )
        self.num_sampled.append(0)
        self.rows = []

    def emit(self, request: int) -> bool:
        self.num_outputs[request] += 1
        self.num_sampled[-1] += 1
        return self.num_outputs[request] == self.output_tokens[request]

    def check(self, simulation: Simulation) -> None:
        for name in STEP_FIELDS:
            assert getattr(simulation, name).tolist() == [step[name] for step in self.steps], name
        assert simulation.num_sampled.tolist() == self.num_sampled
        totals = {name: getattr(self, name) for name in TOTALS if name != "output_tokens"}
        totals["output_tokens"] = sum(self.num_outputs)
        assert {name: getattr(simulation, name) for name in TOTALS} == totals
        assert simulation.peak_kv_tokens == max((step["used_kv_tokens"] for step in self.steps), default=0)
