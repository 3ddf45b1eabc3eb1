"""A head in a process, asked for the same several times: `python asked_bits.py BUNDLE OUT.npy RUNS NEW IDS`.

All devices are processes of this machine. In each run the logits of every token of the prompt IDS (`1,2,3`) are asked
for, then NEW tokens are decoded greedily behind the prompt. On standard output, a JSON object: `digests`, the sha256 of
each run's logits, prompt and tokens both. OUT.npy: those of the first run, (prompt + NEW - 1, vocabulary).
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]


def run(session: Any, ids: list[int], new: int) -> Rows:
    """Logits of every token of the prompt, and of each token that is decoded behind it but the last."""
    rows = [session.logits(ids)]
    number, tokens = session.open(), list(ids)
    for _ in range(new):
        session.history(number).extend(tokens)
        session.feed([number])
        while (made := session.pop_logits()) is None:
            session.take()
        rows.append(made.rows)
        tokens = [int(made.rows[-1].argmax())]
    session.close_sequence(number)
    # What follows the prompt came twice: with the prompt's logits, and as the first token's.
    return np.concatenate(rows)


def main(bundle: str, out: str, runs: str, new: str, ids: str) -> None:
    from llrun.device.slice import find
    from llrun.faces.console import Console
    from llrun.faces.where import Where, session_on
    from llrun.wire.transport import Tcp

    where = Where(local=True, peers={}, verify=True, timeout_s=60, transport=Tcp())
    digests = []
    with session_on(find(Path(bundle), None), where, Console(quiet=True)) as session:
        for number in range(int(runs)):
            rows = run(session, list(map(int, ids.split(","))), int(new))
            digests.append(hashlib.sha256(rows.tobytes()).hexdigest())
            if number == 0:
                np.save(out, rows)
    json.dump({"digests": digests}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
