"""Progress on stderr: the stage under way, a bar while weights are calibrated and packed, lines as stages end."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Console:
    """Shows where a build is: lines, and on a terminal a bar below them."""

    def __init__(self) -> None:
        self._terminal = Terminal(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<9}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._terminal,
            transient=True,
            disable=not self._terminal.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, visible=False)

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

    def stage(self, name: str) -> None:
        """A stage begins; how long it will take is not known."""
        self._progress.reset(self._task, description=name, total=None, visible=True)

    def weights_done(self, done: int, total: int) -> None:
        """Weights calibrated or packed so far, and in all."""
        self._progress.update(self._task, completed=done, total=total)
