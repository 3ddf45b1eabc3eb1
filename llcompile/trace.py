"""What a developer can watch: stages, passes and programs, by LLC_DEBUG, --dump-dir and --stop-after."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.passes import INPUT, Observer

T = TypeVar("T")
STAGES, PASSES, PLAN, PROGRAMS = 1, 2, 3, 4


@dataclass(frozen=True)
class Stop:
    """After which pass to end: the `count`-th one of that name."""

    name: str
    count: int = 1


class Stopped(Exception):
    """The pipeline came to where it was to end: the program before and after the last pass."""

    def __init__(self, before: str, after: str) -> None:
        super().__init__()
        self.before, self.after = before, after


@dataclass
class Trace:
    """Says what happened, a line at a time, through `write`; `begun` hears of each stage as it begins.

    `level`: 1 stages and their seconds, 2 also passes, 3 also plan and costs, 4 also the program after every
    pass. `dump_dir`: a file NN-pass.txt for the input of each stage and after every pass, in order, and
    beside it NN-pass.onnx where the program can be read back. `stop`: raise Stopped after that pass.
    """

    write: Callable[[str], None]
    begun: Callable[[str], None]
    level: int = 0
    dump_dir: Path | None = None
    stop: Stop | None = None
    _dumped: int = 0
    _texts: list[tuple[str, str]] = field(default_factory=list)  # name and program, while there is a `stop`

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say that a stage begins, and when it has ended how long it took."""
        self.begun(name)
        start = time.perf_counter()
        yield
        if self.level >= STAGES:
            self.write(f"  {name:<9} {time.perf_counter() - start:6.1f} s")

    def passes(
        self, to_text: Callable[[T], str], to_bytes: Callable[[T], bytes] | None = None
    ) -> Observer[T] | None:
        """An observer for run_passes; None when nobody would look. `to_bytes`: the program as ONNX."""
        if self.level < PASSES and self.dump_dir is None and self.stop is None:
            return None

        def observe(name: str, value: T, seconds: float) -> None:
            if self.level >= PASSES and name != INPUT:
                self.write(f"    {name:<28} {seconds:6.2f} s")
            if self.level >= PROGRAMS or self.dump_dir is not None:
                # What a stage begins with may hold weights without values, which no file can.
                data = to_bytes(value) if to_bytes and self.dump_dir and name != INPUT else None
                self.program(name, to_text(value), data)
            if self.stop is not None:
                self._stop_at(self.stop, name, to_text(value))

        return observe

    def _stop_at(self, stop: Stop, name: str, text: str) -> None:
        self._texts.append((name, text))
        if [name for name, _ in self._texts].count(stop.name) == stop.count:
            raise Stopped(self._texts[-2][1], text)

    def program(self, name: str, text: str, data: bytes | None = None) -> None:
        """A program as text: shown at level 4, dumped where asked, with `data` beside it."""
        if self.level >= PROGRAMS:
            self.write(text)
        if self.dump_dir is not None:
            path = self.dump_dir / f"{self._dumped:02}-{name}.txt"
            self._dumped += 1
            try:
                self.dump_dir.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                if data is not None:
                    path.with_suffix(".onnx").write_bytes(data)
            except OSError as error:
                raise CompileError("E102", f"cannot write {path}: {error.strerror}", INTERNAL) from error

    def plan(self, text: Callable[[], str]) -> None:
        if self.level >= PLAN:
            self.write(text())
