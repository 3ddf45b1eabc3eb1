"""Another program in mid-generation: the same tokens, whatever comes early or late, and what cannot be is named."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import numpy_model
import pytest
from numpy_model import BLOCKS, CHUNK, CONTEXT, FIRST, MIXERS, POSITIONS, WIDTH, greedy
from test_engine import NAMES, Recorder, arrived, fed, perform, two_sources

from llrun.device.load import Device
from llrun.engine.caches import Caches
from llrun.engine.engine import Engine
from llrun.engine.events import Arrived, Closing, Fed, Feed, Inbox, Opening, Switch
from llrun.engine.stores import SequenceStore
from llrun.errors import RunError
from llrun.programs.installed import Installed, install
from llrun.programs.layouts import Limits
from llrun.programs.write import write_programs
from llrun.schema import DeviceProgram, Load
from llrun.wire.frames import check_tensor
from llrun.wire.links import Links
from llrun.wire.protocol import HEADER_BYTES, LAST_CHUNK, ONE_ROW, REPLAY, ProtocolError, unpack_header
from llrun.wire.transfers import Transfers

LIMITS = Limits(CHUNK, CONTEXT, CHUNK * WIDTH * 4)
HEAD, ANNA, BERT = NAMES
AT_FIRST = numpy_model.owners(NAMES)
TRIM_ELSEWHERE = [HEAD, ANNA, ANNA, BERT, BERT, BERT, HEAD]
MIXERS_ELSEWHERE = [HEAD, BERT, ANNA, ANNA, HEAD, HEAD, HEAD]
ANNA_IDLE = [HEAD, BERT, BERT, BERT, BERT, HEAD, HEAD]
BERT_TWICE = [HEAD, BERT, ANNA, BERT, BERT, HEAD, HEAD]
PROMPT = [5, 90, 17, 2, 2, 61, 33, 8, 40, 71]
Mail = tuple[str, str, bytes, bytes]  # from, to, header, payload


def next_program(part: Device, owner: list[str], epoch: int = 2) -> Installed:
    """Written from what every slice holds, as a head would."""
    stages, sent = numpy_model.stages(owner), numpy_model.transmissions(owner)
    idle = DeviceProgram(device=part.name, epoch=epoch, instructions=())
    return install(part.record, write_programs(part.record.graph, stages, sent, epoch).get(part.name, idle))


def at(following: Installed, positions: dict[int, int]) -> Switch:
    """Each sequence goes on at one position in all segments."""
    return Switch(
        following, {number: (place,) * len(following.segments) for number, place in positions.items()}
    )


class Station(Recorder):
    """A device's outside: what it sends goes into the common mail."""

    def __init__(self, device: str, mail: deque[Mail]) -> None:
        super().__init__()
        self.device, self.mail, self.tokens, self.rows = device, mail, [], []

    def send(self, destination, header, payload) -> None:
        self.mail.append((self.device, destination, bytes(header), bytes(payload)))

    def logits(self, steps, rows) -> None:
        self.tokens.append(int(np.argmax(rows[0, -1])))
        self.rows.append(rows[0, -1].copy())


def with_program(part: Device, owner: list[str]) -> Device:
    return replace(part, installed=next_program(part, owner, epoch=1))


class Net:
    """Engines of three devices; mail is delivered when told, early or late, and never to those that are `lost`."""

    def __init__(self, owner: list[str] = AT_FIRST) -> None:
        self.mail: deque[Mail] = deque()
        self.dropped = 0
        self.lost: set[str] = set()
        self.parts = {name: with_program(numpy_model.device(name, NAMES), owner) for name in NAMES}
        self.stations = {name: Station(name, self.mail) for name in NAMES}
        self.engines = {name: Engine(part, self.stations[name], Inbox()) for name, part in self.parts.items()}

    def tell(self, *events, devices: list[str] = NAMES) -> None:
        for name in devices:
            perform(self.engines[name], *events)

    def switch(self, owner: list[str], position: int, devices: list[str]) -> None:
        for name in devices:
            following = next_program(self.parts[name], owner)
            perform(self.engines[name], at(following, {0: position}))

    def deliver(self) -> None:
        while self.mail:
            self.hand_over(self.mail.popleft())

    def hand_over(self, letter: Mail) -> None:
        source, destination, data, payload = letter
        if {source, destination} & self.lost:
            return
        header, engine = unpack_header(data[:HEADER_BYTES]), self.engines[destination]
        layout = check_tensor(header, source, engine.installed, LIMITS)
        if layout is None:
            self.dropped += 1
            return
        rows = 1 if header.flags & ONE_ROW else header.rows
        array = np.frombuffer(payload, layout.dtype).reshape(layout.dims(rows))
        engine.inbox.deliver(source, (header,), array)
        engine.settle()

    def feed(self, ids: list[int], position: int, replay: bool = False) -> None:
        for start in range(0, len(ids), CHUNK):
            part = np.array([ids[start : start + CHUNK]], np.int64)
            last = LAST_CHUNK if start + CHUNK >= len(ids) else 0
            flags = REPLAY if replay else last
            perform(self.engines[HEAD], Fed((Feed(0, position + start, flags, part),)))

    def answer(self) -> int:
        self.deliver()
        return self.stations[HEAD].tokens[-1]


def begin(net: Net, count: int) -> list[int]:
    """The prompt and `count` tokens of its answer."""
    net.tell(Opening(0))
    net.feed(PROMPT, 0)
    tokens = [*PROMPT, net.answer()]
    while len(tokens) < len(PROMPT) + count:
        net.feed(tokens[-1:], len(tokens) - 1)
        tokens.append(net.answer())
    return tokens


@pytest.mark.parametrize(
    ("owner", "again"),
    [
        (TRIM_ELSEWHERE, False),
        (TRIM_ELSEWHERE, True),
        (MIXERS_ELSEWHERE, True),
        (ANNA_IDLE, True),
        (AT_FIRST, False),
    ],
)
@pytest.mark.parametrize("order", [[HEAD, ANNA, BERT], [BERT, ANNA, HEAD], [ANNA, HEAD, BERT]])
def test_a_program_switched_in_mid_generation_gives_the_same_tokens(owner, again, order):
    """`again`: the history is fed once more, as where caches do not come along."""
    net = Net()
    tokens = begin(net, 4)
    for number, name in enumerate(order):
        net.switch(owner, 0 if again else len(tokens) - 1, [name])
        if name == HEAD:
            net.feed(tokens if again else tokens[-1:], 0 if again else len(tokens) - 1)
        if number < 2:
            net.deliver()  # early for all that have not switched
    tokens.append(net.answer())
    while len(tokens) < len(PROMPT) + 9:
        net.feed(tokens[-1:], len(tokens) - 1)
        tokens.append(net.answer())
    assert tokens[len(PROMPT) :] == greedy(PROMPT, 9)
    assert net.dropped == 0
    assert {net.engines[name].installed.epoch for name in NAMES} == {2}
    assert [station.spent[-1].epoch for station in net.stations.values()] == [2, 2, 2]


def test_what_is_late_is_dropped_and_changes_nothing():
    net = Net()
    net.tell(Opening(0))
    net.feed(PROMPT[:CHUNK], 0)
    late = [net.mail[0]]
    tokens = [*PROMPT[:CHUNK], net.answer()]
    net.switch(AT_FIRST, CHUNK, NAMES)
    net.feed(tokens[-1:], CHUNK)
    for letter in late:
        net.hand_over(letter)  # by the links, which know of the new program
    perform(net.engines[ANNA], arrived(FIRST, 0, CHUNK, LAST_CHUNK))  # and by the engine
    assert net.dropped == 1
    assert [*tokens[CHUNK:], net.answer()] == greedy(PROMPT[:CHUNK], 2)


# --- one device, by hand ---


def bert(**changes) -> tuple[Engine, Recorder, Device]:
    part, outside = numpy_model.device(BERT, NAMES, **changes), Recorder()
    return Engine(part, outside, Inbox()), outside, part


def of_epoch(epoch: int, event: Arrived, source: str = ANNA) -> Arrived:
    return Arrived(source, tuple(header._replace(epoch=epoch) for header in event.headers), event.array)


def switch(part: Device, positions: dict[int, int], epoch: int = 2) -> Switch:
    following = next_program(part, AT_FIRST, epoch)
    return at(following, positions)


def test_what_is_early_waits_for_its_program():
    subject, outside, part = bert()
    perform(subject, Opening(0), of_epoch(2, arrived(FIRST + 2, 0, 8)))
    assert outside.done == []
    perform(subject, switch(part, {0: 0}))
    assert outside.done == [(0, 0)]


def test_what_is_early_is_bounded_and_no_further_ahead_than_the_next_epoch():
    subject, _, _ = bert()
    early = [of_epoch(2, arrived(FIRST + 2, 8 * i, 8)) for i in range(257)]
    perform(subject, Opening(0), *early[:256])
    with pytest.raises(ProtocolError, match="256 tensors wait for the next program already"):
        perform(subject, early[256])
    subject, _, part = bert()
    with pytest.raises(ProtocolError, match="a tensor of epoch 3 from anna, while epoch 1 runs here"):
        perform(subject, Opening(0), of_epoch(3, arrived(FIRST + 2, 0, 8)))
    header = arrived(FIRST + 2, 0, 8).headers[0]
    with pytest.raises(ProtocolError, match="a tensor of epoch 3, while epoch 1 runs here"):
        check_tensor(header._replace(epoch=3), ANNA, part.installed, LIMITS)


def test_an_early_tensor_of_a_device_that_the_program_does_not_name_is_refused_then():
    subject, _, part = bert()
    assert check_tensor(of_epoch(2, arrived(FIRST + 2, 0, 8)).headers[0], HEAD, part.installed, LIMITS)
    perform(subject, Opening(0), of_epoch(2, arrived(FIRST + 2, 0, 8), source=HEAD))
    with pytest.raises(ProtocolError, match="unexpected tensor h2 from device head"):
        perform(subject, switch(part, {0: 0}))


def test_a_program_waits_for_the_step_under_way():
    subject, outside, part = bert(**two_sources())
    again = install(part.record, msgspec.structs.replace(part.record.program, epoch=2))
    perform(subject, Opening(0), arrived(FIRST + 2, 0, 8, LAST_CHUNK), at(again, {0: 8}))
    assert (subject.installed.epoch, outside.done) == (1, [])
    perform(subject, Opening(1), arrived(FIRST, 0, 8, LAST_CHUNK))
    assert (subject.installed.epoch, outside.done) == (2, [(0, 0)])
    for sequence, position in ((0, 8), (1, 0)):
        for tensor, source in ((FIRST, HEAD), (FIRST + 2, ANNA)):
            event = arrived(tensor, position, 1, LAST_CHUNK | ONE_ROW, sequence)
            perform(subject, of_epoch(2, event, source))
    assert outside.done == [(0, 0), (0, 8), (1, 0)]


def test_tokens_fed_after_a_program_was_told_are_its_own():
    part, outside = numpy_model.device(HEAD, NAMES), Recorder()
    subject = Engine(part, outside, Inbox())
    perform(subject, Opening(0), Opening(1), fed(0, 8, LAST_CHUNK), switch(part, {0: 8, 1: 0}))
    perform(subject, fed(8, 1, LAST_CHUNK), fed(0, 1, LAST_CHUNK, sequence=1))
    assert [(h.epoch, h.sequence, h.position) for _, h, _ in outside.sent] == [(1, 0, 0)]
    perform(subject, Closing(0))  # with it goes the step that was under way
    assert subject.installed.epoch == 2
    assert [(h.epoch, h.sequence, h.position) for _, h, _ in outside.sent[1:]] == [(2, 1, 0)]


@pytest.mark.parametrize(
    ("event", "code", "reason"),
    [
        (lambda part: switch(part, {0: 8}, epoch=3), "R207", "a program of epoch 3 for bert, the next is 2"),
        (lambda part: switch(part, {0: 8}, epoch=1), "R207", "a program of epoch 1 for bert, the next is 2"),
        (lambda part: switch(numpy_model.device(ANNA, NAMES), {0: 8}), "R207", "of device anna for bert"),
        (lambda part: switch(part, {}), "R402", "does not say where open sequence 0 goes on"),
        (
            lambda part: Switch(next_program(part, AT_FIRST), {0: (8, 8)}),
            "R402",
            "sequence 0 is to go on at 2 places, the program of epoch 2 has 1 segments",
        ),
        (
            lambda part: Switch(next_program(part, BERT_TWICE), {0: (8, 3)}),
            "R402",
            "sequence 0 is to go on at 8 in segment 0 and at 3 in the next",
        ),
        (
            lambda part: switch(part, {0: 9}),
            "R402",
            "cannot go on at 9: the cache of block 3 holds 8 of its tokens",
        ),
        (
            lambda part: at(next_program(part, ANNA_IDLE), {0: 8}),
            "R402",
            "cannot go on at 8: the cache of block 1 holds 0 of its tokens here",
        ),
    ],
)
def test_a_program_that_cannot_follow_is_refused_by_name(event: Callable[[Device], Switch], code, reason):
    subject, _, part = bert()
    perform(subject, Opening(0), arrived(FIRST + 2, 0, 8, LAST_CHUNK))
    with pytest.raises(RunError, match=reason) as caught:
        perform(subject, event(part))
    assert (caught.value.code, caught.value.exit_code) == (code, 1)


def test_a_block_that_is_not_in_memory_is_named():
    part = numpy_model.device(BERT, NAMES)
    part.store.restore()
    subject = Engine(part, Recorder(), Inbox())
    with pytest.raises(
        RunError, match="block 1 is run by the program of epoch 2, but is not in the memory of bert"
    ):
        perform(subject, Switch(next_program(part, ANNA_IDLE), {}))


def test_a_block_that_comes_back_has_nothing_of_the_sequence():
    subject, _, part = bert()
    perform(subject, Opening(0), arrived(FIRST + 2, 0, 8, LAST_CHUNK))
    perform(subject, at(next_program(part, MIXERS_ELSEWHERE), {0: 0}))
    with pytest.raises(RunError, match="cannot go on at 8: the cache of block 3 holds 0"):
        perform(subject, switch(part, {0: 8}, epoch=3))


def test_links_need_a_connection_with_every_neighbour_of_the_next_program():
    part = numpy_model.device(BERT, NAMES)
    lost: list[str] = []
    caches = Caches(SequenceStore(part.record.blocks, part.library.wrap))
    transfers = Transfers(caches, LIMITS.context, lambda *frame: None, lambda number: None)
    told = Inbox().deliver, lambda error: None, lambda device, reason: lost.append(device)
    links = Links(part.installed, LIMITS, *told, transfers)
    links.install(next_program(part, AT_FIRST))
    assert lost == ["anna", "head"]
    links.install(next_program(part, [HEAD] * BLOCKS))
    assert lost == ["anna", "head"]


def test_a_device_may_hold_blocks_that_it_does_not_run():
    part = numpy_model.device(BERT, NAMES)
    assert set(part.installed.blocks) == {3, 4}
    assert set(part.blocks) == set(range(BLOCKS))
    assert Engine(part, Recorder(), Inbox()).installed is part.installed


def test_the_model_is_cut_as_these_tests_say():
    assert [MIXERS.start, MIXERS.stop] == [1, 5]
    assert {POSITIONS, FIRST} == {1, 10}
    assert Load(block=3) in numpy_model.programs(NAMES)[BERT]
    assert FIRST + 1 in next_program(numpy_model.device(ANNA, NAMES), MIXERS_ELSEWHERE).sources
    assert next_program(numpy_model.device(ANNA, NAMES), ANNA_IDLE).blocks == ()
