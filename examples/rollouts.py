"""Rollouts for reinforcement learning: groups of samples with log-probabilities and advantages, as in GRPO.

python examples/rollouts.py [MODEL]
"""

import statistics
import sys

from batchllm import LLM, SamplingParams

TASKS = {"Name a prime number below 10.": {"2", "3", "5", "7"}, "Name a vowel.": set("AEIOUaeiou")}

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "models/smollm2-135m-instruct")
params = SamplingParams(n=8, temperature=1.0, seed=0, max_tokens=24, logprobs=0)
chats = [[{"role": "user", "content": task}] for task in TASKS]

for output, (task, accepted) in zip(llm.chat(chats, params), TASKS.items(), strict=True):
    rewards = [float(any(word.strip(".,!") in accepted for word in one.text.split())) for one in output.outputs]
    mean, spread = statistics.mean(rewards), statistics.pstdev(rewards) or 1.0
    print(task)
    for rollout, reward in zip(output.outputs, rewards, strict=True):
        logprobs = [entry[token].logprob for token, entry in zip(rollout.token_ids, rollout.logprobs, strict=True)]
        print(
            f"    advantage {(reward - mean) / spread:+.2f}  log-probability {sum(logprobs):8.2f}  {rollout.text!r:.60}"
        )
