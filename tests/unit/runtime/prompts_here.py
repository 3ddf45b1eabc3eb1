"""A run with prompts on the numpy model: `prompts_here.py SECONDS_A_STEP [SESSION_FILE]`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy_model

from llrun.faces.console import Console
from llrun.faces.printer import Wanted
from llrun.faces.prompts import Answer, Prompt, PromptRun
from llrun.faces.recording import recording
from llrun.head.session import Session
from llrun.requests.journal import Kind
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.wire.transport import Tcp

PROMPTS = [Prompt((1, 2, 3), "first"), Prompt((4, 5), "second"), Prompt((6,), "third")]
WANTED = Wanted(12, Sampling(1.2, 40, 0.98, 5), ())


def answers(
    path: Path | None, seconds: float = 0.0, wanted: Wanted = WANTED, prompts: list[Prompt] = PROMPTS
) -> list[Answer]:
    """All answers; the devices are started for those that the file lacks alone."""

    def slow(*arguments):
        time.sleep(seconds)
        return numpy_model.mix(*arguments)

    part = numpy_model.device("d0", ["d0"], numpy_model.library(t1=slow))
    console = Console(quiet=False)
    with recording(path, part.record, Kind.PROMPTS, console) as file:
        run = PromptRun(prompts, wanted, None, part.record.model, console, file)
        turns = run.turns()
        found = run.read(turns)
        if len(found) < len(prompts):
            with Session(part, Tcp(), {}, 20.0) as session:
                found += run.rest(Scheduler(session), turns, len(found))
    return found


if __name__ == "__main__":
    answers(Path(sys.argv[2]) if sys.argv[2:] else None, float(sys.argv[1]))
