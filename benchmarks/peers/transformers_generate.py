"""transformers' generate as a contestant: python -m benchmarks.peers.transformers_generate --model DIR

Static batches of requests with like output lengths, padded on the left; nothing is shared. A batch runs until its last
request has its tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import transformers

from benchmarks.contestant import WARM_UP, Contestant, Outputs, Request, serve

PADDING = 0  # masked: any id will do


class Transformers(Contestant):
    engine = "transformers"
    version = transformers.__version__

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dtype = options.dtype
        self.variant = f"batches of {options.batch_size}"
        self.model: Any = None

    def load(self, kv_tokens: int | None) -> None:
        if kv_tokens:
            raise ValueError("generate has no KV pool, so none of a given size")
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            self.options.model, dtype=getattr(torch, self.dtype), trust_remote_code=False
        )
        self.model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=PADDING)
        self.prepare(WARM_UP)()

    def prepare(self, requests: list[Request]) -> Callable[[], tuple[Outputs, dict[str, Any]]]:
        order = sorted(range(len(requests)), key=lambda i: (requests[i].max_tokens, len(requests[i].prompt_token_ids)))
        size = self.options.batch_size
        batches = [order[begin : begin + size] for begin in range(0, len(order), size)]

        def job() -> tuple[Outputs, dict[str, Any]]:
            outputs: Outputs = [[] for _ in requests]
            for batch in batches:
                for index, output in zip(batch, self.generate([requests[index] for index in batch]), strict=True):
                    outputs[index] = output[: requests[index].max_tokens]
            return outputs, {"computed_prompt_tokens": sum(len(request.prompt_token_ids) for request in requests)}

        return job

    @torch.inference_mode()
    def generate(self, requests: list[Request]) -> Outputs:
        longest = max(len(request.prompt_token_ids) for request in requests)
        ids = torch.full((len(requests), longest), PADDING)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            begin = longest - len(request.prompt_token_ids)
            ids[row, begin:] = torch.tensor(request.prompt_token_ids)
            mask[row, begin:] = 1
        num_tokens = max(request.max_tokens for request in requests)
        outputs = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=num_tokens)
        return outputs[:, longest:].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--batch-size", type=int, default=32)
    serve(Transformers(parser.parse_args()))


if __name__ == "__main__":
    main()
