"""Decode prompts together, then each alone: `python -m tests.e2e.together BUNDLE COUNT PROMPTS`, PROMPTS as JSON.

Prints both results as JSON. A process of its own, as one loads one runtime library.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llrun.device.slice import find
from llrun.faces.console import Console
from llrun.faces.where import Where, session_on
from llrun.requests.request import Request
from llrun.requests.scheduler import Scheduler
from llrun.wire.transport import Tcp


def together(scheduler: Scheduler, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Greedy tokens of every prompt, all asked at once: prompts in turn, then a token of each a pass."""
    handles = [scheduler.submit(Request(ids, count)) for ids in prompts]
    return [list(scheduler.run_until(handle).tokens) for handle in handles]


def main(bundle: Path, count: int, prompts: list[list[int]]) -> None:
    where = Where(local=True, peers={}, verify=True, timeout_s=60, transport=Tcp())
    with session_on(find(bundle, None), where, Console(quiet=True)) as session:
        scheduler = Scheduler(session)
        joined = together(scheduler, prompts, count)
        alone = [together(scheduler, [ids], count)[0] for ids in prompts]
    json.dump({"together": joined, "alone": alone}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
