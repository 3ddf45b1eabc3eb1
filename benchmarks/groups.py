"""Every family in groups of 2, 3, 4 and 8 unequal devices, end to end: tokens, logits and bits.

    python benchmarks/groups.py [--families llama,bloom] [--sizes 2,3,4,8] [--runs 10]

The small random models of the tests in f32, each device a process of this machine over loopback. A group has all layers
but the ends; every other one leaves the head out, and they sum by direct exchange, star and ring in turn. Greedy tokens
are compared with those of transformers, logits of prompt and decoded tokens with those of one device alone, and the
bits of all runs, which are made in two sessions, with each other. Models of six heads (three in one family) have twelve
where a group has more devices than heads. Ends with 1 where anything differs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from shared.peer import ROOT
from shared.processes import run
from shared.tables import table

from llrun.schema import AllReduceKind

if TYPE_CHECKING:
    from shared.group_bundles import Ids, Source

HERE = Path(__file__).parent
PROMPT, NEW = 150, 12  # tokens: a chunk of 128 and a short one, then single ones
ERROR = 1e-4  # the largest difference beside the largest logit
KINDS = (AllReduceKind.DIRECT, AllReduceKind.STAR, AllReduceKind.RING)
HEADS = ("family", "devices", "group", "sums", "tokens", "logits", "bits")


@dataclass(frozen=True)
class Found:
    """What a group did: `error` of its logits, `digests` of those of each run."""

    family: str
    size: int
    group: str
    kind: str
    tokens_equal: bool
    error: float
    digests: Sequence[str]

    @property
    def good(self) -> bool:
        return self.tokens_equal and self.error < ERROR and len(set(self.digests)) == 1

    @property
    def row(self) -> tuple[str, ...]:
        distinct = len(set(self.digests))
        bits = f"{len(self.digests)} equal" if distinct == 1 else f"{distinct} different"
        tokens = "equal" if self.tokens_equal else "DIFFERENT"
        return self.family, str(self.size), self.group, self.kind, tokens, f"{self.error:.1e}", bits


@click.command()
@click.option("--families", default="", help="Names with commas; all without it.")
@click.option("--sizes", default="2,3,4,8", show_default=True)
@click.option("--runs", default=10, show_default=True, type=click.IntRange(2))
def main(families: str, sizes: str, runs: int) -> None:
    """Run every family in every group."""
    sys.path.insert(0, str(ROOT))  # the tests' models
    from shared import group_bundles

    names = families.split(",") if families else group_bundles.FAMILIES
    counts, kinds = [int(size) for size in sizes.split(",")], cycle(KINDS)
    rows = []
    for family in names:
        heads = group_bundles.heads_of(family)
        for many in (False, True):
            fitting = [size for size in counts if (size > heads) == many]
            if not fitting:
                continue
            with group_bundles.source(family, many, PROMPT, NEW) as source:
                for found in compared(source, fitting, kinds, runs):
                    rows.append(found)
        next(kinds)  # so that a size meets every kind
    click.echo(table(HEADS, [found.row for found in rows], HEADS))
    if not all(found.good for found in rows):
        sys.exit(1)


def compared(
    source: Source, sizes: Sequence[int], kinds: Iterator[AllReduceKind], runs: int
) -> Iterator[Found]:
    """What groups of `sizes` do beside one device."""
    from shared import group_bundles

    with tempfile.TemporaryDirectory() as folder:
        alone = group_bundles.write(group_bundles.planned(source, Path(folder), 1, False, None), Path(folder))
        expected, _ = asked(alone, source.ids, 1)
    for size in sizes:
        began, kind = time.perf_counter(), next(kinds)
        with tempfile.TemporaryDirectory() as folder:
            outside = kind is AllReduceKind.RING or size % 2 == 1
            planned = group_bundles.planned(source, Path(folder), size, outside, kind)
            bundle = group_bundles.write(planned, Path(folder))
            tokens = decoded(bundle, source.ids)
            digests = []
            for part in (runs - runs // 2, runs // 2):
                rows, made = asked(bundle, source.ids, part)
                digests += made
        error = float(np.abs(rows - expected).max() / np.abs(expected).max())
        group = next(stage for stage in planned.plan.stages if stage.is_group)
        shares = " ".join(
            f"{name} {share:.1%}" for name, share in zip(group.devices, group.shares, strict=True)
        )
        found = Found(
            source.family,
            size,
            shares,
            str(group.all_reduce),
            list(tokens) == list(source.tokens),
            error,
            digests,
        )
        word = "good" if found.good else "WRONG"
        click.echo(f"{word}: {', '.join(found.row)} ({time.perf_counter() - began:.0f} s)", err=True)
        yield found


def decoded(bundle: Path, ids: Ids) -> Ids:
    """Greedy tokens as llrun's command line gives them."""
    words = [sys.executable, "-m", "llrun", str(bundle), "--local", "-n", str(NEW), "--json"]
    found: list[int] = json.loads(run([*words, "--prompt-ids", ",".join(map(str, ids))]).stdout)["tokens"]
    return found


def asked(bundle: Path, ids: Ids, runs: int) -> tuple[np.ndarray, list[str]]:
    """Logits of prompt and decoded tokens, and digests of those of every run."""
    out = bundle.parent / "logits.npy"
    script = str(HERE / "shared" / "asked_bits.py")
    words = [sys.executable, script, str(bundle), str(out), str(runs), str(NEW), ",".join(map(str, ids))]
    digests: list[str] = json.loads(run(words).stdout)["digests"]
    return np.load(out), digests


if __name__ == "__main__":
    main()
