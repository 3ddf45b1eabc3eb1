"""Passes: steps that map a type to itself, run in order, checked before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
Seen = TypeVar("Seen", contravariant=True)


class Pass(Protocol[T]):
    """A frozen dataclass with a `name`, a before/after docstring, and what it `requires` and `ensures`.

    `requires` and `ensures` are names of properties: a pass may run only when all it requires have been
    ensured by the input or an earlier pass.
    """

    @property
    def name(self) -> str: ...
    @property
    def requires(self) -> frozenset[str]: ...
    @property
    def ensures(self) -> frozenset[str]: ...
    def run(self, value: T) -> T: ...


class Observer(Protocol[Seen]):
    """Called after every pass with its position, name, result and duration; dumps and timings hang here."""

    def __call__(self, index: int, name: str, value: Seen, seconds: float) -> None: ...


class PassOrderError(ValueError):
    """A pass ran before what it requires was ensured: a fault of the pipeline, not of the input."""


class Verifier(Generic[T]):
    """Raises when `check` finds violations in a value; names the pass that left them."""

    def __init__(self, check: Callable[[T], Sequence[str]]) -> None:
        self.check = check

    def __call__(self, value: T, after: str) -> None:
        violations = self.check(value)
        if violations:
            raise ValueError(f"after {after}: " + "; ".join(violations))


def run_passes(
    value: T,
    passes: Sequence[Pass[T]],
    verify: Verifier[T] | None = None,
    observe: Observer[T] | None = None,
    given: frozenset[str] = frozenset(),
) -> T:
    """Run `passes` over `value` in order, verifying before the first and after each."""
    ensured = given
    if verify:
        verify(value, "input")
    for index, step in enumerate(passes):
        missing = step.requires - ensured
        if missing:
            raise PassOrderError(f"pass {step.name} requires {', '.join(sorted(missing))}")
        start = time.perf_counter()
        value = step.run(value)
        ensured |= step.ensures
        if verify:
            verify(value, step.name)
        if observe:
            observe(index, step.name, value, time.perf_counter() - start)
    return value
