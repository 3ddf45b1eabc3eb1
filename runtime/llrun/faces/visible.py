"""Answers as a terminal may have them: control characters are shown, not obeyed."""

from __future__ import annotations

import re

from llrun.errors import printable

# C0, DEL and C1: what terminals act on. Of an answer, newlines and tabs are its own.
IN_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# JSON escapes C0 itself, but neither DEL nor C1.
IN_JSON = re.compile("[\x7f-\x9f]")


def text(said: str) -> str:
    """An answer's text: its newlines and tabs stay."""
    return IN_TEXT.sub(lambda match: printable(match[0]), said)


def json(encoded: str) -> str:
    """JSON whose strings hold no control character as it is; it means the same."""
    return IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", encoded)
