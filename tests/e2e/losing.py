"""An answer in which a worker is killed: `python -m tests.e2e.losing BUNDLE DEVICE TOKEN COUNT PROMPT`, PROMPT as JSON.

Every device is a process of this machine; DEVICE's is killed once TOKEN tokens have come. Prints tokens and moves as
JSON. A process of its own, as one loads one runtime library.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from llrun.device.slice import find
from llrun.faces.console import Console
from llrun.faces.where import Where, session_on
from llrun.requests.request import Request
from llrun.requests.scheduler import Scheduler
from llrun.wire.transport import Tcp


def process_of(device: str) -> int:
    """The child of this process that is the device."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    words = {child: Path(f"/proc/{child}/cmdline").read_text().split("\0") for child in children}
    (found,) = [int(child) for child, said in words.items() if device in said]
    return found


def main(bundle: Path, device: str, token: int, count: int, prompt: list[int]) -> None:
    where = Where(local=True, peers={}, verify=True, timeout_s=60, transport=Tcp())
    with session_on(find(bundle, None), where, Console(quiet=True)) as session:
        victim, seen = process_of(device), 0

        def sink(_: int) -> bool:
            nonlocal seen
            seen += 1
            if seen == token:
                os.kill(victim, signal.SIGKILL)
            return True

        scheduler = Scheduler(session)
        handle = scheduler.submit(Request(prompt, count, sink=sink))
        tokens = list(scheduler.run_until(handle).tokens)
        moves = [
            {"reason": move.reason, "devices": [stage.devices for stage in move.stages]}
            for move in session.moves
        ]
    json.dump({"tokens": tokens, "moves": moves}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5]))
