"""The tree of the common beginnings of prompts."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchllm.reports.prefix_tree import MIN_SHARED_CHARS, Row, prefix_rows, shared_length

WORDS = st.lists(st.sampled_from(["a ", "bb ", "ccc ", "x" * 35 + " ", "日" * 45]), max_size=12).map("".join)
DOCUMENTS = [f"{'word ' * 20}{name} {'more ' * 20}" for name in ("one", "two")]


def paths(rows: list[Row]) -> dict[int, list[int]]:
    """Of each prompt the rows from the top down to it."""
    found: dict[int, list[int]] = {}
    above: list[int] = []
    for r, row in enumerate(rows):
        while above and rows[above[-1]].end <= r:
            above.pop()
        if row.prompt is None:
            above.append(r)
        else:
            assert row.prompt not in found
            found[row.prompt] = [*above, r]
    return found


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(WORDS, max_size=12))
def test_every_text_stands_once_below_all_that_it_shares(texts: list[str]) -> None:
    rows = prefix_rows(texts)
    path_of = paths(rows)
    assert path_of.keys() == set(range(len(texts)))
    for prompt, path in path_of.items():
        assert "".join(rows[r].text for r in path) == texts[prompt]
    for r, row in enumerate(rows):
        below = [prompt for prompt, path in path_of.items() if r in path]
        assert row.num_prompts == len(below)
        assert row.end == r + 1 + sum(r in path[:-1] for path in all_paths(rows))
        if row.prompt is None:
            assert len(below) >= 2
            assert len(row.text) >= MIN_SHARED_CHARS
    for a, b in pairwise(sorted(range(len(texts)), key=texts.__getitem__)):
        told = sum(len(rows[r].text) for r in set(path_of[a]) & set(path_of[b]))
        assert shared_length(texts[a], texts[b]) - told < MIN_SHARED_CHARS


def all_paths(rows: list[Row]) -> list[list[int]]:
    return [[above for above in range(r) if rows[above].end > r] + [r] for r in range(len(rows))]


def test_questions_on_documents_stand_below_them() -> None:
    rows = prefix_rows([DOCUMENTS[i % 2] + question for i, question in enumerate(["Who?", "Why?", "Where?", "When?"])])
    kinds = [(row.prompt is None, row.num_prompts, row.text) for row in rows]
    assert kinds[0] == (True, 4, "word " * 20)
    assert kinds[1] == (True, 2, "one " + "more " * 20)
    assert [text for _, _, text in kinds[2:4]] == ["Where?", "Who?"]
    assert kinds[4][1:] == (2, "two " + "more " * 20)


def test_equal_texts_share_all_of_themselves() -> None:
    rows = prefix_rows([DOCUMENTS[0].strip()] * 3)
    assert [(row.num_prompts, row.text) for row in rows] == [(3, DOCUMENTS[0].strip()), (1, ""), (1, ""), (1, "")]


@pytest.mark.parametrize(
    ("a", "b", "shared"),
    [
        ("", "", 0),
        ("one two", "one twin", 4),
        ("one two", "one two", 7),
        ("one two", "one two three", 4),
        ("日" * 100 + "一", "日" * 100 + "二", 100),  # no end of a word far and wide
    ],
)
def test_a_shared_text_ends_with_a_word(a: str, b: str, shared: int) -> None:
    assert shared_length(a, b) == shared_length(b, a) == shared
