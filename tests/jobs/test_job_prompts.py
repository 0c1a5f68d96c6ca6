"""What a job keeps of its lines while it runs."""

from batchllm.jobs.job_prompts import KNOWN_TERMS, JobPrompts
from batchllm.jobs.line import CHAT, COMPLETION, BatchRequest
from batchllm.jobs.reading import TokenizedLine
from batchllm.sampling_params import SamplingParams


def test_lines_come_back_as_they_were_read_but_for_their_prompts() -> None:
    shared = SamplingParams(temperature=0)
    prompts = JobPrompts()
    lines = []
    for line in range(1, 3 * KNOWN_TERMS):
        params = shared if line % 2 else SamplingParams(seed=line)
        kind, model = (CHAT, "m") if line % 3 else (COMPLETION, None)
        lines.append(BatchRequest(line, f"東京 {line}", kind, model, (), params))
        ids = [[line, at] for at in range(line % 4)]
        prompts.add(TokenizedLine(lines[-1], ids, [params] * len(ids)))
    assert prompts.num_lines == len(lines)
    assert [prompts.request(i) for i in range(len(lines))] == lines
    assert all(prompts.request(i).params is line.params for i, line in enumerate(lines))
    places = [(line.line - 1, at) for line in lines for at in range(line.line % 4)]
    assert [prompts.place_of(i) for i in range(len(prompts))] == places
    assert [prompts.num_prompts(i) for i in range(len(lines))] == [line.line % 4 for line in lines]
    assert [prompts.token_ids[i].tolist() for i in range(len(prompts))] == [[line + 1, at] for line, at in places]
