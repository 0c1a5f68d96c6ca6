"""Separates a model's reasoning from its answer by the tags around it."""

from __future__ import annotations

from typing import NamedTuple


class ReasoningTags(NamedTuple):
    begin: str
    end: str


THINK_TAGS = ReasoningTags("<think>", "</think>")


def split_reasoning(text: str, tags: ReasoningTags, *, is_open: bool) -> tuple[str | None, str | None]:
    """(reasoning, answer), without the tags. Reasoning is None if there is none; the answer is None if nothing follows
    the reasoning, which may have been cut short.

    is_open: the text continues reasoning that its prompt has begun.
    """
    if text.lstrip().startswith(tags.begin):
        text = text.lstrip().removeprefix(tags.begin)
    elif not is_open:
        return None, text
    reasoning, _, answer = text.partition(tags.end)
    return reasoning, answer or None
