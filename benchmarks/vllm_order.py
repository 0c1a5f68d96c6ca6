"""What the order of a job does to vLLM: as submitted, sorted by tokens, by our planner (batchllm.integrations.vllm).

    benchmarks/peers/install.sh vllm
    build/peers/vllm/bin/python -m benchmarks.vllm_order --scale 0.25

One engine runs all orders in turns, with an empty cache at the start of each; W5 in its pool of 16,384 tokens.
Computed prompt tokens are those that no block of the cache held, a count that no other load changes.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from benchmarks.contestant import Request, run_job
from benchmarks.peers.vllm_cpu import ORDERS, VllmCpu, parser, preload
from benchmarks.workloads import WORKLOADS

COLUMNS = f"{'job':6}{'order':14}{'computed':>10}{'of prompt':>11}{'against submitted':>19}{'CPU s':>9}{'seconds':>9}"


def run(engine: VllmCpu, requests: list[Request], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """The runs of each order."""
    runs: dict[str, list[dict[str, Any]]] = {order: [] for order in ORDERS}
    for number in range(rounds):
        begin = number % len(ORDERS)
        for engine.variant in ORDERS[begin:] + ORDERS[:begin]:
            runs[engine.variant].append(run_job(engine, requests))
    return runs


def report(name: str, runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = []
    submitted = runs["as submitted"][0]["computed_prompt_tokens"]
    for order, rows in runs.items():
        computed, share = (
            rows[0]["computed_prompt_tokens"],
            rows[0]["computed_prompt_tokens"] / rows[0]["prompt_tokens"],
        )
        cpu_s, wall_s = (statistics.median(row[key] for row in rows) for key in ("cpu_s", "wall_s"))
        times = f"{cpu_s:9.1f}{wall_s:9.1f}"
        lines.append(f"{name:6}{order:14}{computed:10,}{share:11.1%}{submitted / computed:18.2f}x{times}")
    return lines


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--model", default="models/smollm2-135m-instruct")
    options_parser.add_argument("--workloads", nargs="+", default=["W1", "W3", "W5"], choices=WORKLOADS)
    options_parser.add_argument("--scale", type=float, default=1.0, help="share of each job's groups")
    options_parser.add_argument("--rounds", type=int, default=1)
    options_parser.add_argument("--json", help="file that gets a line per run")
    options_parser.set_defaults(order=ORDERS[0])
    options = options_parser.parse_args()
    preload()
    engine = VllmCpu(options)
    print(COLUMNS, flush=True)
    loaded: object = None
    for name in options.workloads:
        workload = WORKLOADS[name].scaled(options.scale)
        if not engine.llm or loaded != workload.kv_tokens:
            engine.load(workload.kv_tokens)
            loaded = workload.kv_tokens
        requests = [Request(row["prompt_token_ids"], row["max_tokens"]) for row in workload.rows()]
        runs = run(engine, requests, options.rounds)
        print(*report(name, runs), sep="\n", flush=True)
        if options.json:
            with open(options.json, "a") as file:
                for order, rows in runs.items():
                    file.writelines(json.dumps({"workload": name, "order": order} | row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
