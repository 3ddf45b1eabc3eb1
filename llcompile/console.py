"""Progress on stderr: lines as stages end, and a bar while weights are packed."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Console:
    """Shows where a build is: lines, and on a terminal a bar below them."""

    def __init__(self) -> None:
        self._terminal = Terminal(stderr=True, highlight=False, markup=False, soft_wrap=True)
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

    @property
    def is_terminal(self) -> bool:
        return self._terminal.is_terminal

    def line(self, text: str) -> None:
        self._terminal.print(text)

    def packing(self, done: int, total: int) -> None:
        """Weights packed so far, and in all."""
        if self._packing is None:
            self._packing = self._progress.add_task("  packing weights", total=total)
        self._progress.update(self._packing, completed=done, total=total)
