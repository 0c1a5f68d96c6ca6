"""The jobs that one engine runs side by side."""

from __future__ import annotations

import gc
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import nullcontext
from weakref import WeakValueDictionary

from batchllm.engine.engine import Engine
from batchllm.engine.engine_requests import EngineRequest, Finished
from batchllm.engine.recorder import RunRecorder
from batchllm.garbage import never_collected
from batchllm.outputs import JobProgress

SECONDS_BETWEEN_PROGRESS = 0.1


class JobDriver:
    """Steps the engine for whichever job waits, and tells each job which of its requests ended."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # By the engine's request ids: where finished ones go. A job that is gone, however it ended, is not waiting.
        self._waiting: WeakValueDictionary[range, deque[Finished]] = WeakValueDictionary()

    def run(
        self,
        requests: Iterable[EngineRequest],
        on_progress: Callable[[JobProgress], None] | None = None,
        recorder: RunRecorder | None = None,
    ) -> Generator[tuple[int, int, Finished], None, None]:
        """Yields each completion as it ends, with the index of its request and its number. Closing the iterator aborts
        the others."""
        ids = range(0)
        begins = array("q")  # the first id, by request
        num_left = 0
        ended: deque[Finished] = deque()
        next_progress_s = 0.0
        freezes = gc.get_freeze_count() == 0  # otherwise a caller's frozen objects would thaw with ours
        self._abort_what_nobody_waits_for()
        try:
            self._engine.recorder = recorder or self._engine.recorder
            with never_collected() if freezes else nullcontext():
                for of_request in self._engine.add(list(requests)):
                    begins.append(of_request.start)
                    num_left += len(of_request)
            if begins:
                ids = range(begins[0], begins[0] + num_left)
                self._waiting[ids] = ended
            while num_left:
                if not ended:
                    self._step()
                if on_progress and (ended or self._engine.elapsed_s >= next_progress_s):
                    next_progress_s = self._engine.elapsed_s + SECONDS_BETWEEN_PROGRESS
                    on_progress(self._engine.progress)
                while ended:
                    finished = ended.popleft()
                    num_left -= 1
                    index = finished.request_id - ids.start  # of the completion
                    if len(begins) < len(ids):
                        index = bisect_right(begins, finished.request_id) - 1
                    yield index, finished.request_id - begins[index], finished
        finally:
            self._waiting.pop(ids, None)
            self._abort_what_nobody_waits_for()
            if recorder and self._engine.recorder is recorder:
                self._engine.recorder = None
            if freezes:
                gc.unfreeze()

    def _abort_what_nobody_waits_for(self) -> None:
        """The rest of a job that ended early, be it by Ctrl-C before it knew its ids."""
        live = self._engine.requests.ids()
        self._engine.abort([i for i in live if not any(i in ids for ids in self._waiting)])

    def _step(self) -> None:
        """One step for all running jobs, each of which is told which of its requests ended."""
        try:
            step = self._engine.step()
        except BaseException:
            self._waiting.clear()  # the engine is empty
            raise
        if step is None:
            raise RuntimeError("the requests of this job were dropped: a step of another job failed")
        for finished in step.finished:
            next(ended for ids, ended in self._waiting.items() if finished.request_id in ids).append(finished)
