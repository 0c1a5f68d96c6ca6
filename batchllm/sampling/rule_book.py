"""Which rules an engine has, and which of them are in use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from batchllm.request_table import LiveRequest, RequestTable
from batchllm.sampling.rules import LogitsRule
from batchllm.sampling_params import SamplingParams


class RuleBook:
    """Rules that concern no live request cost a step nothing."""

    def __init__(self, rules: Sequence[LogitsRule], requests: RequestTable) -> None:
        self._rules = rules
        self._num_requests: Counter[tuple[int, ...]] = Counter()  # live ones, by their rules
        self.in_use: list[LogitsRule] = []  # in their order
        for rule in rules:
            rule.bind(requests)

    def concerning(self, params: SamplingParams) -> tuple[int, ...]:
        """Indices of the rules that requests with these parameters are added to."""
        return tuple(place for place, rule in enumerate(self._rules) if rule.concerns_params(params))

    def add(self, request: LiveRequest, places: tuple[int, ...]) -> None:
        """Raises ValueError if a rule refuses the request, which must then be forgotten like any other."""
        request.rules = places
        self._num_requests[places] += 1
        if self._num_requests[places] == 1:
            self._find_those_in_use()
        for place in places:
            self._rules[place].add(request)

    def forget(self, requests: Sequence[LiveRequest]) -> None:
        for request in requests:
            for place in request.rules:
                self._rules[place].forget(request)
        for places, number in Counter(request.rules for request in requests).items():
            self._num_requests[places] -= number
            if not self._num_requests[places]:
                del self._num_requests[places]
                self._find_those_in_use()

    def _find_those_in_use(self) -> None:
        places = {place for places in self._num_requests for place in places}
        self.in_use = [self._rules[place] for place in sorted(places)]
