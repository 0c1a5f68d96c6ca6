"""The code on the cluster: an engine that answers one parcel after the other."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from batchllm.engine.recorder import RunRecorder
from batchllm.jobs.answering import answers, is_cut, what_is_wrong
from batchllm.jobs.earlier import read_answered
from batchllm.jobs.files import RecordFile
from batchllm.jobs.job_prompts import JobPrompts
from batchllm.jobs.line import BatchRequest, LineError
from batchllm.jobs.openai_records import answer_record
from batchllm.jobs.parcels import unpack_lines
from batchllm.jobs.parts import part_path
from batchllm.jobs.reading import TokenizedLine, checked
from batchllm.llm import LLM
from batchllm.outputs import JobProgress, RequestOutput

Answer = list[RequestOutput] | LineError


class ParcelResult(msgspec.Struct):
    """A replica's report on a parcel; the answers are on shared storage."""

    parcel: int
    num_other_model: int = 0  # among the answers of the replica that finished it
    num_cut: int = 0
    failures: list[LineError] = []
    stopped_by: str = ""  # an exception; some lines are still to be answered
    fatal: str = ""  # why no line can be answered: no model, no disk
    stats: dict[str, Any] = {}  # LLM.stats


class Replica:
    """model: a directory or hub id that every node finds. engine: options of LLM."""

    def __init__(self, model: str, engine: dict[str, Any]) -> None:
        self.fatal = ""
        try:
            self.llm = LLM(model, **engine)
        except (OSError, ValueError, MemoryError) as error:  # if raised here, Ray would retry
            self.fatal = f"a replica did not start: {error}"

    def answers(
        self, lines: list[TokenizedLine], on_step: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[BatchRequest, Answer]]:
        """Yields each line with its answer or its error."""
        prompts = JobPrompts()
        for line, found in zip(lines, checked(lines, self.llm), strict=True):
            if isinstance(found, LineError):
                yield line.request, found
            else:
                prompts.add(found)

        def after_step(progress: JobProgress) -> None:
            on_step()

        for request, outputs in answers(self.llm, prompts, after_step, RunRecorder()):
            yield request, what_is_wrong(request, outputs) or outputs


class JobReplica(Replica):
    """Answers each parcel into a file of its own. directory: on storage that the driver and all nodes share."""

    def __init__(self, model: str, engine: dict[str, Any], directory: str, job_id: str, model_name: str) -> None:
        super().__init__(model, engine)
        self._directory, self._job_id, self._model_name = Path(directory), job_id, model_name

    def __call__(self, parcel: dict[str, Any]) -> ParcelResult:
        """parcel: number, and lines as pack_lines makes them."""
        result = ParcelResult(parcel["number"], fatal=self.fatal)
        if not result.fatal:
            with told(result):
                self._answer(unpack_lines(parcel["lines"]), result)
        return result

    def _answer(self, lines: list[TokenizedLine], result: ParcelResult) -> None:
        path = part_path(self._directory, result.parcel)
        answered = array("q")
        num_bytes = read_answered(path, self._job_id, answered)  # by a replica that died
        done = frozenset(answered)
        left = [line for line in lines if line.request.line not in done]
        self.llm.stats = {}
        with RecordFile("part", path, overwrite=True) as part:
            part.cut(num_bytes)
            for request, answer in self.answers(left, part.sync_if_due):
                if isinstance(answer, LineError):
                    result.failures.append(answer)
                    continue
                part.write(answer_record(request, answer, self._model_name, self._job_id))
                result.num_other_model += request.names_another(self._model_name)
                result.num_cut += is_cut(answer)
        result.stats = self.llm.stats


@contextmanager
def told(result: ParcelResult) -> Iterator[None]:
    """Makes an exception part of the result. A locked file belongs to a replica that Ray considers dead."""
    try:
        yield
    except BlockingIOError as error:
        result.stopped_by = str(error)
    except OSError as error:
        result.fatal = str(error)
    except Exception as error:
        result.stopped_by = f"{type(error).__name__}: {error}"
