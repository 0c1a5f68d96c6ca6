"""A job from an input file to an output file: every line is answered, or reported, exactly once.

An answer is written as its request completes, so a job that is killed keeps what it has.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from batchllm.engine.recorder import RunRecorder
from batchllm.jobs.figures import leave_figures
from batchllm.jobs.files import RecordFile, check_files, read_lines
from batchllm.jobs.openai_batch import BatchPrompt, BatchRequest, Conversation, LineError, parse_line
from batchllm.jobs.openai_records import answer_record, error_record
from batchllm.models.config import model_files
from batchllm.outputs import JobProgress, RequestOutput
from batchllm.sampling_params import SamplingParams
from batchllm.tokenizer import Message

if TYPE_CHECKING:
    from batchllm.llm import LLM

OnProgress = Callable[[JobProgress], None]


@dataclass(frozen=True)
class BatchFiles:
    input: Path
    output: Path
    errors: Path | None  # None: errors are logged
    summary: Path | None = None
    overwrite: bool = False  # of files that are not empty
    model: str | None = None  # a directory, whose files are none of the others
    figures: Path | None = None  # what a report needs beside the answers
    report: Path | None = None
    metrics: Path | None = None

    def check(self) -> None:
        """Raises OSError or ValueError for files that no job can run with. Changes none of them."""
        outputs = {"output": self.output, "errors": self.errors, "summary": self.summary}
        outputs |= {"figures": self.figures, "report": self.report}
        inputs = model_files(self.model) if self.model else []
        replaced = {"metrics": self.metrics}
        check_files(self.input, outputs, overwrite=self.overwrite, model_files=inputs, replaced=replaced)


def errors_beside(output: Path) -> Path | None:
    """OUT.errors.jsonl for OUT.jsonl; None for a pipe or a device.

    Raises FileExistsError where that file holds something and the output does not exist: OUT.txt has the same.
    """
    if not has_neighbours(output):
        return None
    errors = output.with_suffix(".errors.jsonl")
    if not output.exists() and errors.is_file() and errors.stat().st_size:
        raise FileExistsError(
            f"errors {str(errors)!r}: is not empty, and {str(output)!r} does not exist, so it may belong to another "
            "output; name another with --errors"
        )
    return errors


def figures_beside(output: Path) -> Path | None:
    """OUT.figures.json for OUT.jsonl; None for a pipe or a device."""
    return output.with_suffix(".figures.json") if has_neighbours(output) else None


def has_neighbours(output: Path) -> bool:
    directory = Path(os.path.realpath(output.parent))
    is_special = directory == Path("/dev") or Path("/proc") in (directory, *directory.parents)
    return not is_special and (output.is_file() or not output.exists())


@dataclass(frozen=True)
class JobSummary:
    num_answered: int  # lines in the output file
    num_failed: int  # lines in the errors file
    stats: dict[str, Any]  # LLM.stats
    num_other_model: int = 0  # answered lines that name a model other than the one that ran
    num_cut: int = 0  # answered lines with a completion that ended at the model's length, before its max_tokens


class JobInterrupted(KeyboardInterrupt):
    """A KeyboardInterrupt, its cause, stopped the job while it ran; says where the answers so far are."""


def run_batch_file(
    files: BatchFiles,
    load_llm: Callable[[], LLM],
    *,
    model_name: str,
    chat_max_tokens: int,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> JobSummary:
    """Answers every line of files.input. No file is opened before the model is loaded, or replaced before it answers.

    model_name: in the answers.
    chat_max_tokens: for chat requests that name no limit.
    seed: makes, with the custom_id, the seed of a request that names none.
    log: is told the errors where there is no file for them.

    Raises OSError or ValueError before anything is written, and OSError where an output fails; JobInterrupted for a
    KeyboardInterrupt after that.
    """
    files.check()
    requests, errors = read_requests(files.input, chat_max_tokens)
    llm = load_llm()
    if any(request.is_chat for request in requests):
        llm.check_chat_template()
    prompts: list[JobPrompt] = []
    for request in (line.with_defaults(llm.sampling_defaults) for line in requests):
        try:
            token_ids, params = tokenize(llm, request, seed)
            prompts += [
                JobPrompt(request, at, *prompt) for at, prompt in enumerate(zip(token_ids, params, strict=True))
            ]
        except LineError as error:
            errors.append(error)
    errors.sort(key=lambda error: error.line or 0)
    num_answered = num_other_model = num_cut = 0
    with ExitStack() as stack:
        output_file = stack.enter_context(RecordFile("output", files.output, overwrite=files.overwrite))
        errors_file = None
        if files.errors:
            errors_file = stack.enter_context(RecordFile("errors", files.errors, overwrite=files.overwrite))

        def report(error: LineError) -> None:
            if errors_file:
                errors_file.write(error_record(error))
            else:
                log(f"line {error.line}: {error}")

        recorder = RunRecorder()
        results = answers(llm, prompts, on_progress, recorder)
        first = list(itertools.islice(results, 1))  # with it the engine stands; until then nothing is replaced
        try:
            output_file.empty()
            if errors_file:
                errors_file.empty()
            for line_error in errors:
                report(line_error)
            for request, outputs in itertools.chain(first, results):
                completions = [completion for output in outputs for completion in output.outputs]
                if failed := next((c for c in completions if c.finish_reason == "error"), None):
                    errors.append(LineError("invalid_output", None, str(failed.stop_reason)))
                    report(errors[-1].at(request.line, request.custom_id))
                    continue
                output_file.write(answer_record(request, outputs, model_name))
                num_answered += 1
                num_other_model += request.names_another(model_name)
                num_cut += any(completion.is_cut for completion in completions)
        except KeyboardInterrupt as interrupt:
            raise JobInterrupted(f"the answers so far are in {files.output}") from interrupt
        except ValueError as error:
            raise ValueError(f"{error}; the answers so far are in {files.output}") from error
        finally:
            if files.figures:
                counts = [(prompt.request.line, prompt.at, prompt.params.n) for prompt in prompts]
                leave_figures(files.figures, recorder, counts, llm.stats, model_name, files.input, files.overwrite, log)
    return JobSummary(num_answered, len(errors), llm.stats, num_other_model, num_cut)


class JobPrompt(NamedTuple):
    request: BatchRequest
    at: int  # its place among the request's prompts
    token_ids: list[int]
    params: SamplingParams


def answers(
    llm: LLM, prompts: list[JobPrompt], on_progress: OnProgress | None, recorder: RunRecorder
) -> Iterator[tuple[BatchRequest, list[RequestOutput]]]:
    """Each request as its last prompt is answered, with the outputs of its prompts in their order."""
    if not prompts:
        return
    unfinished: dict[int, dict[int, RequestOutput]] = {}  # line -> place -> output
    token_ids, params = [prompt.token_ids for prompt in prompts], [prompt.params for prompt in prompts]
    for index, output in llm.generate_as_completed(token_ids, params, on_progress=on_progress, recorder=recorder):
        request, at = prompts[index].request, prompts[index].at
        outputs = unfinished.setdefault(request.line, {})
        outputs[at] = output
        if len(outputs) == len(request.prompts):
            del unfinished[request.line]
            yield request, [outputs[i] for i in range(len(outputs))]


def read_requests(path: Path, chat_max_tokens: int) -> tuple[list[BatchRequest], list[LineError]]:
    """Every line that is not blank, as a request or as an error. Raises OSError or ValueError as `read_lines`."""
    requests: list[BatchRequest] = []
    errors: list[LineError] = []
    line_of: dict[str, int] = {}
    for line, data in enumerate(read_lines(path), start=1):
        if not data.strip():
            continue
        try:
            requests.append(parse_line(data.rstrip(b"\r\n"), line, line_of, chat_max_tokens=chat_max_tokens))
        except LineError as error:
            errors.append(error)
    return requests, errors


class PromptReader(Protocol):
    """The part of `LLM` that makes token ids of prompts and says which it takes."""

    def tokenize(self, texts: list[str]) -> list[list[int]]: ...
    def apply_chat_template(self, messages: Sequence[Message], **options: Any) -> list[int]: ...
    def check_request(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> None: ...


def tokenize(reader: PromptReader, request: BatchRequest, seed: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Token ids and parameters of the request's prompts. Raises LineError where one could never run."""
    try:
        token_ids = [token_ids_of(reader, prompt) for prompt in request.prompts]
        params = [request.seeded_params(at, seed) for at in range(len(token_ids))]
        for ids, p in zip(token_ids, params, strict=True):
            reader.check_request(ids, p)
    except ValueError as error:
        param = "body.messages" if request.is_chat else "body.prompt"
        raise LineError("invalid_prompt", param, str(error)).at(request.line, request.custom_id) from None
    return token_ids, params


def token_ids_of(reader: PromptReader, prompt: BatchPrompt) -> list[int]:
    if isinstance(prompt, Conversation):
        return reader.apply_chat_template(prompt.messages, **prompt.template_options)
    if isinstance(prompt, str):
        return reader.tokenize([prompt])[0]
    return prompt
