"""A head in a process, asked for several answers at once: `python driver.py BUNDLE [options of llrun]`.

Each line of standard input is a JSON list of requests {ids, n, temperature, seed}, all asked at once. On
standard output, a JSON object a line: {"ready": s}; {"sequence": i, "token": id, "at": s} as tokens come;
{"answers": [{"tokens": [...], "compute_s": {device: s}} or {"tokens": [...], "error": text}], "moves": [...]}
when all have ended; {"ended": text} when the session has. Seconds are those of CLOCK_MONOTONIC. Ends with its
input.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click


def say(value: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def answer(scheduler: Any, asked: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Ask all at once; the answer or the error of each."""
    from llrun.errors import RunError
    from llrun.requests.request import Request
    from llrun.requests.sampling import Sampling

    def sink(index: int) -> Any:
        def take(token: int) -> bool:
            say({"sequence": index, "token": token, "at": time.perf_counter()})
            return True

        return take

    handles = [
        scheduler.submit(
            Request(
                one["ids"],
                one["n"],
                Sampling(one.get("temperature", 0.0), 0, 1.0, one.get("seed", 0)),
                sink(i),
            )
        )
        for i, one in enumerate(asked)
    ]
    answers: list[Mapping[str, Any]] = []
    for handle in handles:
        try:
            result = scheduler.run_until(handle)
            compute_s = {name: figures.compute_s for name, figures in result.devices.items()}
            answers.append({"tokens": list(result.tokens), "compute_s": compute_s})
        except RunError as error:
            answers.append({"error": str(error), "tokens": list(handle.tokens)})
    return answers


def serve(
    bundle: Path, peers: Sequence[str], rebalance: str, wait_s: float, mirror: bool, timeout_s: float
) -> None:
    import msgspec

    from llrun.device.slice import find
    from llrun.errors import RunError
    from llrun.faces.console import Console
    from llrun.faces.where import Where, session_on
    from llrun.head.options import Balancing
    from llrun.requests.scheduler import Scheduler
    from llrun.wire.transport import Tcp

    where = Where(False, dict(pair.split("=", 1) for pair in peers), False, timeout_s, Tcp())
    try:
        balancing = Balancing(hook_of(rebalance), wait_s, mirror)
        with session_on(find(bundle, None), where, Console(quiet=True), balancing) as session:
            scheduler = Scheduler(session)
            say({"ready": time.perf_counter()})
            for line in sys.stdin:
                began = time.perf_counter()
                answers = answer(scheduler, json.loads(line))
                moves = [msgspec.to_builtins(one) for one in session.moves if one.at_s >= began]
                say({"answers": answers, "moves": moves})
    except RunError as error:
        say({"ended": str(error)})
        sys.exit(error.exit_code)


def hook_of(text: str) -> Any:
    """`text`, or the function that it names."""
    if text in ("auto", "off"):
        return text
    from llrun.head.hook import load_hook

    return load_hook(text)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--peer", "peers", multiple=True)
@click.option("--rebalance", default="auto")
@click.option("--wait", "wait_s", default=2.5)
@click.option("--mirror", is_flag=True)
@click.option("--timeout", "timeout_s", default=60.0)
def main(
    bundle: Path, peers: Sequence[str], rebalance: str, wait_s: float, mirror: bool, timeout_s: float
) -> None:
    """A head that answers what its standard input asks."""
    serve(bundle, peers, rebalance, wait_s, mirror, timeout_s)


if __name__ == "__main__":
    main()
