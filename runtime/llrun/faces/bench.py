"""Measures a session: prompt processing (pp) and text generation (tg), rows as llama-bench names them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from llrun.errors import RunError
from llrun.head.session import Session
from llrun.schema import ModelInfo

SEED = 1


@dataclass(frozen=True)
class Plan:
    """`prompt`, `tokens`: sizes of the two tests, 0 for none; `depth`: tokens in the cache before either."""

    prompt: int
    tokens: int
    depth: int
    repeats: int
    sequences: int


class Row(msgspec.Struct, frozen=True):
    """One line of the result. `tokens_per_s`: of all sequences together, mean over `runs`; `sd`: their
    standard deviation, 0 for a single run."""

    test: str
    depth: int
    sequences: int
    tokens_per_s: float
    sd: float
    runs: int


def check_plan(plan: Plan, model: ModelInfo) -> None:
    """Raises RunError R105 when the tests don't fit the context, R108 when there is none to make."""
    longest = plan.depth + max(plan.prompt, plan.tokens)
    if longest > model.context:
        raise RunError(
            "R105",
            f"depth {plan.depth} + {longest - plan.depth} tokens are more than the context of"
            f" {model.context}: give smaller -p, -n or -d",
        )
    if not plan.prompt and not plan.tokens:
        raise RunError("R108", "-p 0 and -n 0 leave nothing to measure")


def run_bench(session: Session, plan: Plan) -> list[Row]:
    """Both tests, each after one run that does not count."""
    rows = []
    for name, count, test in (("pp", plan.prompt, _prefill), ("tg", plan.tokens, _decode)):
        if count:
            rates = [test(session, plan, run) for run in range(plan.repeats + 1)][1:]
            spread = statistics.stdev(rates) if len(rates) > 1 else 0.0
            rows.append(
                Row(f"{name}{count}", plan.depth, plan.sequences, statistics.fmean(rates), spread, len(rates))
            )
    return rows


def table(rows: Sequence[Row], model: str, devices: int) -> str:
    """The rows as a Markdown table."""
    lines = ["| model | devices | sequences | test | t/s |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        test = f"{row.test} @ d{row.depth}" if row.depth else row.test
        figure = f"{row.tokens_per_s:.2f} ± {row.sd:.2f}"
        lines.append(f"| {model} | {devices} | {row.sequences} | {test} | {figure} |")
    return "\n".join(lines)


def _tokens(session: Session, count: int, run: int, sequence: int) -> list[int]:
    random = np.random.default_rng([SEED, run, sequence])
    return [int(token) for token in random.integers(0, session.device.record.model.vocab_size, count)]


def _at_depth(session: Session, plan: Plan, run: int) -> list[int]:
    """Open the sequences and fill their caches to the depth."""
    numbers = [session.open() for _ in range(plan.sequences)]
    for number in numbers:
        if plan.depth:
            session.feed(number, _tokens(session, plan.depth, run, number), 0)
    for _ in range(plan.sequences if plan.depth else 0):
        session.next_logits()
    return numbers


def _close(session: Session, numbers: Sequence[int]) -> None:
    for number in numbers:
        session.close_sequence(number)


def _prefill(session: Session, plan: Plan, run: int) -> float:
    """Tokens a second from the first token fed to the last sequence's logits."""
    numbers = _at_depth(session, plan, run)
    prompts = {number: _tokens(session, plan.prompt, run, number) for number in numbers}
    start = time.perf_counter()
    for number in numbers:
        session.feed(number, prompts[number], plan.depth)
    for _ in numbers:
        session.next_logits()
    seconds = time.perf_counter() - start
    _close(session, numbers)
    return plan.sequences * plan.prompt / seconds


def _decode(session: Session, plan: Plan, run: int) -> float:
    """Tokens a second when all sequences are fed their next token together, once all have given logits."""
    numbers = _at_depth(session, plan, run)
    tokens = {number: _tokens(session, plan.tokens, run, number) for number in numbers}
    start = time.perf_counter()
    for index in range(plan.tokens):
        session.feed_many((number, tokens[number][index], plan.depth + index) for number in numbers)
        for _ in numbers:
            session.next_logits()
    seconds = time.perf_counter() - start
    _close(session, numbers)
    return plan.sequences * plan.tokens / seconds
