"""Passes: functions that map a type to itself, run in order, checked before the first and after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

from llcompile.ir.errors import INTERNAL, CompileError

T = TypeVar("T")
Seen = TypeVar("Seen", contravariant=True)
INPUT = "input"
_SHOWN = 5


class Pass(Protocol[T]):
    """A frozen dataclass with a before/after docstring; its name and contract belong to the class.

    `requires` and `ensures` are names of properties: a pass may run only when all it requires have been
    ensured by the input or an earlier pass. What they mean is in the stage's Verifier.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[str]]
    ensures: ClassVar[frozenset[str]]

    def run(self, value: T) -> T: ...


class Observer(Protocol[Seen]):
    """Called with the input (named INPUT, 0 s) and after every pass with its name, result and duration."""

    def __call__(self, name: str, value: Seen, seconds: float) -> None: ...


@dataclass(frozen=True)
class Verifier(Generic[T]):
    """What must hold of every program of a stage, and what each property of its passes means.

    `check` and the predicates of `properties` return what is wrong, nothing where all is well.
    """

    check: Callable[[T], Iterable[str]]
    properties: Mapping[str, Callable[[T], Iterable[str]]]

    def violations(self, value: T, ensured: frozenset[str]) -> dict[str, list[str]]:
        """What is wrong with `value` by the property that it lacks; "" for the check of every program."""
        predicates = {"": self.check} | {name: self.properties[name] for name in sorted(ensured)}
        violations = {name: list(predicate(value)) for name, predicate in predicates.items()}
        return {name: faults for name, faults in violations.items() if faults}

    def require(self, value: T, after: str, ensured: frozenset[str]) -> None:
        """Raises CompileError E112, an internal one, that names the pass and the property."""
        for name, faults in self.violations(value, ensured).items():
            more = f" (and {len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
            lacking = f"the program is not {name}" if name else "the program is not sound"
            raise CompileError(
                "E112", f"after {after}: {lacking}: {'; '.join(faults[:_SHOWN])}{more}", INTERNAL
            )


def run_passes(
    value: T,
    passes: Sequence[Pass[T]],
    verifier: Verifier[T],
    observe: Observer[T] | None = None,
    given: frozenset[str] = frozenset(),
) -> T:
    """Run `passes` over `value` in order; `given` are the properties that the input has.

    Every property that was ensured is looked at again after each later pass. Raises CompileError E111 (a pass
    before what it requires) and E112 (a program that is not what it should be), both faults of the compiler.
    """
    ensured = given
    verifier.require(value, INPUT, ensured)
    if observe:
        observe(INPUT, value, 0.0)
    for current in passes:
        missing = current.requires - ensured
        if missing:
            raise CompileError("E111", f"pass {current.name} requires {', '.join(sorted(missing))}", INTERNAL)
        start = time.perf_counter()
        value = current.run(value)
        seconds = time.perf_counter() - start
        ensured |= current.ensures
        verifier.require(value, f"pass {current.name}", ensured)
        if observe:
            observe(current.name, value, seconds)
    return value


def run_alone(
    value: T, current: Pass[T], verifier: Verifier[T], to_text: Callable[[T], str]
) -> tuple[str, str]:
    """The texts of a program from elsewhere before and after `current` alone.

    Raises CompileError E113 when the program lacks what the pass requires, and E112 as run_passes does.
    """
    faults = [
        fault for violations in verifier.violations(value, current.requires).values() for fault in violations
    ]
    if faults:
        needs = ", ".join(sorted(current.requires)) or "a sound program"
        raise CompileError(
            "E113",
            f"pass {current.name} requires {needs}, which this program is not: {'; '.join(faults[:_SHOWN])}. "
            "Run the passes before it, or give a model's directory, for which that is done",
        )
    before = to_text(value)
    after = current.run(value)
    verifier.require(after, f"pass {current.name}", current.requires | current.ensures)
    return before, to_text(after)
