"""A job from an input file to an output file: every line is answered, or reported, exactly once.

An answer is written and flushed as its request completes, so a job that is killed keeps what it has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from batchllm.jobs.openai_batch import BatchPrompt, BatchRequest, Conversation, LineError, parse_line
from batchllm.jobs.openai_records import answer_record, error_record
from batchllm.outputs import JobProgress, RequestOutput
from batchllm.sampling_params import SamplingParams
from batchllm.tokenizer import Message

if TYPE_CHECKING:
    from batchllm.api import LLM

OnProgress = Callable[[JobProgress], None]
UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BatchFiles:
    input: Path
    output: Path
    errors: Path
    summary: Path | None = None

    def check(self) -> None:
        """Raises OSError or ValueError for files that no job can run with. Changes none of them."""
        check_files(self.input, {"output": self.output, "errors": self.errors, "summary": self.summary})


@dataclass(frozen=True)
class JobSummary:
    num_answered: int  # lines in the output file
    num_failed: int  # lines in the errors file
    stats: dict[str, Any]  # LLM.stats


class JobInterrupted(Exception):
    """The user stopped the job while it ran; the answers so far are in the output file."""


def run_batch_file(
    files: BatchFiles,
    load_llm: Callable[[], LLM],
    *,
    model_name: str,
    chat_max_tokens: int,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> JobSummary:
    """Answers every line of files.input. Nothing is written before the input is read and the model loaded.

    model_name: in the answers to requests that name no model.
    chat_max_tokens: for chat requests that name no limit.
    seed: makes, with the custom_id, the seed of a request that names none.

    Raises OSError or ValueError before anything is written; JobInterrupted for a KeyboardInterrupt after that.
    """
    files.check()
    requests, errors = read_requests(files.input, chat_max_tokens)
    llm = load_llm()
    if any(request.is_chat for request in requests):
        llm.check_chat_template()
    owners: list[tuple[BatchRequest, int]] = []  # of each prompt of the job: its request, and its place there
    prompts: list[list[int]] = []
    params: list[SamplingParams] = []
    for request in (line.with_defaults(llm.sampling_defaults) for line in requests):
        try:
            token_ids, request_params = tokenize(llm, request, seed)
        except LineError as error:
            errors.append(error)
            continue
        owners += [(request, at) for at in range(len(token_ids))]
        prompts += token_ids
        params += request_params

    try:
        num_answered = answer_all(files, llm, owners, prompts, params, errors, model_name, on_progress)
    except KeyboardInterrupt:
        raise JobInterrupted from None
    return JobSummary(num_answered, len(errors), llm.stats)


def answer_all(
    files: BatchFiles,
    llm: LLM,
    owners: list[tuple[BatchRequest, int]],
    prompts: list[list[int]],
    params: list[SamplingParams],
    errors: list[LineError],
    model_name: str,
    on_progress: OnProgress | None,
) -> int:
    """Writes the errors, then every answer as it completes; returns how many lines were answered."""
    with files.output.open("wb") as output_file, files.errors.open("wb") as errors_file:
        for line_error in sorted(errors, key=lambda error: error.line or 0):
            write_line(errors_file, error_record(line_error))
        num_answered = 0
        unfinished: dict[int, dict[int, RequestOutput]] = {}  # line -> place -> output
        for index, output in llm.generate_as_completed(prompts, params, on_progress=on_progress) if prompts else ():
            request, at = owners[index]
            outputs = unfinished.setdefault(request.line, {})
            outputs[at] = output
            if len(outputs) == len(request.prompts):
                del unfinished[request.line]
                in_order = [outputs[i] for i in range(len(outputs))]
                completions = [completion for output in in_order for completion in output.outputs]
                if failed := next((c for c in completions if c.finish_reason == "error"), None):
                    error = LineError("invalid_output", None, str(failed.stop_reason))
                    errors.append(error.at(request.line, request.custom_id))
                    write_line(errors_file, error_record(error))
                    continue
                write_line(output_file, answer_record(request, in_order, model_name))
                num_answered += 1
    return num_answered


def read_requests(path: Path, chat_max_tokens: int) -> tuple[list[BatchRequest], list[LineError]]:
    """Every line that is not blank, as a request or as an error."""
    requests: list[BatchRequest] = []
    errors: list[LineError] = []
    line_of: dict[str, int] = {}
    with path.open("rb") as file:
        for line, data in enumerate(file, start=1):
            data = data.removeprefix(UTF8_BOM) if line == 1 else data
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
    def apply_chat_template(self, messages: Sequence[Message]) -> list[int]: ...
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
        return reader.apply_chat_template(prompt.messages)
    if isinstance(prompt, str):
        return reader.tokenize([prompt])[0]
    return prompt


def write_line(file: BinaryIO, record: bytes) -> None:
    file.write(record)
    file.flush()


def check_files(input: Path, outputs: Mapping[str, Path | None]) -> None:
    """Raises OSError or ValueError where the input cannot be read, an output not written, or two are one file."""
    if not input.exists():
        raise FileNotFoundError(f"input {str(input)!r}: no such file")
    input.open("rb").close()
    taken = {input.resolve(): "input"}
    for name, path in outputs.items():
        if path is None:
            continue
        check_writable(name, path)
        if other := taken.get(path.resolve()):
            raise ValueError(f"{name} {str(path)!r}: is the {other} file")
        taken[path.resolve()] = name


def check_writable(name: str, path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{name} {str(path)!r}: is a directory")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{name} {str(path)!r}: no such directory {str(path.parent)!r}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{name} {str(path)!r}: not writable")
