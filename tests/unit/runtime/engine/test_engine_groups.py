"""Groups computed by engines: the same bits whatever kind of sum, whatever arrives first, in whatever pieces."""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy_group
import numpy_model
import pytest
from numpy_group import Group, split
from numpy_model import CHUNK, CONTEXT, VOCABULARY, WIDTH
from test_engine import Recorder, perform

from llrun.engine.engine import Engine
from llrun.engine.events import Fed, Feed, Halting, Inbox, Opening, Switch
from llrun.errors import RunError
from llrun.head.feeding import Feeding
from llrun.head.history import History
from llrun.head.replay import by_block, places_of, rewind
from llrun.programs.installed import install
from llrun.programs.layouts import Limits
from llrun.programs.transmissions import transmissions
from llrun.programs.write import write_programs
from llrun.schema import AllReduceKind, WireFormat
from llrun.wire.coding import received, receiving
from llrun.wire.frames import check_tensor
from llrun.wire.protocol import (
    ALL_ROWS,
    HEADER_BYTES,
    LAST_CHUNK,
    ONE_ROW,
    ROWS,
    unpack_header,
    unpack_rows,
)

LIMITS = Limits(CHUNK, CONTEXT, CHUNK * WIDTH * 4)
Letter = tuple[bytes, bytes]


class Station(Recorder):
    """A device's outside: what it sends waits on its link."""

    def __init__(self, device: str, mail: dict[tuple[str, str], deque[Letter]]) -> None:
        super().__init__()
        self.device, self.mail = device, mail
        self.rows: dict[tuple[int, int], np.ndarray] = {}

    def send(self, destination, header, payload) -> None:
        letter = bytes(header), bytes(payload)
        self.mail.setdefault((self.device, destination), deque()).append(letter)
        frame = unpack_header(header[:HEADER_BYTES])
        self.frames.append(frame.rows if frame.kind == ROWS else 1)

    def logits(self, steps, rows) -> None:
        each = rows.shape[1] // len(steps)
        for i, (number, position) in enumerate(steps):
            for row in range(each):
                where = number, position if each == 1 else position + row
                assert where not in self.rows, "logits of a position came twice"
                self.rows[where] = rows[0, i * each + row].copy()


class Net:
    """Engines of a group's devices and a head. Whose letter is delivered next is drawn: links keep their order, and
    nothing else does."""

    def __init__(self, group: Group, seed: int = 0) -> None:
        self.group, self.random = group, np.random.default_rng(seed)
        self.names = sorted({"head", *group.devices})
        self.devices = ["head", *(name for name in self.names if name != "head")]
        self.mail: dict[tuple[str, str], deque[Letter]] = {}
        self.parts = {name: numpy_group.device(name, self.devices, group) for name in self.names}
        self.stations = {name: Station(name, self.mail) for name in self.names}
        self.engines = {name: Engine(self.parts[name], self.stations[name], Inbox()) for name in self.names}

    @property
    def rows(self) -> dict[tuple[int, int], np.ndarray]:
        """Logits by sequence and position."""
        return self.stations["head"].rows

    def tell(self, *events) -> None:
        for name in self.names:
            perform(self.engines[name], *events)

    def deliver(self, most: int | None = None) -> None:
        """Hand over letters, at most so many, until none is left."""
        while (ways := sorted(way for way, letters in self.mail.items() if letters)) and most != 0:
            way = ways[self.random.integers(len(ways))]
            self._hand_over(*way, *self.mail[way].popleft())
            most = None if most is None else most - 1

    def _hand_over(self, source: str, to: str, data: bytes, payload: bytes) -> None:
        header, engine = unpack_header(data[:HEADER_BYTES]), self.engines[to]
        layout = check_tensor(header, source, engine.installed, LIMITS)
        assert layout is not None
        several = header.kind == ROWS
        headers = unpack_rows(header, data[HEADER_BYTES:]) if several else (header,)
        rows = header.rows if several else 1 if header.flags & ONE_ROW else header.rows
        array = receiving(layout, rows)
        array.data.cast("B")[:] = payload
        engine.inbox.deliver(source, headers, received(layout, array))
        if self.random.random() < 0.7:  # else it is taken with what comes later
            engine.settle()
        if not any(self.mail.values()):
            for each in self.engines.values():
                each.settle()

    def feed(self, *feeds: tuple[int, int, list[int], int]) -> None:
        """Sequence, position, ids, flags of each, all at once."""
        made = tuple(Feed(n, at, flags, np.array([ids], np.int64)) for n, at, ids, flags in feeds)
        perform(self.engines["head"], Fed(made))

    def prompt(self, number: int, ids: list[int], chunk: int = CHUNK, flags: int = LAST_CHUNK) -> None:
        for start in range(0, len(ids), chunk):
            last = flags if start + chunk >= len(ids) else flags & ALL_ROWS
            self.feed((number, start, ids[start : start + chunk], last))


def ids_of(length: int, seed: int = 5) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist()


def logits(group: Group, ids: list[int], seed: int = 0, chunk: int = CHUNK) -> np.ndarray:
    net = Net(group, seed)
    net.tell(Opening(0))
    net.prompt(0, ids, chunk, ALL_ROWS | LAST_CHUNK)
    net.deliver()
    return np.stack([net.rows[0, position] for position in range(len(ids))])


GROUPS = [
    ("anna", "bert"),
    ("head", "anna"),
    ("anna", "head", "bert"),
    ("cora", "anna", "dora", "bert"),
]


@pytest.mark.parametrize("names", GROUPS)
@pytest.mark.parametrize("kind", AllReduceKind)
def test_every_kind_gives_the_same_bits_and_the_models_logits(names, kind):
    """As the same devices do by a star in one order of letters; nearly what the model in one piece gives, whose sums
    are in another order."""
    ids = ids_of(29)
    due = logits(split(names, AllReduceKind.STAR), ids)
    np.testing.assert_allclose(due, numpy_model.reference(ids), rtol=1e-4, atol=1e-5)
    for root in range(len(names)):
        group = split(names, kind, root)
        assert logits(group, ids, seed=root + 1).tobytes() == due.tobytes()
    assert logits(split(names, kind, blocks=(2, 5)), ids, seed=9).shape == due.shape


def test_ten_runs_and_any_chunks_give_the_same_bits():
    group, ids = split(("anna", "head", "bert"), AllReduceKind.DIRECT), ids_of(23)
    due = logits(group, ids).tobytes()
    for seed in range(10):
        assert logits(group, ids, seed, chunk=1 + seed % CHUNK).tobytes() == due


@pytest.mark.parametrize(("wire", "most"), [("f16", 2e-3), ("q8", 0.05), ("q4", 0.5)])
@pytest.mark.parametrize("kind", AllReduceKind)
def test_parts_and_sums_that_travel_in_fewer_bytes_are_the_same_to_all(kind, wire, most):
    """Who makes a part, or a sum, computes with what the others get: so no order of letters, no chunk, and of a star no
    root changes a bit."""
    names, ids = ("anna", "head", "bert"), ids_of(23)
    due = logits(split(names, kind, wire=WireFormat(wire)), ids)
    exact = numpy_model.reference(ids)
    assert 0 < np.abs(due - exact).max() < most * np.abs(exact).max()
    for seed in range(3):
        group = split(names, kind, seed, wire=WireFormat(wire))
        assert logits(group, ids, seed, chunk=1 + 3 * seed).tobytes() == due.tobytes()


def test_the_order_of_the_sum_is_in_the_bits():
    """So that the tests above can fail."""
    forth = Group(("anna", "bert", "cora"), AllReduceKind.STAR, edges=(0, 5, 7, 16))
    functions = numpy_group.library(forth)
    swapped = {**functions.functions, "sum_3_prefill": lambda a, b, c: (b + c) + a}
    net = Net(forth)
    for name in ("anna",):  # the root
        part = numpy_group.device(
            name, net.devices, forth, functions=type(functions)(swapped, functions.wrap, functions.unwrap)
        )
        net.engines[name] = Engine(part, net.stations[name], Inbox())
    ids = ids_of(29)
    net.tell(Opening(0))
    net.prompt(0, ids, CHUNK, ALL_ROWS | LAST_CHUNK)
    net.deliver()
    found = np.stack([net.rows[0, position] for position in range(len(ids))])
    due = logits(forth, ids)
    np.testing.assert_allclose(found, due, rtol=1e-4, atol=1e-5)
    assert found.tobytes() != due.tobytes()


@pytest.mark.parametrize("kind", AllReduceKind)
def test_sequences_side_by_side_give_what_each_gives_alone(kind):
    """Prompts of several lengths, then tokens of all at once, joined where they meet and however they are cut."""
    group = split(("anna", "head", "bert"), kind)
    prompts = [ids_of(length, length) for length in (1, 9, 5, 17)]
    alone = []
    for ids in prompts:
        net = Net(group)
        alone.append(answers(net, [ids], 6)[0])
    for seed in range(3):
        net = Net(group, seed)
        assert answers(net, prompts, 6) == alone
        if kind == AllReduceKind.STAR:
            assert max(net.stations["bert"].frames) > 1  # rows did travel together


def answers(net: Net, prompts: list[list[int]], count: int) -> list[list[bytes]]:
    """Bits of the logits of each prompt's last row and of `count` - 1 tokens after it, of all sequences at once."""
    net.tell(*(Opening(number) for number in range(len(prompts))))
    for number, ids in enumerate(prompts):
        net.prompt(number, ids)
    net.deliver()
    ids = [[*each] for each in prompts]
    found: list[list[bytes]] = [[] for _ in prompts]
    for _ in range(count):
        feeds = []
        for number, mine in enumerate(ids):
            # A prompt's last chunk gives its last row, by the position where the chunk begins.
            start = (len(mine) - 1) // CHUNK * CHUNK if len(mine) == len(prompts[number]) else len(mine) - 1
            row = net.rows[number, start]
            found[number].append(row.tobytes())
            mine.append(int(np.argmax(row)))
            feeds.append((number, len(mine) - 1, mine[-1:], LAST_CHUNK))
        net.feed(*feeds)
        net.deliver()
    return found


@pytest.mark.parametrize("kind", AllReduceKind)
@pytest.mark.parametrize("lost", ["anna", "head"])
def test_after_a_loss_what_is_behind_is_computed_again(kind, lost):
    """Halted with letters on their way and the caches of one device gone, all go on where the least of the group's
    caches ends, and the bits stay."""
    group, ids = split(("anna", "head", "bert"), kind, blocks=(2, 5)), ids_of(31)
    stages = numpy_group.stages("head", group)
    whole = Net(group)
    (due,) = answers(whole, [ids], 1)
    for cut in (3, 11, 26):
        net = Net(group, seed=cut)
        net.tell(Opening(0))
        net.prompt(0, ids)
        net.deliver(cut)
        net.tell(Halting(2))
        net.mail.clear()
        kept = {name: by_block(station.halts[0][1]) for name, station in net.stations.items()}
        if lost != "head":
            kept[lost] = {}
            net.engines[lost].sequences.close(0)
            net.engines[lost] = Engine(net.parts[lost], net.stations[lost], Inbox())
            perform(net.engines[lost], Opening(0))
        recover(net, stages, kept, ids)
        net.deliver()
        start = (len(ids) - 1) // CHUNK * CHUNK
        rows = [row.tobytes() for (_, position), row in net.rows.items() if position >= start]
        assert rows == due


def recover(net: Net, stages, kept, ids: list[int]) -> None:
    """Switch to the same stages under the next epoch, and feed as the head would."""
    history = History([*ids], queued=len(ids), fed=len(ids), awaited=len(ids) - 1)
    cached = {name: [b.id for b in part.record.blocks if b.caches] for name, part in net.parts.items()}
    way = rewind(0, history, stages, cached, kept)
    graph = numpy_group.graph(net.group)
    programs = write_programs(graph, stages, transmissions(graph, stages), 2)
    for name in net.names:
        (places,) = places_of([way], stages, programs[name])
        following = install(net.parts[name].record, programs[name])
        perform(net.engines[name], Switch(following, {0: places.segments}))
    feeding = Feeding(net.parts["head"].record.model, lambda tokens: 4)
    feeding.begin(0)
    vars(feeding.histories[0]).update(vars(history))
    feeding.progress.plan(net.names, ())
    feeding.rewind(way, {name: [i for i, s in enumerate(stages) if name in s.devices] for name in net.names})
    while going := feeding.release():
        for feed in going:
            perform(net.engines["head"], Fed((feed,)))
            feeding.progress.plan(net.names, ())  # as if all had done it


def test_caches_of_shards_are_told_by_the_ids_of_the_pieces():
    group, ids = split(("anna", "bert"), AllReduceKind.STAR, blocks=(2, 4)), ids_of(11)
    net = Net(group)
    net.tell(Opening(0))
    net.prompt(0, ids)
    net.deliver()
    assert by_block(net.engines["anna"].sequences.held()) == {0: {11: 11, 12: 11, 13: 11}}
    assert by_block(net.engines["bert"].sequences.held()) == {0: {11: 11, 12: 11, 13: 11}}
    assert by_block(net.engines["head"].sequences.held()) == {0: {1: 11, 4: 11}}


def test_a_program_of_another_member_is_refused():
    group = split(("anna", "bert"), AllReduceKind.STAR)
    record = numpy_group.record("bert", ["head", "anna", "bert"], group)
    anna = numpy_group.record("anna", ["head", "anna", "bert"], group).program
    with pytest.raises(RunError, match="a program of device anna in the slice of bert"):
        install(record, anna)
