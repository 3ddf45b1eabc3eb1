"""The calls of functions in an answer, told apart from its text as it comes."""

from __future__ import annotations

import json
import re
import secrets
import string
from dataclasses import dataclass

from llrun.requests.tool_forms import CALL_ID, ToolForm

OPENED = re.compile(r'\s*\{\s*"name"')
OPENING = ("{", '"name"')
SHORT = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Call:
    """`arguments`: a JSON object, as text."""

    id: str
    name: str
    arguments: str


class CallReader:
    """Reads an answer in a form: text is given on at once, a call when it is whole, nothing of one before.

    Space before a call belongs to it.
    """

    def __init__(self, form: ToolForm) -> None:
        self._form = form
        self._held = ""
        self._raw = ""  # what the call under way is written as
        self._inside = False
        self._first = True  # nothing but space has come
        self.calls = 0

    def push(self, text: str) -> list[str | Call]:
        """What is known now: texts and calls, in the order in which they came."""
        self._held += text
        found: list[str | Call] = []
        while True:
            went_on = self._read_call(found) if self._inside else self._read_text(found)
            if not went_on:
                return found

    def finish(self, cut: bool) -> list[str | Call]:
        """What was held back. `cut`: the answer was to go on; then half of a call is nothing, else it was no call."""
        found: list[str | Call] = []
        if self._inside and not self._complete(self._held, found) and not cut:
            self._tell(self._raw + self._held, found)
        elif not self._inside:
            self._tell(self._held, found)
        self._held = ""
        return found

    def _tell(self, text: str, found: list[str | Call]) -> None:
        if text and not (self.calls and text.isspace()):
            found.append(text)
        self._first = self._first and not text.strip()

    def _read_text(self, found: list[str | Call]) -> bool:
        """Whether a call begins in what is held; up to there, or to where one could begin, it is text."""
        span = self._call_begins()
        if span is None:
            shown = len(self._held) - self._kept()
            self._tell(self._held[:shown], found)
            self._held = self._held[shown:]
            return False
        start, stop = span
        text = self._held[:start].rstrip()
        self._tell(text, found)
        self._raw, self._held, self._inside = self._held[len(text) : stop], self._held[stop:], True
        return True

    def _call_begins(self) -> tuple[int, int] | None:
        """Where what begins a call starts and stops."""
        held, begin = self._held, self._form.begin
        if not self._form.only_first:
            start = held.find(begin)
            return (start, start + len(begin)) if start >= 0 else None
        lead = len(held) - len(held.lstrip())
        if self._first and held.startswith(begin, lead):
            return lead, lead + len(begin)
        return (lead, lead) if self._first and OPENED.match(held) else None

    def _kept(self) -> int:
        """How many characters at the end may belong to a call."""
        held, begin = self._held, self._form.begin
        if self._form.only_first:
            return len(held) if self._first and _could_open(held, begin) else 0
        longest = min(len(held), len(begin) - 1)
        overlap = next((count for count in range(longest, 0, -1) if held.endswith(begin[:count])), 0)
        text = held[: len(held) - overlap]
        return overlap + len(text) - len(text.rstrip())

    def _read_call(self, found: list[str | Call]) -> bool:
        """Whether a call, or a list of them, is whole in what is held."""
        end = self._form.end
        if not end:
            return self._held.rstrip().endswith(("}", "]")) and self._complete(self._held, found)
        stop = self._held.find(end)
        while stop >= 0:  # one in a text among the arguments is not the call's
            rest = self._held[stop + len(end) :]
            if self._complete(self._held[:stop], found):
                self._held = rest
                return True
            stop = self._held.find(end, stop + 1)
        return False

    def _complete(self, text: str, found: list[str | Call]) -> bool:
        """Whether `text` is calls, which are told then."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return False
        values = value if isinstance(value, list) else [value]
        key = self._form.arguments
        for each in values:
            if not (
                isinstance(each, dict)
                and isinstance(each.get("name"), str)
                and isinstance(each.get(key), dict)
            ):
                return False
        self._first = False
        for each in values:
            arguments = json.dumps(each[key], ensure_ascii=False)
            found.append(Call(_new_id(self._form.short_ids), each["name"], arguments))
            self.calls += 1
        self._held, self._inside = "", False
        return True


def _new_id(short: bool) -> str:
    if short:
        return "".join(secrets.choice(SHORT) for _ in CALL_ID)
    return f"call_{secrets.token_hex(12)}"


def _could_open(held: str, begin: str) -> bool:
    """Whether what has come so far may still turn out to be a call at an answer's beginning."""
    text = held.lstrip()
    if begin.startswith(text):
        return True
    brace, word = OPENING
    rest = text.removeprefix(brace).lstrip()
    return text.startswith(brace) and word.startswith(rest)
