"""Conversations: requests on one sequence, each continuing what was said; and single requests."""

from __future__ import annotations

from collections.abc import Sequence

from llrun.requests.line import Line
from llrun.requests.request import Handle, Request, Result, Sink
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler


class Conversation:
    """A sequence that stays open between requests: what was said stays in the caches. Of several requests
    each waits for the one before. A request that fails or is cancelled leaves it usable: its prompt and
    the tokens that it gave are said."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._line = Line(kept=True)

    @property
    def used(self) -> int:
        """Tokens so far, those produced among them."""
        return self._scheduler.used(self._line)

    def submit(self, request: Request) -> Handle:
        """Ask for more, from any thread. Raises RunError as Scheduler.submit does."""
        return self._scheduler.submit(request, self._line)

    def ask(self, prompt: Sequence[int], wanted: int | None, sampling: Sampling, sink: Sink) -> Result:
        """Ask, and wait for the answer, on the driver's thread."""
        return self._scheduler.run_until(self.submit(Request(prompt, wanted, sampling, sink)))

    def close(self) -> None:
        self._scheduler.close(self._line)


def generate(
    scheduler: Scheduler, prompt: Sequence[int], wanted: int | None, sampling: Sampling, sink: Sink
) -> Result:
    """One request on a sequence of its own. Raises RunError for bad input, before anything runs."""
    return scheduler.run_until(scheduler.submit(Request(prompt, wanted, sampling, sink)))
