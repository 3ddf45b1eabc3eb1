"""Progress on stderr: a line for each stage as it ends, and a bar while weights are packed."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Console:
    """Shows where a build is. On a terminal: a spinner line and a bar; elsewhere one plain line a stage."""

    def __init__(self, verbose: bool) -> None:
        """`verbose`: print stage timings even where stderr is no terminal."""
        self._terminal = Terminal(stderr=True, highlight=False)
        self._verbose = verbose or self._terminal.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            console=self._terminal,
            transient=True,
            disable=not self._terminal.is_terminal,
        )
        self._packing: TaskID | None = None

    def __enter__(self) -> Console:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def stage_done(self, stage: str, seconds: float) -> None:
        if self._verbose:
            self._terminal.print(f"  {stage:<8} {seconds:6.1f} s")

    def packing(self, done: int, total: int) -> None:
        """Weights packed so far, and in all."""
        if self._packing is None:
            self._packing = self._progress.add_task("  packing weights", total=total)
        self._progress.update(self._packing, completed=done, total=total)
