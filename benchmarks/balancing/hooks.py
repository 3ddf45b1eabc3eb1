"""Give llrun hooks that misbehave: each is told of once and ignored, and no token is lost.

    python benchmarks/balancing/hooks.py [--tokens 500]

A function for --rebalance that raises, one that sleeps for ever, ones that return nonsense, and ones that ask
for what does not fit; through the command line, on the small example model and three local devices. Beside
them, none at all. There are as many prompts, one after another, as take twice the seconds that a function has.
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

from llrun.head.hook import DEADLINE_S

HEADS = ("hook", "exit code", "tokens", "text", "moves", "lines about it", "what it was told")


@dataclass(frozen=True)
class Run:
    """`tokens`: of all prompts, in their order. `seconds`: from the first to the last of each, added up."""

    code: int
    tokens: list[int]
    seconds: float
    moves: int
    told: list[str]


def run(bundle: Path, rebalance: str, prompts: int, tokens: int) -> Run:
    words = [sys.executable, "-m", "llrun", str(bundle), "--local", "--rebalance", rebalance, "--json"]
    for last in range(prompts):
        words += ["--prompt-ids", f"5,300,77,{last}"]
    words += ["-n", str(tokens), "--temperature", "1", "--seed", "3"]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300)
    told = done.stderr.splitlines()
    if done.returncode:
        return Run(done.returncode, [], 0.0, 0, told)
    found = json.loads(done.stdout)
    each = found.get("results", [found])
    produced = [token for one in each for token in one["tokens"]]
    seconds = sum(one["token_s"][-1] - one["token_s"][0] for one in each)
    return Run(0, produced, seconds, sum(len(one["moves"]) for one in each), told)


def undisturbed(bundle: Path, tokens: int) -> tuple[int, Run]:
    """How many prompts take long enough, and what is made of them."""
    prompts, found = 1, run(bundle, "off", 1, tokens)
    while not found.code and found.seconds < 2 * DEADLINE_S:
        prompts *= 2
        found = run(bundle, "off", prompts, tokens)
    if found.code:
        raise SystemExit("\n".join(found.told))
    return prompts, found


@click.command()
@click.option("--tokens", default=500, show_default=True, help="Of each prompt.")
def main(tokens: int) -> None:
    """Run every hook and count what was lost."""
    bundle = bundles.built(recipe("q4-3"))
    prompts, expected = undisturbed(bundle, tokens)
    rows, bad = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, source in HOOKS.items():
            path = Path(folder) / f"{name}.py"
            path.write_text(source)
            found = run(bundle, f"{path}:rebalance", prompts, tokens)
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
