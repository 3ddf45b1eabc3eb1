"""Reading a hostile JSON file strictly, and checked access to what it holds.

Nothing here raises on a wrong value: every fault is noted in `Faults` with its place, so that all are told at once.
"""

from __future__ import annotations

import json
import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llcompile.ir.errors import CompileError

MAX_FILE_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_DIGITS = 30
LARGEST = 1e18


class Record(dict[str, Any]):
    """A JSON object that remembers which keys the text gave more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs]
        self.duplicates = tuple(sorted({key for key in keys if keys.count(key) > 1}))


class Faults:
    """Collects faults as `place: what is wrong and the remedy`, in the order they are found."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, place: str, text: str) -> None:
        self.texts.append(f"{place}: {text}" if place else text)


def read_json(path: Path, what: str, code: str) -> Any:
    """The value in the JSON file at `path`; `what` names the file's role in messages.

    Raises CompileError `code` when the file is absent, unreadable, over 1 MB, not UTF-8, or not JSON.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CompileError(
            code, f"cannot read {what} {path}: {reason}. Give the path of a readable file"
        ) from error
    if len(raw) > MAX_FILE_BYTES:
        limit = f"it is larger than the {MAX_FILE_BYTES} bytes allowed"
        raise CompileError(code, f"{what} {path}: {limit}. Check that this is the right file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CompileError(
            code, f"{what} {path}: not UTF-8 at byte {error.start}. Save it as UTF-8"
        ) from error
    return parse_json(text, f"{what} {path}", code)


def parse_json(text: str, source: str, code: str) -> Any:
    """The value of a JSON text; objects are Records. Raises CompileError `code` on malformed or too deep text."""
    if _depth(text) > MAX_DEPTH:
        raise CompileError(
            code, f"{source}: nested deeper than {MAX_DEPTH} levels. Use the layout in the README"
        )
    try:
        return json.loads(text, object_pairs_hook=Record, parse_int=_integer)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise CompileError(
            code, f"{source}: not JSON at {where}: {error.msg}. Correct the text there"
        ) from error


def _integer(text: str) -> int | float:
    """An int, or infinity for one of absurd length (int() refuses thousands of digits)."""
    return int(text) if len(text) <= MAX_DIGITS else math.inf


def _depth(text: str) -> int:
    """Deepest nesting of brackets outside strings; counted first, as the parser recurses."""
    depth = deepest = 0
    inside = escaped = False
    for char in text:
        if inside:
            inside = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            inside = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def shown(value: Any) -> str:
    """A value as an error message shows it: JSON, cut short."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def suggestion(word: str, known: tuple[str, ...]) -> str:
    """`; did you mean "x"?` for the nearest known word, or an empty text."""
    near = get_close_matches(word, known, n=1)
    return f'; did you mean "{near[0]}"?' if near else ""


def record(faults: Faults, value: Any, place: str, known: tuple[str, ...]) -> Record | None:
    """`value` if it is an object; duplicate and unknown keys are noted."""
    if not isinstance(value, Record):
        faults.add(place, f"expected an object, found {shown(value)}. Write {{...}}")
        return None
    prefix = f"{place}." if place else ""
    for key in value.duplicates:
        faults.add(f"{prefix}{shown_key(key)}", "given more than once. Keep one")
    for key in value:
        if key not in known:
            allowed = ", ".join(known)
            faults.add(
                f"{prefix}{shown_key(key)}", f"unknown key{suggestion(key, known)}. Known here: {allowed}"
            )
    return value


def shown_key(key: str) -> str:
    """A key as a place shows it: bare when plain, quoted otherwise."""
    return key if key.isidentifier() and len(key) <= 60 else shown(key)


def items(faults: Faults, value: Any, place: str) -> list[Any]:
    """`value` if it is a list, else an empty one with the fault noted."""
    if not isinstance(value, list):
        faults.add(place, f"expected a list, found {shown(value)}. Write [...]")
        return []
    return value


def text(faults: Faults, value: Any, place: str) -> str | None:
    """`value` if it is a non-empty string."""
    if not isinstance(value, str) or not value:
        faults.add(place, f"expected a non-empty string, found {shown(value)}")
        return None
    return value


def positive(faults: Faults, value: Any, place: str, unit: str, largest: float = LARGEST) -> float | None:
    """`value` if it is a number above 0 and at most `largest`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        faults.add(place, f"expected a number of {unit}, found {shown(value)}")
    elif not math.isfinite(value) or value > largest:
        given = shown(value) if math.isfinite(value) else "a number without bound"
        faults.add(place, f"{given} is out of range: at most {largest:g} {unit}. Give the measured figure")
    elif value <= 0:
        faults.add(
            place, f"{shown(value)} is not a measurement: must be above 0 {unit}. Give the measured figure"
        )
    else:
        return float(value)
    return None


def positive_int(
    faults: Faults, value: Any, place: str, unit: str, largest: int = int(LARGEST)
) -> int | None:
    """`value` if it is a whole number above 0 and at most `largest` (4e9 is whole)."""
    number = positive(faults, value, place, unit, largest)
    if number is None:
        return None
    if isinstance(value, float) and not value.is_integer():
        faults.add(place, f"{shown(value)} is not a whole number of {unit}. Round it down")
        return None
    return int(value)
