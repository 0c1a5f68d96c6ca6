"""From prompts to answers of whole lines, and which of these have failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from batchllm.engine.recorder import RunRecorder
from batchllm.jobs.job_prompts import JobPrompts
from batchllm.jobs.line import BatchRequest, LineError
from batchllm.outputs import JobProgress, RequestOutput

if TYPE_CHECKING:
    from batchllm.llm import LLM

OnProgress = Callable[[JobProgress], None]


def what_is_wrong(request: BatchRequest, outputs: list[RequestOutput]) -> LineError | None:
    """Why these outputs are no answer."""
    for output in outputs:
        for completion in output.outputs:
            if completion.finish_reason == "error":
                error = LineError("invalid_output", None, str(completion.stop_reason))
                return error.at(request.line, request.custom_id)
    return None


def is_cut(outputs: list[RequestOutput]) -> bool:
    """Whether the model's context length ended one of their completions."""
    return any(completion.is_cut for output in outputs for completion in output.outputs)


def answers(
    llm: LLM, prompts: JobPrompts, on_step: OnProgress, recorder: RunRecorder
) -> Iterator[tuple[BatchRequest, list[RequestOutput]]]:
    """Yields each request once its last prompt is answered, with the outputs in the order of its prompts."""
    if not len(prompts):
        return
    unfinished: dict[int, dict[int, RequestOutput]] = {}  # line -> place -> output
    results = llm.generate_as_completed(prompts.token_ids, prompts.params, on_progress=on_step, recorder=recorder)
    for index, output in results:
        line, at = prompts.place_of(index)
        outputs = unfinished.setdefault(line, {})
        outputs[at] = output
        if len(outputs) == prompts.num_prompts(line):
            del unfinished[line]
            request = prompts.request(line)
            if request.form.echo:
                echo_prompts(llm, request, outputs)
            yield request, [outputs[i] for i in range(len(outputs))]


def echo_prompts(llm: LLM, request: BatchRequest, outputs: Mapping[int, RequestOutput]) -> None:
    """Gives the request the text of its prompts; if one has none, its completions have failed."""
    try:
        request.echoed = [llm.echo(outputs[i].prompt_token_ids, request.params) for i in range(len(outputs))]
    except ValueError as error:
        for completion in outputs[0].outputs:
            completion.finish_reason, completion.stop_reason = "error", str(error)
