"""The LRU policy, rewritten slowly from its rules: blocks are tuples of all tokens up to their end."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Sequence

from tests.simulate.ledger import Ledger

Content = tuple[Hashable, ...]


class LruReference:
    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        output_tokens: Sequence[int],
        *,
        kv_tokens: int,
        page_size: int,
        max_batch_tokens: int,
        max_num_seqs: int,
        is_sorted: bool,
        windows: Sequence[int],
    ) -> None:
        self.page_size, self.max_batch_tokens, self.max_num_seqs = page_size, max_batch_tokens, max_num_seqs
        self.ledger = Ledger(prompts, output_tokens, windows)
        self.kept = None if -1 in windows else max(*windows, 1)  # the last tokens, which the next row sees
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(kv_tokens // page_size))
        self.num_blocks = len(self.free)
        self.users: dict[int, int] = defaultdict(int)
        self.content: dict[int, Content] = {}  # of the blocks that can be found
        self.cached: dict[Content, list[int]] = defaultdict(list)  # oldest first
        self.ever_cached: set[Content] = set()
        self.blocks: dict[int, list[int | None]] = {}  # None: given back, because no later row sees it
        self.stored: dict[int, int] = {}
        order = range(len(prompts))
        self.waiting = sorted(order, key=lambda r: (list(prompts[r]), r)) if is_sorted else list(order)
        self.running: list[int] = []

    def run(self) -> Ledger:
        while self.running or self.waiting:
            self.step()
        return self.ledger

    def step(self) -> None:
        budget = self.max_batch_tokens
        has_preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            count = min(len(self.ledger.tokens(request)) - self.stored[request], budget)
            scheduled = True
            while not self.compute(request, count):
                victim = self.running.pop()
                self.give_back(victim)
                self.waiting.insert(0, victim)
                self.ledger.preemptions += 1
                has_preempted = True
                if victim == request:
                    scheduled = False
                    break
            if not scheduled:
                break
            budget -= count
            index += 1
        while not has_preempted and self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            count = self.start(request, budget)
            if count == 0:
                break
            self.running.append(self.waiting.pop(0))
            budget -= count
        self.ledger.end_step((self.num_blocks - len(self.free)) * self.page_size, len(self.running))
        for request in list(self.running):
            if self.stored[request] == len(self.ledger.tokens(request)) and self.ledger.emit(request):
                self.give_back(request)
                self.running.remove(request)

    def full_blocks(self, request: int, num_tokens: int) -> list[Content]:
        tokens = self.ledger.tokens(request)
        return [tuple(tokens[:end]) for end in range(self.page_size, num_tokens + 1, self.page_size)]

    def start(self, request: int, budget: int) -> int:
        length = len(self.ledger.tokens(request))
        lookup = self.full_blocks(request, length - 1)
        cached = {content for content in lookup if self.cached[content]}
        num_found, num_findable = self.num_hits(lookup, cached), self.num_hits(lookup, self.ever_cached)
        begin = num_found * self.page_size
        hidden = self.num_hidden_blocks(begin)
        hits = [self.cached[content][0] for content in lookup[hidden:num_found]]
        count = min(length - begin, budget)
        needed = -(-(begin + count) // self.page_size) - num_found
        if needed + sum(self.users[block] == 0 for block in hits) > len(self.free):
            return 0
        for block in hits:
            self.users[block] += 1
            self.free.pop(block, None)
        self.blocks[request], self.stored[request] = [None] * hidden + hits, begin
        self.ledger.admit(request, num_findable * self.page_size)
        assert self.compute(request, count)
        return count

    def num_hidden_blocks(self, num_tokens: int) -> int:
        """Of a request with so many tokens, the first ones that its next row does not see."""
        return 0 if self.kept is None else max(num_tokens - self.kept, 0) // self.page_size

    def num_hits(self, lookup: list[Content], cached: set[Content]) -> int:
        for end in range(len(lookup), 0, -1):
            if cached.issuperset(lookup[self.num_hidden_blocks(end * self.page_size) : end]):
                return end
        return 0

    def compute(self, request: int, count: int) -> bool:
        self.give_back(request, self.num_hidden_blocks(self.stored[request]))
        begin, end = self.stored[request], self.stored[request] + count
        blocks = self.blocks[request]
        needed = -(-end // self.page_size) - len(blocks)
        if needed > len(self.free):
            return False
        for _ in range(needed):
            block, _ = self.free.popitem(last=False)
            if block in self.content:
                self.cached[self.content.pop(block)].remove(block)
            self.users[block] = 1
            blocks.append(block)
        for block, content in zip(blocks, self.full_blocks(request, end), strict=False):
            if block is not None and block not in self.content:
                self.content[block] = content
                self.cached[content].append(block)
                self.ever_cached.add(content)
        self.ledger.compute(request, begin, end)
        self.stored[request] = end
        return True

    def give_back(self, request: int, end: int | None = None) -> None:
        """Its blocks before `end`; all, where it ends or gives way."""
        blocks = self.blocks[request]
        for index in reversed(range(len(blocks[:end]))):
            block, blocks[index] = blocks[index], None
            if block is None:
                continue
            self.users[block] -= 1
            if self.users[block] == 0:
                self.free[block] = None
