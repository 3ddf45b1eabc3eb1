"""The stages with the least seconds a token: exact for few workers, the best of those looked at for many.

Every worker has one run of blocks at most, the head the first and the last. For few workers: a table says how little
the rest can cost behind each stage, for every set of workers (dynamic programming); a best-first search (Hart,
Nilsson, Raphael, 1968) follows it with exact figures, which differ where a tensor skips stages. What the head has room
for at its end depends on its beginning: its first stages are taken in groups that leave the same room, that with the
least bound first, until none can be better.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush

import numpy as np

from llrun.programs.many import among, chain, fastest
from llrun.programs.question import HEAD, NONE, Ints, Question, picoseconds
from llrun.programs.tables import STAGE, table

EXACT_WORKERS = 10
GROUPS = 4  # of first stages that are looked at where there are more workers
Run = tuple[int, int, int]  # device, start, stop
Path = tuple[tuple[int, int], ...]  # device and stop of each stage
Sources = tuple[tuple[int, int], ...]  # of each tensor that is needed later: which of the far flows, device
Node = tuple[
    int, Path, int, int, Sources
]  # least cost of a whole plan, its beginning, cost of that, workers used


def search(question: Question) -> list[tuple[str, int, int]]:
    """Device, start and stop of each stage of the best plan; empty where none was found. Ties: fewer devices, then the
    first of them."""
    chosen, runs = question, list[Run]()
    if question.devices > EXACT_WORKERS + 1:
        cost, runs = _chain(question)
        if question.head_alone and question.sums[HEAD, -1] <= cost:
            runs = []
        workers = {device for device, _, _ in runs if device != HEAD}
        if len(workers) <= EXACT_WORKERS:
            others = [worker for worker in fastest(question) if worker not in workers]
            chosen, runs = among(question, [*workers, *others[: EXACT_WORKERS - len(workers)]]), []
    runs = runs or _best(chosen)
    return [(chosen.names[device], start, stop) for device, start, stop in runs]


def _chain(question: Question) -> tuple[int, list[Run]]:
    """A good plan of many workers and its picoseconds; empty where none was found."""
    groups = _groups_of(question)
    kept = sorted(groups)[:: max(1, len(groups) // GROUPS)]
    chains = [found for returns in kept if (found := chain(question, returns, groups[returns]))]
    return min(chains, default=(NONE, []))


def _best(question: Question) -> list[Run]:
    """The best plan, empty where there is none."""
    best: tuple[int, Path] = NONE, ()
    if question.head_alone:
        best = int(question.sums[HEAD, -1]), ((HEAD, question.blocks),)
    for bound, returns, stops in _groups(question) if question.devices > 1 else ():
        if bound <= best[0]:
            found = _cheapest(question, returns, stops, best[0])
            best = min(best, found) if found else best
    starts = [0, *(stop for _, stop in best[1])]
    return [(device, start, stop) for (device, stop), start in zip(best[1], starts, strict=False)]


def _groups_of(question: Question) -> dict[int, list[int]]:
    """[earliest start of the head's last stage]: the stops of its first stage that leave it."""
    groups: dict[int, list[int]] = defaultdict(list)
    for stop in range(1, question.blocks):
        if question.returns[stop] < question.blocks:
            groups[int(question.returns[stop])].append(stop)
    return dict(groups)


def _groups(question: Question) -> list[tuple[int, int, list[int]]]:
    """Least picoseconds, key and value of each group; least first."""
    groups = _groups_of(question)
    if len(groups) < 2:
        return [(0, returns, stops) for returns, stops in groups.items()]
    least = table(question, 1)[0, HEAD] + question.sums[HEAD]
    return sorted((int(least[stops].min()), returns, stops) for returns, stops in groups.items())


def _cheapest(question: Question, returns: int, stops: Sequence[int], limit: int) -> tuple[int, Path] | None:
    """The best plan whose first stage ends at one of `stops`, and that costs no more than `limit`."""
    behind = table(question, returns)
    limit = min(limit, NONE - 1)
    nodes: list[Node] = []
    for stop in stops:
        spent = int(question.sums[HEAD, stop])
        nodes.append(
            (spent + int(behind[0, HEAD, stop]), ((HEAD, stop),), spent, 0, _made(question, HEAD, 0, stop))
        )
    nodes.sort()
    seen: set[tuple[int, int, int, Sources]] = set()
    while nodes and nodes[0][0] <= limit:
        node = heappop(nodes)
        total, path, _, used, sources = node
        if path[-1][1] == question.blocks:
            return total, path
        if (state := (used, *path[-1], sources)) not in seen:
            seen.add(state)
            for following in _following(question, behind, returns, node, limit):
                heappush(nodes, following)
    return None


def _following(question: Question, behind: Ints, returns: int, node: Node, limit: int) -> Iterator[Node]:
    """What one more stage makes of a beginning."""
    _, path, spent, used, sources = node
    last, start = path[-1]
    if used and start >= returns:
        own = int(question.sums[HEAD, -1] - question.sums[HEAD, start])
        whole = spent + int(question.hops[last, HEAD, start]) + own
        whole += int(_far_cost(question, sources, last, HEAD, start)[-1])
        if whole <= limit:
            yield whole, (*path, (HEAD, question.blocks)), whole, used, ()
    for worker in range(1, question.devices):
        now = used | 1 << (worker - 1)
        stops = slice(start + 1, int(question.last[worker, start]) + 1)
        if now == used or stops.start >= stops.stop:
            continue
        costs = spent + question.hops[last, worker, start] + STAGE
        costs = costs + question.sums[worker, stops] - question.sums[worker, start]
        if question.far:
            costs = costs + _far_cost(question, sources, last, worker, start)[stops]
        totals = costs + behind[now, worker, stops]
        for at in np.flatnonzero(totals <= limit).tolist():
            stop = stops.start + at
            needed = tuple(each for each in sources if question.far[each[0]].consumers[-1] >= stop)
            made = _made(question, worker, start, stop)
            yield int(totals[at]), (*path, (worker, stop)), int(costs[at]), now, (*needed, *made)


def _made(question: Question, device: int, start: int, stop: int) -> Sources:
    """The far flows that a stage makes and that are needed after it."""
    return tuple(
        (number, device)
        for number, flow in enumerate(question.far)
        if start <= flow.producer < stop <= flow.consumers[-1]
    )


def _far_cost(question: Question, sources: Sources, last: int, device: int, start: int) -> Ints:
    """[stop]: what the tensors of `sources` cost beside the hop, for a stage of `device` that begins at `start`."""
    costs = np.zeros(question.blocks + 1, np.int64)
    for number, source in sources:
        flow = question.far[number]
        first = next(block for block in flow.consumers if block >= start)
        if source != device and (flow.producer, first) != (start - 1, start):
            latency_s = question.latency_s[source, device] if source != last else 0.0
            seconds = np.array(latency_s + flow.row_bytes * question.byte_s[source, device])
            costs[first + 1 :] += picoseconds(seconds)
    return costs
