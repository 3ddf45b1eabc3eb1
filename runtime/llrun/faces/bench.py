"""Measures a session: prompt processing (pp) and text generation (tg), rows as llama-bench names them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from llrun.device.slice import StoredSlice
from llrun.errors import RunError
from llrun.faces.console import Console
from llrun.faces.where import Where, session_on
from llrun.head.options import Balancing
from llrun.requests.conversation import Conversation
from llrun.requests.request import Handle, Request
from llrun.requests.scheduler import Scheduler
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


class Rate(msgspec.Struct, frozen=True):
    """One line of the result. `tokens_per_s`: of all sequences together, mean over `runs`; `sd`: their
    standard deviation, 0 for a single run."""

    test: str
    depth: int
    sequences: int
    tokens_per_s: float
    sd: float
    runs: int


def measure(
    stored: StoredSlice, where: Where, plan: Plan, as_json: bool, console: Console, balancing: Balancing
) -> None:
    """Run the bench and print its rows, Markdown or JSON."""
    check_plan(plan, stored.record.model)
    with session_on(stored, where, console, balancing) as session:
        rows = run_bench(Scheduler(session), plan)
    if as_json:
        console.json(rows)
        return
    model = stored.record.model
    console.table(table(rows, f"{model.name} {model.precision.weights}", len(stored.record.devices)))


def check_plan(plan: Plan, model: ModelInfo) -> None:
    """Raises RunError R105 when the tests don't fit the context, R108 when there is none to make."""
    longest = plan.depth + max(plan.prompt, plan.tokens)
    if longest > model.shapes.context:
        raise RunError(
            "R105",
            f"depth {plan.depth} + {longest - plan.depth} tokens are more than the context of"
            f" {model.shapes.context}: give smaller -p, -n or -d",
        )
    if not plan.prompt and not plan.tokens:
        raise RunError("R108", "-p 0 and -n 0 leave nothing to measure")


def run_bench(scheduler: Scheduler, plan: Plan) -> list[Rate]:
    """Both tests, each after one run that does not count."""
    rows = []
    for name, count, test in (("pp", plan.prompt, _prefill), ("tg", plan.tokens, _decode)):
        if count:
            rates = [test(scheduler, plan, run) for run in range(plan.repeats + 1)][1:]
            spread = statistics.stdev(rates) if len(rates) > 1 else 0.0
            rows.append(
                Rate(
                    f"{name}{count}", plan.depth, plan.sequences, statistics.fmean(rates), spread, len(rates)
                )
            )
    return rows


def table(rows: Sequence[Rate], model: str, devices: int) -> str:
    """The rows as a Markdown table."""
    lines = ["| model | devices | sequences | test | t/s |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in rows:
        test = f"{row.test} @ d{row.depth}" if row.depth else row.test
        figure = f"{row.tokens_per_s:.2f} ± {row.sd:.2f}"
        lines.append(f"| {model} | {devices} | {row.sequences} | {test} | {figure} |")
    return "\n".join(lines)


def _tokens(scheduler: Scheduler, count: int, run: int, sequence: int) -> list[int]:
    random = np.random.default_rng([SEED, run, sequence])
    size = scheduler.session.device.record.model.vocab_size
    return [int(token) for token in random.integers(0, size, count)]


def _at_depth(scheduler: Scheduler, plan: Plan, run: int) -> list[Conversation]:
    """Open the sequences and fill their caches to the depth."""
    conversations = [Conversation(scheduler) for _ in range(plan.sequences)]
    handles = [
        conversation.submit(Request(_tokens(scheduler, plan.depth, run, index), 0))
        for index, conversation in enumerate(conversations)
    ]
    _wait(scheduler, handles)
    return conversations


def _wait(scheduler: Scheduler, handles: Sequence[Handle]) -> None:
    for handle in handles:
        scheduler.run_until(handle)


def _seconds(scheduler: Scheduler, conversations: Sequence[Conversation], asked: Sequence[Request]) -> float:
    """Time from asking each conversation to the last logits that any of them needs."""
    start = time.perf_counter()
    pairs = zip(conversations, asked, strict=True)
    handles = [conversation.submit(request) for conversation, request in pairs]
    _wait(scheduler, handles)
    for conversation in conversations:
        conversation.close()
    return max(handle.times[-1] if handle.times else handle.prompt_at or 0.0 for handle in handles) - start


def _prefill(scheduler: Scheduler, plan: Plan, run: int) -> float:
    """Tokens a second from the first token fed to the last sequence's logits."""
    conversations = _at_depth(scheduler, plan, run)
    asked = [Request(_tokens(scheduler, plan.prompt, run, index), 0) for index in range(plan.sequences)]
    return plan.sequences * plan.prompt / _seconds(scheduler, conversations, asked)


def _decode(scheduler: Scheduler, plan: Plan, run: int) -> float:
    """Tokens a second when all sequences are fed their next token together, once all have given logits."""
    conversations = _at_depth(scheduler, plan, run)
    asked = []
    for index in range(plan.sequences):
        tokens = _tokens(scheduler, plan.tokens, run, index)
        asked.append(Request(tokens[:1], plan.tokens, given=(*tokens[1:], tokens[0])))
    return plan.sequences * plan.tokens / _seconds(scheduler, conversations, asked)
