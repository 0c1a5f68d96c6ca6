"""Turns the arguments in docstrings, a line "name: meaning" each, into lists on the API pages."""

import re
from typing import Any

from griffe import Extension, Object

NAMES = r"[a-z_]+(?:, [a-z_]+)*"


class ArgumentLists(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            paragraphs = obj.docstring.value.split("\n\n")
            obj.docstring.value = "\n\n".join(map(_as_list, paragraphs))


def _as_list(paragraph: str) -> str:
    if not re.match(rf"{NAMES}: ", paragraph):
        return paragraph
    return re.sub(rf"^({NAMES}): ", r"- `\1`: ", paragraph, flags=re.MULTILINE)
