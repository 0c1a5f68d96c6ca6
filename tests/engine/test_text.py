"""What others wrote reaches a terminal as text, never as commands."""

import pytest

from batchllm.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b31m\x07", "\\x9b31m\\x07"),
        ("\u202eexe.txt", "\\u202eexe.txt"),
        ("line\u2028paragraph", "line\\u2028paragraph"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_a_terminal_obeys_or_hides_is_escaped(text, shown):
    assert printable(text) == shown


def test_letters_of_every_script_stay():
    assert printable("Zürich 東京 مرحبا 🙂 \\x1b") == "Zürich 東京 مرحبا 🙂 \\x1b"
