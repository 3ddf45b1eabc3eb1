"""What a developer can watch: stages, passes and their results, by LLC_DEBUG and --dump-dir."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.passes import Observer

T = TypeVar("T")
STAGES, PASSES, PLAN, PROGRAMS = 1, 2, 3, 4


@dataclass
class Trace:
    """Says what happened, a line at a time, through `write`; `begun` hears of each stage as it begins.

    `level`: 1 stages and their seconds, 2 also passes, 3 also plan and costs, 4 also the program after every
    pass. `dump_dir`: a file NN-pass.txt for every pass, in order.
    """

    write: Callable[[str], None]
    begun: Callable[[str], None]
    level: int = 0
    dump_dir: Path | None = None
    _dumped: int = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say that a stage begins, and when it has ended how long it took."""
        self.begun(name)
        start = time.perf_counter()
        yield
        if self.level >= STAGES:
            self.write(f"  {name:<9} {time.perf_counter() - start:6.1f} s")

    def passes(self, to_text: Callable[[T], str]) -> Observer[T] | None:
        """An observer for run_passes; None when nobody would look."""
        if self.level < PASSES and self.dump_dir is None:
            return None

        def observe(index: int, name: str, value: T, seconds: float) -> None:
            del index  # dumps are numbered over all stages
            if self.level >= PASSES:
                self.write(f"    {name:<28} {seconds:6.2f} s")
            if self.level >= PROGRAMS or self.dump_dir is not None:
                self.program(name, to_text(value))

        return observe

    def program(self, name: str, text: str) -> None:
        """A program as text: shown at level 4, dumped where asked."""
        if self.level >= PROGRAMS:
            self.write(text)
        if self.dump_dir is not None:
            path = self.dump_dir / f"{self._dumped:02}-{name}.txt"
            self._dumped += 1
            try:
                self.dump_dir.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            except OSError as error:
                raise CompileError("E102", f"cannot write {path}: {error.strerror}", INTERNAL) from error

    def plan(self, text: Callable[[], str]) -> None:
        if self.level >= PLAN:
            self.write(text())
