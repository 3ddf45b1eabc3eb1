"""The head of a session: connects the devices, feeds sequences, and collects logits and figures."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from queue import Empty, SimpleQueue

import numpy as np
from numpy.typing import NDArray

from llrun.device.load import Device
from llrun.engine.engine import Engine
from llrun.engine.events import Asking, Closing, Event, Fed, Feed, Inbox, Opening, Stop
from llrun.errors import INTERNAL, RunError
from llrun.head.controls import Controls, Logits, Reply, cause_of, failure_of
from llrun.memory import Array, empty
from llrun.wire.links import Links
from llrun.wire.protocol import (
    ALL_ROWS,
    LAST_CHUNK,
    AnyMessage,
    AskFigures,
    Close,
    Configure,
    Configured,
    Connect,
    Figures,
    Measured,
    Message,
    Open,
    Opened,
    Ready,
    StepsDone,
)
from llrun.wire.transport import Transport

COMPUTE_END_S = 5.0
NOWHERE = "0.0.0.0:0"  # the head listens nowhere
Ids = Sequence[int]


class Outbound:
    """The engine's outside on the head: tensors to neighbours, everything else to the driver."""

    def __init__(self, device: str, links: Links, replies: SimpleQueue[Reply]) -> None:
        self._device = device
        self._links = links
        self._replies = replies

    def send(self, destination: str, header: bytes, payload: memoryview) -> None:
        self._links.send(destination, header, payload)

    def opened(self, sequence: int, figures: Figures) -> None:
        self._replies.put((self._device, Opened(sequence, figures)))

    def steps_done(self, steps: Sequence[tuple[int, int]], figures: Figures) -> None:
        self._replies.put((self._device, StepsDone(tuple(steps), figures)))

    def measured(self, figures: Figures) -> None:
        self._replies.put((self._device, Measured(figures)))

    def logits(self, steps: Sequence[tuple[int, int]], rows: Array) -> None:
        matrix = rows.reshape(-1, rows.shape[-1]).astype(np.float32, copy=False)
        each = len(matrix) // len(steps)  # a row of each of several steps, or all rows of one
        self._replies.put([Logits(*step, matrix[i * each : (i + 1) * each]) for i, step in enumerate(steps)])


class Session:
    """All devices of a bundle, connected and ready. Use as a context manager, from one thread.

    A sequence is opened, fed with token ids, and gives the logits of each feed's last token (`all_rows`:
    of every token) in the order in which they come. `timeout_s` bounds every wait for progress. Any
    RunError ends the session.
    """

    def __init__(
        self, device: Device, transport: Transport, addresses: Mapping[str, str], timeout_s: float
    ) -> None:
        self._device = device
        self._timeout_s = timeout_s
        self._replies: SimpleQueue[Reply] = SimpleQueue()
        inbox = Inbox()
        self._links = Links(device.installed, device.limits, inbox.deliver, self._replies.put)
        outbound = Outbound(device.name, self._links, self._replies)
        self._engine = Engine(device.installed, device.blocks, device.library, outbound, inbox)
        chosen = {name: addresses[name] for name in workers_of(device)}
        self._controls = Controls(device.record.bundle, device.name, transport, chosen, self._replies)
        self._compute = threading.Thread(target=self._run_engine, name="compute", daemon=True)
        self._next = 0
        self._waiting: deque[Feed] = deque()
        self._chunks: dict[tuple[int, int], int] = {}
        self._partial: set[str] = set()  # devices that take part in a prompt's last chunk alone
        self._ready: deque[Logits] = deque()
        self._newest: tuple[int, int] | None = None
        self._done: dict[str, tuple[tuple[int, int], ...]] = {}  # what each did last
        self.figures: dict[str, Figures] = {}

    def __enter__(self) -> Session:
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def device(self) -> Device:
        return self._device

    # --- sequences ---

    def open(self) -> int:
        """Make room for a sequence on every device; its number."""
        number = self._next
        self._next += 1
        self._tell(Open(number), Opening(number))
        self._gather(Opened, len(self._controls) + 1)
        return number

    def close_sequence(self, number: int) -> None:
        """Forget the sequence, and of its tokens those that have not been computed yet."""
        self._waiting = deque(feed for feed in self._waiting if feed.sequence != number)
        self._chunks = {key: left for key, left in self._chunks.items() if key[0] != number}
        self._tell(Close(number), Closing(number))
        self._release()

    def feed(self, number: int, ids: Ids, position: int, all_rows: bool = False) -> None:
        """Queue `ids` at `position`, in chunks. Chunks beyond what may be under way wait here, not on
        the devices."""
        self._waiting.extend(self._chunked(number, ids, position, all_rows))
        self._release()

    def feed_many(self, tokens: Iterable[tuple[int, int, int]]) -> None:
        """Queue one token of each of several sequences, (number, token id, position), at once: they are
        computed in one pass, or in as many as their number takes."""
        feeds = [self._chunked(number, (token,), position, False) for number, token, position in tokens]
        self._waiting.extend(feed for parts in feeds for feed in parts)
        self._release()

    def _chunked(self, number: int, ids: Ids, position: int, all_rows: bool) -> list[Feed]:
        model = self._device.record.model
        if position + len(ids) > model.context:
            raise RunError(
                "R105", f"{position} + {len(ids)} tokens are more than the context of {model.context}"
            )
        chunk, feeds = model.chunk, []
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            array = empty((1, len(part)), "int64")
            array[0] = part
            flags = (LAST_CHUNK if start + chunk >= len(ids) else 0) | (ALL_ROWS if all_rows else 0)
            feeds.append(Feed(number, position + start, flags, array))
        return feeds

    def next_logits(self) -> Logits:
        """The next logits of any sequence. Raises RunError when a device is lost or nothing moves for
        too long."""
        while not self._ready:
            self._take()
        return self._ready.popleft()

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        """Logits (n, vocabulary) at every one of n token ids, as a new sequence."""
        number = self.open()
        self.feed(number, ids, 0, all_rows=True)
        found: dict[int, NDArray[np.float32]] = {}
        while sum(len(rows) for rows in found.values()) < len(ids):
            part = self.next_logits()
            found[part.position] = part.rows
        self.close_sequence(number)
        return np.concatenate([found[position] for position in sorted(found)])

    def measure(self) -> dict[str, Figures]:
        """Every device's figures now."""
        self._tell(AskFigures(), Asking())
        self._gather(Measured, len(self._controls) + 1)
        return dict(self.figures)

    # --- what comes back ---

    def _take(self) -> AnyMessage | None:
        """Take one reply in: logits and figures are kept, chunks that are done make room for others."""
        try:
            reply = self._replies.get(timeout=self._timeout_s)
        except Empty:
            raise self._standstill() from None
        failure = failure_of(reply)
        if failure:
            raise cause_of(failure, self._replies)
        if isinstance(reply, list):
            self._ready.extend(reply)
        if not isinstance(reply, tuple):
            return None
        device, message = reply
        if isinstance(message, Opened | StepsDone | Measured):
            self.figures[device] = message.figures
        if isinstance(message, Configured) and not message.every_chunk:
            self._partial.add(device)
        if isinstance(message, StepsDone):
            self._done[device] = message.steps
            for step in message.steps:
                self._chunk_done(step)
        return message

    def _standstill(self) -> RunError:
        """Nothing moves though every device lives: name those that have not done the newest step."""
        devices = sorted({self._device.name, *workers_of(self._device)})
        behind = [device for device in devices if self._newest not in self._done.get(device, (None,))]
        return RunError(
            "R305",
            f"nothing came from any device for {self._timeout_s:g} s (--timeout); the newest step is not done"
            f" on {', '.join(behind) or 'none'}",
            INTERNAL,
        )

    def _gather(self, kind: type[Message], due: int) -> None:
        """Take replies until `due` of `kind` have come."""
        while due:
            due -= isinstance(self._take(), kind)

    def _chunk_done(self, key: tuple[int, int]) -> None:
        if key in self._chunks:
            self._chunks[key] -= 1
            if not self._chunks[key]:
                del self._chunks[key]
                self._release()

    def _release(self) -> None:
        """Let waiting chunks go while fewer are under way than keep every device busy; single tokens go
        at once."""
        devices, going = len(self._controls) + 1, []
        while self._waiting and (self._waiting[0].ids.shape[1] == 1 or len(self._chunks) < 2 * devices):
            feed = self._waiting.popleft()
            self._newest = (feed.sequence, feed.position)
            if feed.ids.shape[1] > 1:
                absent = 0 if feed.flags & (LAST_CHUNK | ALL_ROWS) else len(self._partial)
                self._chunks[feed.sequence, feed.position] = devices - absent
            going.append(feed)
        if going:
            self._engine.inbox.put(Fed(tuple(going)))

    def _tell(self, message: Message, event: Event) -> None:
        """Say it to every worker, and to the engine here."""
        self._engine.inbox.put(event)
        self._controls.tell(message)

    # --- setting up and ending ---

    def _connect(self) -> None:
        """Control connections, then configuration, then data connections: each step on all devices at
        once."""
        controls, installed = self._controls, self._device.installed
        controls.connect()
        self._compute.start()
        controls.tell(
            Configure(controls.session, installed.epoch, {**controls.addresses, installed.device: NOWHERE})
        )
        self._gather(Configured, len(controls))
        controls.connect_data(installed, self._links)
        controls.tell(Connect())
        self._gather(Ready, len(controls))

    def _run_engine(self) -> None:
        try:
            self._engine.run()
        except RunError as error:
            self._replies.put(error)

    def close(self) -> None:
        """Say goodbye and end everything; safe to call in any state, more than once."""
        self._links.retire()
        self._controls.close()
        self._links.close()
        self._engine.inbox.put(Stop())
        if self._compute.is_alive():
            self._compute.join(COMPUTE_END_S)


def workers_of(device: Device) -> list[str]:
    """Every device of the plan but the head, by name."""
    return sorted(device.record.devices.keys() - {device.record.head})
