"""The radix policy, rewritten slowly from its rules: nodes hold tuples, and the whole queue is matched each time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from tests.simulate.ledger import Ledger

Tokens = tuple[Hashable, ...]


@dataclass(eq=False)
class Node:
    tokens: Tokens
    parent: Node | None
    children: list[Node] = field(default_factory=list)  # in order of creation
    locks: int = 0
    touched: int = 0

    def path(self) -> list[Node]:
        return [] if self.parent is None else [*self.parent.path(), self]

    def subtree(self) -> list[Node]:
        return [self, *(node for child in self.children for node in child.subtree())]


def shared_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


class RadixReference:
    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        output_tokens: Sequence[int],
        max_output_tokens: Sequence[int],
        *,
        kv_tokens: int,
        page_size: int,
        max_batch_tokens: int,
        max_running_requests: int,
        is_dfs: bool,
        windows: Sequence[int],
    ) -> None:
        self.pool, self.max_batch_tokens = kv_tokens, max_batch_tokens
        self.max_output_tokens, self.cap, self.is_dfs = max_output_tokens, max_running_requests, is_dfs
        self.ledger = Ledger(prompts, output_tokens, windows)
        self.root = Node((), None, locks=1)
        self.clock = 0
        self.ever: set[Tokens] = set()
        self.queue = list(range(len(prompts)))
        self.running: list[int] = []
        self.chunked: int | None = None
        self.stored: dict[int, int] = {}  # tokens with KV
        self.kept: dict[int, int] = {}  # of them, in the tree
        self.last: dict[int, Node] = {}
        self.returned: dict[int, tuple[int, int]] = {}  # retracted requests arrive anew
        self.is_full = False
        self.ratio = 0.7

    # The tree.

    def match(self, tokens: Sequence[Hashable], *, touches: bool = True) -> tuple[Node, int]:
        """Where the longest stored prefix ends, split there if need be, and its length."""
        if touches:
            self.clock += 1
        node, length = self.root, 0
        while True:
            child = next((c for c in node.children if shared_length(c.tokens, tokens[length:]) > 0), None)
            if child is None:
                return node, length
            if touches:
                child.touched = self.clock
            shared = shared_length(child.tokens, tokens[length:])
            if shared < len(child.tokens):
                upper = Node(child.tokens[:shared], node, [child], child.locks, child.touched)
                node.children[node.children.index(child)] = upper
                child.tokens, child.parent = child.tokens[shared:], upper
                child = upper
            node, length = child, length + shared

    def insert(self, tokens: Tokens) -> Node:
        node, length = self.match(tokens)
        if length < len(tokens):
            leaf = Node(tokens[length:], node, touched=self.clock)
            node.children.append(leaf)
            node = leaf
        self.ever.update(tokens[: end + 1] for end in range(len(tokens)))
        if self.is_dfs:
            for request in self.queue:
                self.match(self.ledger.tokens(request), touches=False)
        return node

    def lock(self, node: Node, change: int) -> None:
        for above in node.path():
            above.locks += change

    def wanted(self) -> dict[int, int]:
        """Waiting requests by the id of each node on their paths."""
        weights: dict[int, int] = {}
        if self.is_dfs:
            for request in self.queue:
                for node in self.match(self.ledger.tokens(request), touches=False)[0].path():
                    weights[id(node)] = weights.get(id(node), 0) + 1
        return weights

    def make_room(self, num_tokens: int) -> None:
        weights = self.wanted()
        while self.free() < num_tokens:
            leaves = [node for node in self.root.subtree() if not node.children and node.locks == 0]
            if not leaves:
                return
            oldest = min(leaves, key=lambda node: (weights.get(id(node), 0) > 0, node.touched))
            assert oldest.parent is not None
            oldest.parent.children.remove(oldest)

    def free(self) -> int:
        private = sum(self.stored[request] - self.kept[request] for request in self.stored)
        return self.pool - sum(len(node.tokens) for node in self.root.subtree()) - private

    def available(self) -> int:
        return self.free() + sum(len(node.tokens) for node in self.root.subtree() if node.locks == 0)

    # The scheduler.

    def run(self) -> Ledger:
        while self.queue or self.running or self.chunked is not None:
            if not self.prefill():
                self.decode()
        return self.ledger

    def reserve(self, request: int) -> int:
        return min(self.max_output_tokens[request] - self.ledger.num_outputs[request], 4096)

    def order_queue(self) -> None:
        if self.is_dfs:
            weights = self.wanted()
            at_node: dict[int, list[int]] = {}
            for request in sorted(self.queue, key=self.arrival):
                at_node.setdefault(id(self.match(self.ledger.tokens(request), touches=False)[0]), []).append(request)

            def visit(node: Node) -> list[int]:
                heavy = sorted(node.children, key=lambda child: -weights.get(id(child), 0))
                return [r for child in heavy for r in visit(child)] + at_node.get(id(node), [])

            self.queue = visit(self.root)
        elif len(self.queue) <= 128:
            unmatched: list[Tokens] = []
            keys = {}
            for request in self.queue:
                tokens = tuple(self.ledger.tokens(request))
                length = self.match(tokens)[1]
                keys[request] = -min(length, len(tokens) - 1)
                if length <= 32:
                    if any(shared_length(tokens, other) >= 32 for other in unmatched):
                        keys[request] = 1
                    else:
                        unmatched.append(tokens)
            self.queue.sort(key=lambda request: keys[request])

    def arrival(self, request: int) -> tuple[int, int]:
        return self.returned.get(request, (0, request))

    def prefill(self) -> bool:
        if (self.is_full or not self.queue) and self.chunked is None:
            return False
        allowed = self.cap - len(self.running)
        if allowed <= 0 and self.chunked is None:
            self.is_full = True
            return False
        self.order_queue()
        left = self.max_batch_tokens
        reserved = sum(self.reserve(request) * self.ratio for request in self.running)
        chunks: list[tuple[int, int]] = []
        goes_on = True

        def take(request: int, count: int, pending: int) -> None:
            nonlocal left, reserved
            chunks.append((request, count))
            left -= count
            reserved += count + (self.reserve(request) + 1 if count == pending else 0)

        if self.chunked is not None:
            pending = len(self.ledger.tokens(self.chunked)) - self.stored[self.chunked]
            count = min(pending, left, int((self.available() - reserved) // 1))
            goes_on = count == pending
            if count > 0:
                take(self.chunked, count, pending)
            else:
                goes_on = False
        for request in list(self.queue):
            if not goes_on:
                break
            if len(chunks) >= allowed:
                self.is_full = True
                break
            if left == 0:
                break
            tokens = self.ledger.tokens(request)
            node, length = self.match(tokens[:-1])
            pending = len(tokens) - length
            self.lock(node, 1)
            fits = pending + self.reserve(request) + 1 < self.available() - reserved
            if not fits and (self.running or chunks):
                self.lock(node, -1)
                self.is_full = True
                break
            prompt = tuple(self.ledger.prompts[request])[: len(tokens) - 1]
            findable = 0
            while findable < len(prompt) and prompt[: findable + 1] in self.ever:
                findable += 1
            self.ledger.admit(request, findable)
            self.stored[request] = self.kept[request] = length
            self.last[request] = node
            count = min(pending, left)
            if count < pending:
                self.chunked = request
            take(request, count, pending)
        if not chunks:
            return False
        self.make_room(sum(count for _, count in chunks))
        self.queue = [request for request in self.queue if request not in dict(chunks)]
        for request, count in chunks:
            self.compute(request, count)
        self.ledger.end_step(self.pool - self.available(), len(self.running) + len(chunks))
        for request, _ in chunks:
            self.end_prefill(request)
        return True

    def compute(self, request: int, count: int) -> None:
        self.ledger.compute(request, self.stored[request], self.stored[request] + count)
        self.stored[request] += count

    def end_prefill(self, request: int) -> None:
        if self.stored[request] < len(self.ledger.tokens(request)):
            return self.keep(request)
        if request == self.chunked:
            self.chunked = None
        kept = self.stored[request]
        if self.ledger.emit(request):
            return self.finish(request)
        assert kept == self.stored[request]
        self.running.append(request)
        self.keep(request)

    def keep(self, request: int) -> None:
        node = self.insert(tuple(self.ledger.tokens(request)[: self.stored[request]]))
        self.lock(node, 1)
        self.lock(self.last[request], -1)
        self.last[request] = node
        self.kept[request] = self.stored[request]

    def finish(self, request: int) -> None:
        self.keep(request)
        self.leave(request)

    def leave(self, request: int) -> None:
        self.lock(self.last.pop(request), -1)
        del self.stored[request], self.kept[request]
        self.is_full = False

    def decode(self) -> None:
        has_retracted = False
        while self.available() < len(self.running):
            victim = min(self.running, key=lambda r: (self.ledger.num_outputs[r], -len(self.ledger.prompts[r])))
            self.running.remove(victim)
            self.leave(victim)
            self.clock += 1
            self.returned[victim] = (1, self.clock)
            self.queue.append(victim)
            if self.is_dfs:
                self.match(self.ledger.tokens(victim))
            self.ledger.preemptions += 1
            has_retracted = True
        if not self.running:
            return
        if has_retracted:
            generated = sum(self.ledger.num_outputs[r] + 20 for r in self.running)
            self.ratio = min(1.0, generated / (sum(self.max_output_tokens[r] for r in self.running) + 1))
        else:
            self.ratio = max(self.ratio - (0.7 - 0.7 * 0.14) / 600, 0.7 * 0.14)
        self.make_room(len(self.running))
        for request in self.running:
            self.compute(request, 1)
        chunked = self.chunked is not None
        self.ledger.end_step(self.pool - self.available(), len(self.running) + chunked)
        for request in list(self.running):
            if self.ledger.emit(request):
                self.running.remove(request)
                self.finish(request)
