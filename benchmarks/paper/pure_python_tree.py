"""Prefix identification as the paper's release does it, written anew from its description: the baseline to time.

A radix tree over tokens in plain Python, in which a prompt looks for its next child one child after another, and the
bottom-up pass "enlarge the first-level prefix", which counts leaves anew wherever it needs their number.
"""

from __future__ import annotations

from collections.abc import Sequence


class Node:
    """A run of tokens. A leaf has no children and stands for one prompt; it may be empty."""

    __slots__ = ("children", "tokens")

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self.children: list[Node] = []

    def num_leaves(self) -> int:
        return sum(child.num_leaves() for child in self.children) if self.children else 1


def build_tree(prompts: Sequence[Sequence[int]]) -> Node:
    root = Node([])
    for prompt in prompts:
        insert(root, prompt)
    return root


def insert(node: Node, prompt: Sequence[int]) -> None:
    while match := first_match(node, prompt):
        child, num_common = match
        prompt = prompt[num_common:]
        if num_common < len(child.tokens) or not child.children:
            split(child, num_common)
        node = child
    node.children.append(Node(prompt))


def first_match(node: Node, prompt: Sequence[int]) -> tuple[Node, int] | None:
    """The child that begins as the prompt does, and how many tokens they share."""
    for child in node.children:
        num_common = common_length(child.tokens, prompt)
        if num_common > 0:
            return child, num_common
    return None


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    length = 0
    while length < len(a) and length < len(b) and a[length] == b[length]:
        length += 1
    return length


def split(node: Node, length: int) -> None:
    """Keeps the first tokens; the rest, with all that hung on the node, becomes its child."""
    rest = Node(node.tokens[length:])
    rest.children = node.children
    node.tokens = node.tokens[:length]
    node.children = [rest]


def enlarge_first_level(node: Node) -> None:
    """Hands a grandchild up where what its readers share exceeds computing its parent's tokens once more."""
    for child in list(node.children):
        if not child.children:
            continue
        enlarge_first_level(child)
        for grandchild in list(child.children):
            if grandchild.children and (grandchild.num_leaves() - 1) * len(grandchild.tokens) > len(child.tokens):
                child.children.remove(grandchild)
                hand_up(grandchild, child, node)
        if len(child.children) <= 1:
            node.children.remove(child)
            for last in child.children:
                hand_up(last, child, node)


def hand_up(grandchild: Node, child: Node, node: Node) -> None:
    grandchild.tokens = [*child.tokens, *grandchild.tokens]
    node.children.append(grandchild)


def saved_tokens(root: Node) -> int:
    """Prompt tokens that need not be computed: every child of the root with several leaves is one group."""
    return sum((child.num_leaves() - 1) * len(child.tokens) for child in root.children if child.children)
