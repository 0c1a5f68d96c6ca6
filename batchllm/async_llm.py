"""`AsyncLLM`: one model for many concurrent callers, each of whom sees its answer grow."""

from __future__ import annotations

import asyncio
import itertools
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from batchllm.answers import PendingAnswer
from batchllm.engine.engine import Engine
from batchllm.engine.engine_requests import EngineRequest, StepOutput
from batchllm.loading import LoadedModel
from batchllm.options import EngineOptions
from batchllm.outputs import CompletionOutput, RequestOutput
from batchllm.requests import Prompt
from batchllm.sampling.growing_text import GrowingText
from batchllm.sampling.rules import LogitsRule
from batchllm.sampling_params import SamplingParams


class AsyncLLM:
    """One engine for any number of callers. It runs in its own thread while anybody waits for it.

    model, rules, options: as LLM takes them. Nothing needs to be closed: the thread ends with the process or with
    the last reference to this object.
    """

    def __init__(self, model: str | Path, *, rules: Sequence[LogitsRule] = (), **options: Any) -> None:
        self._loaded = LoadedModel.from_directory(model, EngineOptions(**options), rules)
        self._loop = EngineLoop(self._loaded.engine)
        self._numbers = itertools.count()
        self._used_ids: set[str] = set()  # of unfinished requests
        thread = threading.Thread(target=_run, args=[weakref.ref(self._loop), self._loop.mail], daemon=True)
        thread.start()
        weakref.finalize(self, _stop, self._loop.mail, thread)  # at process exit at the latest

    @property
    def device_choice(self) -> str:
        """See LLM.device_choice."""
        return str(self._loaded.device_choice)

    @property
    def num_live(self) -> int:
        """Completions that are waiting or running."""
        return self._loop.engine.num_live

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None, request_id: str | None = None
    ) -> AsyncIterator[RequestOutput]:
        """Yields the answer so far each time it has grown; the last output is `finished`. Stopping the iteration, or
        cancelling it, aborts the request.

        prompt: text, token ids, or a dict with either, as for LLM.generate. sampling_params: by default those of
        LLM.get_default_sampling_params. request_id: of the outputs; by default a number.

        Raises ValueError for a prompt that could never run or a request_id that is in use. If a step of the engine
        fails, raises its exception; the engine then takes new requests.
        """
        params = sampling_params or self._loaded.default_sampling_params()
        number = next(self._numbers)
        name = str(number) if request_id is None else request_id
        if name in self._used_ids:
            raise ValueError(f"request_id: {name!r} is in use")
        self._used_ids.add(name)
        caller = None
        try:
            (token_ids,), (text,) = self._loaded.parse_prompts([prompt])
            await asyncio.to_thread(self._loaded.check_request, token_ids, params)  # a grammar takes a while
            request = self._loaded.engine_request(token_ids, params, f"{self._loaded.options.seed}/async/{number}")
            answer = GrowingAnswer(PendingAnswer(name, text, token_ids, params, self._loaded.tokenizer))
            caller = Caller(request, asyncio.get_running_loop())
            self._loop.mail.send(caller)
            while True:
                output = answer.take(await caller.news())
                if output is not None:
                    yield output
                    if output.finished:
                        return
        finally:
            self._used_ids.discard(name)
            if caller is not None:
                self._loop.mail.send(partial(_abort, caller))


@dataclass(eq=False)
class Caller:
    """A caller that waits for a request, and its event loop."""

    request: EngineRequest
    event_loop: asyncio.AbstractEventLoop
    ids: range = range(0)  # of its completions in the engine, once it has them
    left: bool = False
    _news: deque[Any] = field(default_factory=deque)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def news(self) -> list[Any]:
        """The news since the last call: (sample, token) or (sample, Finished). Raises the exception that ended the
        request early, if any."""
        await self._arrived.wait()
        self._arrived.clear()
        told = []
        while self._news:  # one at a time: the engine's thread may add some meanwhile
            told.append(self._news.popleft())
        if told and isinstance(told[-1], BaseException):
            raise told[-1]
        return told

    def tell(self, items: list[Any]) -> None:
        """From the engine's thread."""
        self._news.extend(items)
        with suppress(RuntimeError):  # the event loop is closed, and so is its caller
            self.event_loop.call_soon_threadsafe(self._arrived.set)


class Mailbox:
    """Messages to the engine's thread: a Caller to add, or something to do with the loop."""

    def __init__(self) -> None:
        self._items: deque[Caller | Callable[[EngineLoop], None]] = deque()
        self._has_some = threading.Condition()
        self._closed = False

    def send(self, item: Caller | Callable[[EngineLoop], None]) -> None:
        with self._has_some:
            self._items.append(item)
            self._has_some.notify()

    def close(self) -> None:
        with self._has_some:
            self._closed = True
            self._has_some.notify()

    def take(self, *, wait: bool) -> list[Caller | Callable[[EngineLoop], None]] | None:
        """The messages so far; `wait` blocks until there is one. None once closed."""
        with self._has_some:
            while wait and not self._items and not self._closed:
                self._has_some.wait()
            items = list(self._items)
            self._items.clear()
            return None if self._closed else items


class EngineLoop:
    """The engine and the callers of its requests. Only the engine's thread uses it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.mail = Mailbox()
        self.callers: dict[int, Caller] = {}  # by request of the engine

    def turn(self, items: list[Caller | Callable[[EngineLoop], None]]) -> None:
        """Handles the messages, adding all new requests together, and makes a step."""
        new = [item for item in items if isinstance(item, Caller)]
        try:
            for item in items:
                if not isinstance(item, Caller):
                    item(self)
            self._add([caller for caller in new if not caller.left])
            step = self.engine.step()
        except BaseException as error:  # the engine is empty now
            for caller in {*self.callers.values(), *new}:
                caller.tell([error])
            self.callers.clear()
            return
        if step is not None:
            self._tell(step)

    def _add(self, callers: list[Caller]) -> None:
        if not callers:
            return
        try:
            all_ids = self.engine.add([caller.request for caller in callers])
        except Exception as error:
            if len(callers) == 1:
                callers[0].tell([error])
                return
            for caller in callers:  # the others are not to blame
                self._add([caller])
            return
        for caller, ids in zip(callers, all_ids, strict=True):
            caller.ids = ids
            self.callers |= dict.fromkeys(ids, caller)

    def _tell(self, step: StepOutput) -> None:
        ended = {finished.request_id: finished for finished in step.finished}
        told: dict[Caller, list[Any]] = {}
        for request_id, token in zip(step.request_ids.tolist(), step.token_ids.tolist(), strict=True):
            caller = self.callers[request_id]
            sample = request_id - caller.ids.start
            told.setdefault(caller, []).append((sample, ended.get(request_id, token)))
            if request_id in ended:
                del self.callers[request_id]
        for caller, items in told.items():
            caller.tell(items)


class GrowingAnswer:
    """A caller's view of its request: the state of each completion."""

    def __init__(self, pending: PendingAnswer) -> None:
        self._pending = pending
        self._token_ids: dict[int, list[int]] = {sample: [] for sample in range(pending.params.n)}
        self._texts: dict[int, GrowingText] = {}

    def take(self, news: list[Any]) -> RequestOutput | None:
        """The answer after this news; None if there is none yet."""
        output: RequestOutput | None = None
        for sample, item in news:
            if isinstance(item, int):
                self._append(sample, item)
            else:
                del self._token_ids[sample]
                output = self._pending.add(sample, item)
        if output is not None or not news:
            return output
        return self._pending.answer(finished=False, unfinished=[self._completion(sample) for sample in self._token_ids])

    def _append(self, sample: int, token: int) -> None:
        self._token_ids[sample].append(token)
        if sample not in self._texts:
            self._texts[sample] = GrowingText(self._pending.decode, self._pending.token_ids)
        self._texts[sample].append(token)

    def _completion(self, sample: int) -> CompletionOutput:
        text = self._texts[sample].text if sample in self._texts else ""
        return CompletionOutput(sample, text, list(self._token_ids[sample]), 0.0, None)


def _abort(caller: Caller, loop: EngineLoop) -> None:
    caller.left = True
    for request_id in caller.ids:
        loop.callers.pop(request_id, None)
    loop.engine.abort(caller.ids)


def _stop(mail: Mailbox, thread: threading.Thread) -> None:
    """Waits for the running step: no thread may be inside native code when the interpreter exits."""
    mail.close()
    if thread is not threading.current_thread():
        thread.join()


def _run(loop: weakref.ref[EngineLoop], mail: Mailbox) -> None:
    """The engine's thread. It holds the loop only while there is something to do."""
    is_busy = False
    while True:
        items = mail.take(wait=not is_busy)
        owner = loop()
        if items is None or owner is None:
            return
        owner.turn(items)
        is_busy = owner.engine.num_live > 0
        del owner
