"""Text from elsewhere as a terminal may have it: control characters are shown, not obeyed."""

from __future__ import annotations

import re

# C0, DEL and C1: what terminals act on. Of an answer, newlines and tabs are its own.
IN_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What would end a line or turn it around besides: a message is one line, and reads in one direction.
IN_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# JSON escapes C0 itself, but neither DEL nor C1.
IN_JSON = re.compile("[\x7f-\x9f]")
NAMES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def text(said: str) -> str:
    """An answer's text: its newlines and tabs stay."""
    return IN_TEXT.sub(_shown, said)


def line(said: str) -> str:
    """A message: one line, whatever is in it."""
    return IN_LINE.sub(_shown, said)


def json(encoded: str) -> str:
    """JSON whose strings hold no control character as it is; it means the same."""
    return IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", encoded)


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    return NAMES.get(match[0]) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
