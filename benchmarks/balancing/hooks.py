"""Give llrun hooks that misbehave: each is told of once and ignored, and no token is lost.

    python benchmarks/balancing/hooks.py [--tokens 200]

A function for --rebalance that raises, one that sleeps for ever, ones that return nonsense, and ones that ask
for what does not fit; through the command line, on the small example model and three local devices. Beside
them, none at all.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))
from shared import bundles
from shared.bad_hooks import HOOKS
from shared.example import recipe
from shared.machine import own_description
from shared.tables import table

HEADS = ("hook", "exit code", "tokens", "text", "moves", "lines about it", "what it was told")


@dataclass(frozen=True)
class Run:
    code: int
    tokens: list[int]
    moves: int
    told: list[str]


def run(bundle: Path, rebalance: str, tokens: int) -> Run:
    words = [sys.executable, "-m", "llrun", str(bundle), "--local", "--rebalance", rebalance, "--json"]
    words += ["--prompt-ids", "5,300,77,12", "-n", str(tokens), "--temperature", "1", "--seed", "3"]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    found = json.loads(done.stdout) if done.returncode == 0 else {"tokens": [], "moves": []}
    return Run(done.returncode, found["tokens"], len(found["moves"]), done.stderr.splitlines())


@click.command()
@click.option("--tokens", default=200, show_default=True)
def main(tokens: int) -> None:
    """Run every hook and count what was lost."""
    bundle = bundles.built(recipe("q4-3"))
    expected = run(bundle, "off", tokens)
    if expected.code:
        raise SystemExit("\n".join(expected.told))
    rows, bad = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, source in HOOKS.items():
            path = Path(folder) / f"{name}.py"
            path.write_text(source)
            found = run(bundle, f"{path}:rebalance", tokens)
            same = found.tokens == expected.tokens
            told = [line.replace(str(folder), "").replace("|", "/") for line in found.told]
            rows.append([name, str(found.code), str(len(found.tokens)), "same" if same else "**differs**",
                         str(found.moves), str(len(told)), told[0] if told else "-"])  # fmt: skip
            if found.code or not same or len(told) != 1 or found.moves:
                bad.append(name)
    click.echo("\n".join([*own_description(), "", table(HEADS, rows, (*HEADS[:1], HEADS[3], HEADS[-1]))]))
    if bad:
        raise SystemExit(f"not as it should be: {', '.join(bad)}")


if __name__ == "__main__":
    main()
