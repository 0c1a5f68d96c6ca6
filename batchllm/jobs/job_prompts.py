"""The prompts of a job while it runs: their token ids, and of their lines what the answers will need, in a few bytes
each."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import NamedTuple

from batchllm.jobs.line import AnswerForm, BatchRequest, LineKind
from batchllm.jobs.reading import TokenizedLine
from batchllm.jobs.spool import PromptSpool
from batchllm.sampling_params import SamplingParams

KNOWN_TERMS = 1024  # that lines may share


class _Terms(NamedTuple):
    """What most lines of a job have in common."""

    kind: LineKind
    model: str | None
    params: SamplingParams
    form: AnswerForm


class JobPrompts:
    """Prompts are numbered as they are added, and so are their lines."""

    def __init__(self) -> None:
        self.token_ids = PromptSpool()  # by prompt
        self.params: list[SamplingParams] = []  # by prompt
        self._first_prompt = array("q", [0])  # by line
        self._line_numbers = array("q")
        self._custom_ids = bytearray()  # in UTF-8, one after the other
        self._custom_id_ends = array("q", [0])
        self._terms: list[_Terms] = []
        self._terms_of = array("q")  # by line
        # By endpoint, model, id of the parameters, and form.
        self._known_terms: dict[tuple[str, str | None, int, AnswerForm], int] = {}

    def add(self, line: TokenizedLine) -> None:
        request = line.request
        self.params += line.params
        for ids in line.token_ids:
            self.token_ids.append(ids)
        self._first_prompt.append(len(self.params))
        self._line_numbers.append(request.line)
        self._custom_ids += request.custom_id.encode()
        self._custom_id_ends.append(len(self._custom_ids))
        self._terms_of.append(self._shared(_Terms(request.kind, request.model, request.params, request.form)))

    def _shared(self, terms: _Terms) -> int:
        key = terms.kind.url, terms.model, id(terms.params), terms.form
        if (known := self._known_terms.get(key)) is not None:
            return known
        if len(self._known_terms) >= KNOWN_TERMS:
            self._known_terms.clear()
        self._known_terms[key] = len(self._terms)
        self._terms.append(terms)
        return len(self._terms) - 1

    def __len__(self) -> int:
        return len(self.params)

    @property
    def num_lines(self) -> int:
        return len(self._line_numbers)

    def place_of(self, prompt: int) -> tuple[int, int]:
        """Its line, and its place among the line's prompts."""
        if len(self.params) == self.num_lines:  # one each
            return prompt, 0
        line = bisect_right(self._first_prompt, prompt) - 1
        return line, prompt - self._first_prompt[line]

    def num_prompts(self, line: int) -> int:
        return len(self.of_line(line))

    def of_line(self, line: int) -> range:
        """Its prompts."""
        return range(self._first_prompt[line], self._first_prompt[line + 1])

    def line_number(self, line: int) -> int:
        """In the input, from 1."""
        return self._line_numbers[line]

    def request(self, line: int) -> BatchRequest:
        """As it was read, but for its prompts."""
        kind, model, params, form = self._terms[self._terms_of[line]]
        custom_id = self._custom_ids[self._custom_id_ends[line] : self._custom_id_ends[line + 1]].decode()
        return BatchRequest(self._line_numbers[line], custom_id, kind, model, (), params, form=form)
