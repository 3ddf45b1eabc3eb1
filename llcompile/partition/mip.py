"""A mixed-integer program as data, and its text in free MPS.

The text is the problem: what is solved is read back from it, so the saved file is exactly what was solved.
Numbers are written with all their digits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

INFINITY = float("inf")
_SCALE = "* objective in seconds; best solved in units of "


@dataclass(frozen=True)
class Column:
    name: str
    lower: float
    upper: float
    integer: bool
    cost: float


@dataclass(frozen=True)
class Constraint:
    """lower <= sum of coefficient x column <= upper, by column number."""

    name: str
    lower: float
    upper: float
    terms: Mapping[int, float]


@dataclass
class Mip:
    """A minimisation under construction, costs in seconds. `scale`, a power of two, is the unit in seconds that it
    is best solved in: then solver tolerances mean the same for a tiny model as for a large one. `note`: a line for who
    reads the text."""

    name: str
    scale: float
    note: str = ""
    columns: list[Column] = field(default_factory=list)
    rows: list[Constraint] = field(default_factory=list)

    def column(
        self, name: str, cost: float = 0.0, upper: float = 1.0, lower: float = 0.0, integer: bool = False
    ) -> int:
        self.columns.append(Column(name, lower, upper, integer, cost))
        return len(self.columns) - 1

    def row(
        self, name: str, terms: Mapping[int, float], lower: float = -INFINITY, upper: float = INFINITY
    ) -> None:
        kept = {column: value for column, value in terms.items() if value}
        self.rows.append(Constraint(name, lower, upper, kept))


def to_mps(mip: Mip) -> str:
    """Free MPS text of `mip`; the same problem gives the same text."""
    parts = (_header(mip), _rows(mip), _columns(mip), _right_hand_sides(mip), _bounds(mip), ("ENDATA", ""))
    return "\n".join(line for part in parts for line in part)


def scale_of(text: str) -> float:
    """The unit in seconds to solve in, from the comment `to_mps` wrote; 1 when there is none."""
    for line in text.splitlines()[:5]:
        if line.startswith(_SCALE):
            return float(line.removeprefix(_SCALE))
    return 1.0


def _header(mip: Mip) -> Iterator[str]:
    yield f"{_SCALE}{mip.scale!r}"
    if mip.note:
        yield f"* {mip.note}"
    yield f"NAME {mip.name}"


def _kind(row: Constraint) -> str:
    if row.lower == row.upper:
        return "E"
    return "G" if row.upper == INFINITY else "L"


def _rows(mip: Mip) -> Iterator[str]:
    yield "ROWS"
    yield " N objective"
    for row in mip.rows:
        yield f" {_kind(row)} {row.name}"


def _columns(mip: Mip) -> Iterator[str]:
    entries: list[list[tuple[str, float]]] = [[] for _ in mip.columns]
    for row in mip.rows:
        for column, value in row.terms.items():
            entries[column].append((row.name, value))
    yield "COLUMNS"
    # Integer columns stand together between markers, so columns are ordered integers first.
    yield " MARKER 'MARKER' 'INTORG'"
    yield from (line for i in _order(mip, True) for line in _column(mip.columns[i], entries[i]))
    yield " MARKER 'MARKER' 'INTEND'"
    yield from (line for i in _order(mip, False) for line in _column(mip.columns[i], entries[i]))


def _order(mip: Mip, integer: bool) -> Iterator[int]:
    return (i for i, column in enumerate(mip.columns) if column.integer is integer)


def _column(column: Column, entries: list[tuple[str, float]]) -> Iterator[str]:
    yield f" {column.name} objective {column.cost!r}"
    for row, value in entries:
        yield f" {column.name} {row} {float(value)!r}"


def _right_hand_sides(mip: Mip) -> Iterator[str]:
    yield "RHS"
    for row in mip.rows:
        side = row.upper if row.lower == -INFINITY else row.lower
        if side:
            yield f" RHS {row.name} {float(side)!r}"


def _bounds(mip: Mip) -> Iterator[str]:
    yield "BOUNDS"
    for i in (*_order(mip, True), *_order(mip, False)):
        column = mip.columns[i]
        if column.lower == column.upper:
            yield f" FX bound {column.name} {float(column.lower)!r}"
            continue
        yield f" LO bound {column.name} {float(column.lower)!r}"
        upper = "PL" if column.upper == INFINITY else "UP"
        yield f" {upper} bound {column.name}" + ("" if upper == "PL" else f" {float(column.upper)!r}")
