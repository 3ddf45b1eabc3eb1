"""Rows of caches on their way to devices that are to run their blocks, or might have to: a few frames at a time.

A transfer shares its connection with the tensors of tokens, which must not wait for it: of what was sent only
WINDOW_BYTES are not acknowledged at any time, so a token waits for no more than these. Rows that are computed never
change, so they are sent while later ones are made.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llrun.errors import RunError
from llrun.wire.messages import CacheRows, Way
from llrun.wire.protocol import CACHE, CACHE_ACK, LAST_CHUNK, Header, ProtocolError, pack_header
from llrun.wire.transport import ConnectionLost

FRAME_BYTES = 64 << 10  # of payload, or one row
WINDOW_BYTES = 2 * FRAME_BYTES
WINDOW_FRAMES = 64  # of a mirror's small ones: an answer to each must fit into the queue of a connection
MIRROR = 0  # the number of what has no end
Send = Callable[[str, bytes, memoryview], None]
Read = Callable[[memoryview], None]
NOTHING = memoryview(b"")


class CacheStore(Protocol):
    """The caches of this device's sequences, by rows. Safe from any thread."""

    def row_bytes(self, block: int) -> int:
        """What a row of all of a block's caches takes; 0 where there are none of it here."""

    def tokens(self, block: int) -> dict[int, int]:
        """How many first tokens of each open sequence the caches of `block` hold."""

    def rows_out(self, sequence: int, block: int, start: int, stop: int) -> memoryview | None:
        """Rows start..stop-1; None where the sequence is closed, or they are not here any more."""

    def rows_in(self, sequence: int, block: int, start: int, stop: int, payload: memoryview) -> int:
        """Write rows that came in, but for those that are not wanted any more, and those before which some are
        missing; how many first tokens the block holds then, at least `stop` unless some are missing. Raises
        ProtocolError for a sequence that was never opened."""


@dataclass(frozen=True)
class Rate:
    """What copies to a device have taken: bytes that it acknowledged, and the seconds from first to last."""

    bytes: int
    seconds: float


@dataclass(eq=False)
class _Copy:
    """`rows`: those that are still to be sent. `begun_s`: when the first was."""

    transfer: int
    rows: deque[CacheRows]
    begun_s: float = 0.0
    sent_bytes: int = 0


@dataclass(frozen=True)
class _Frame:
    header: Header
    payload: memoryview
    copy: _Copy | None  # that it is the last of


@dataclass
class _Coming:
    """A transfer to this device. `frames`: how many were taken. `whole`: whether all their rows were wanted."""

    frames: int = 0
    whole: bool = True


@dataclass(eq=False)
class _Lane:
    """What goes to one device. `under_way`: frames that are not acknowledged. `sent`: of the blocks that are mirrored
    there, by sequence, how many first tokens were sent."""

    destination: str
    under_way: deque[_Frame] = field(default_factory=deque)
    under_way_bytes: int = 0
    copies: deque[_Copy] = field(default_factory=deque)
    sent: dict[int, dict[int, int]] = field(default_factory=dict)

    def has_room(self) -> bool:
        return not self.under_way or (
            self.under_way_bytes + FRAME_BYTES <= WINDOW_BYTES and len(self.under_way) < WINDOW_FRAMES
        )


class Transfers:
    """Sends and takes cache rows. `copied` is told each transfer of which all rows have come here.

    A thread of its own sends; it is started when there is something to send first. `send` and `copied` are called
    without a lock held. The other side of a connection that is lost has nothing more to get, and nobody is told: who
    drives the session learns of the loss by itself.
    """

    def __init__(self, caches: CacheStore, context: int, send: Send, copied: Callable[[int], None]) -> None:
        self._caches = caches
        self._context = context
        self._send = send
        self._copied = copied
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        self._coming: dict[str, dict[int, _Coming]] = {}
        self._rates: dict[str, Rate] = {}
        self._woken = threading.Event()
        self._mirroring = False
        self._thread: threading.Thread | None = None
        self._closed = False

    # --- what is to be sent ---

    def copy(self, transfer: int, destination: str, rows: Sequence[CacheRows]) -> None:
        """Send these rows, in their order, after what was asked for before. Raises ProtocolError for rows that cannot
        be here."""
        for each in rows:
            if not self._caches.row_bytes(each.block):
                raise ProtocolError(f"rows of block {each.block} are to be copied, which has no caches here")
            if not each.start < each.stop <= self._context:
                raise ProtocolError(
                    f"rows {each.start} to {each.stop} of block {each.block} are to be copied, the context is"
                    f" {self._context}"
                )
        with self._lock:
            self._lane(destination).copies.append(_Copy(transfer, deque(rows)))
        self._start()

    def mirror(self, ways: Sequence[Way]) -> None:
        """Keep the caches of these blocks up to date there, and of no others. Raises ProtocolError for a block without
        caches here."""
        for way in ways:
            for block in way.blocks:
                if not self._caches.row_bytes(block):
                    raise ProtocolError(f"block {block} is to be mirrored, which has no caches here")
        with self._lock:
            for lane in self._lanes.values():
                lane.sent = {}
            for way in ways:
                self._lane(way.destination).sent.update({block: {} for block in way.blocks})
            self._mirroring = any(lane.sent for lane in self._lanes.values())
        if self._mirroring:
            self._start()

    def computed(self) -> None:
        """Steps were computed here, so there may be rows to mirror. Costs who calls next to nothing."""
        if self._mirroring:
            self._woken.set()

    def stop(self) -> None:
        """Send nothing more of what was asked for: another program runs."""
        with self._lock:
            for lane in self._lanes.values():
                lane.copies.clear()
                lane.sent = {}
            self._mirroring = False

    def lost(self, device: str) -> None:
        """The connection with `device` is gone, or another takes its place: nothing of it is under way any more."""
        with self._lock:
            self._lanes.pop(device, None)
            self._coming.pop(device, None)
            self._mirroring = any(lane.sent for lane in self._lanes.values())

    def close(self) -> None:
        """End the thread; what is under way is left."""
        self.stop()
        self._closed = True
        self._woken.set()

    def rates(self) -> dict[str, Rate]:
        """What copies have taken, by destination."""
        with self._lock:
            return dict(self._rates)

    # --- frames that come in ---

    def take(self, source: str, header: Header, read: Read) -> None:
        """Read the rest of a CACHE frame with `read`, write its rows, and acknowledge it. Raises ProtocolError before
        anything is read for what cannot be of this slice, and what `read` raises.

        Rows before which some are missing are not an error: what was here may have been given up for another program
        while they were on their way. Their transfer never counts as copied.
        """
        check_cache(header, self._caches.row_bytes(header.tensor), self._context)
        held = stop = header.position + header.rows
        if header.rows:
            payload = memoryview(bytearray(header.length))
            read(payload)
            held = self._caches.rows_in(header.sequence, header.tensor, header.position, stop, payload)
        coming, last = self._count(source, header), bool(header.flags & LAST_CHUNK)
        coming.whole &= held >= stop
        answer = header._replace(kind=CACHE_ACK, flags=0, position=held, rows=coming.frames, length=0)
        self._hand_over(source, answer, NOTHING)
        if last and coming.whole:
            self._copied(header.epoch)

    def _count(self, source: str, header: Header) -> _Coming:
        with self._lock:
            known = self._coming.setdefault(source, {})
            if header.epoch not in known and header.epoch != MIRROR:
                # A device sends one copy after another: those before are done, or given up.
                self._coming[source] = known = {k: each for k, each in known.items() if k == MIRROR}
            coming = known.setdefault(header.epoch, _Coming())
            coming.frames = coming.frames + 1 & 0xFFFFFFFF
            if header.flags & LAST_CHUNK:
                del known[header.epoch]
            return coming

    def acknowledged(self, source: str, header: Header) -> None:
        """A CACHE_ACK frame came. Raises ProtocolError for one with a payload."""
        if header.length:
            raise ProtocolError(f"an acknowledgement of cache rows with {header.length} bytes")
        with self._lock:
            lane = self._lanes.get(source)
            if lane is None or not lane.under_way:
                return  # of what was under way when its connection was lost
            frame = lane.under_way.popleft()
            lane.under_way_bytes -= len(frame.payload)
            if frame.copy:
                self._note(source, frame.copy)
            self._go_on_at(lane, frame.header, header.position)
        self._woken.set()

    def _go_on_at(self, lane: _Lane, sent: Header, held: int) -> None:
        """The destination holds `held` tokens now that it has `sent`. Fewer than these: it has given up what it had.
        More, of a mirrored block: it had them, from a copy or mirror of earlier."""
        missing = held < sent.position + sent.rows
        if sent.epoch != MIRROR:
            if missing:
                lane.copies = deque(copy for copy in lane.copies if copy.transfer != sent.epoch)
            return
        known = lane.sent.get(sent.tensor)
        if known is not None and sent.sequence in known:
            known[sent.sequence] = held if missing else max(known[sent.sequence], held)

    def _note(self, destination: str, copy: _Copy) -> None:
        before = self._rates.get(destination, Rate(0, 0.0))
        seconds = time.monotonic() - copy.begun_s
        self._rates[destination] = Rate(before.bytes + copy.sent_bytes, before.seconds + seconds)

    # --- the thread that sends ---

    def _lane(self, destination: str) -> _Lane:
        return self._lanes.setdefault(destination, _Lane(destination))

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="transfers", daemon=True)
                self._thread.start()
        self._woken.set()

    def _run(self) -> None:
        while not self._closed:
            self._woken.wait()
            self._woken.clear()
            with self._lock:
                lanes = list(self._lanes.values())
            for lane in lanes:
                for frame in self._frames(lane):
                    if not self._go(lane, frame):
                        break

    def _go(self, lane: _Lane, frame: _Frame) -> bool:
        """Send a frame; whether there is room for another."""
        with self._lock:
            if self._lanes.get(lane.destination) is not lane:
                return False
            lane.under_way.append(frame)
            lane.under_way_bytes += len(frame.payload)
        if not self._hand_over(lane.destination, frame.header, frame.payload):
            self.lost(lane.destination)
            return False
        return lane.has_room()

    def _hand_over(self, destination: str, header: Header, payload: memoryview) -> bool:
        try:
            self._send(destination, pack_header(header), payload)
        except (ConnectionLost, RunError):
            return False
        return True

    def _frames(self, lane: _Lane) -> Iterator[_Frame]:
        """What is to go to a device now: copies, and then what was computed since."""
        if not lane.has_room():
            return
        while lane.copies:
            copy = lane.copies[0]
            frame = self._next_of(copy)
            if frame is None or frame.copy:
                with self._lock:
                    lane.copies = deque(each for each in lane.copies if each is not copy)
            if frame:
                yield frame
        for block, sent in list(lane.sent.items()):
            yield from self._computed_since(lane, block, sent)

    def _next_of(self, copy: _Copy) -> _Frame | None:
        """The next frame of a copy; the last has no rows. None where rows are not here any more, as another program
        has taken over: it is given up."""
        copy.begun_s = copy.begun_s or time.monotonic()
        while copy.rows:
            rows = copy.rows[0]
            stop = min(rows.stop, rows.start + self._rows_of_frame(rows.block))
            payload = self._caches.rows_out(rows.sequence, rows.block, rows.start, stop)
            if payload is None:
                if rows.sequence in self._caches.tokens(rows.block):
                    return None
                copy.rows.popleft()  # the sequence was closed
                continue
            if stop < rows.stop:
                copy.rows[0] = CacheRows(rows.sequence, rows.block, stop, rows.stop)
            else:
                copy.rows.popleft()
            copy.sent_bytes += len(payload)
            return _frame(copy.transfer, rows.sequence, rows.block, rows.start, stop, payload)
        return _Frame(Header(CACHE, LAST_CHUNK, 0, copy.transfer, 0, 0, 0, 0, 0), NOTHING, copy)

    def _computed_since(self, lane: _Lane, block: int, sent: dict[int, int]) -> Iterator[_Frame]:
        """Frames with the rows of a mirrored block that were not sent yet."""
        tokens = self._caches.tokens(block)
        for number in sent.keys() - tokens.keys():
            del sent[number]
        for number, held in tokens.items():
            while lane.sent.get(block) is sent and (start := sent.setdefault(number, 0)) < held:
                stop = min(held, start + self._rows_of_frame(block))
                payload = self._caches.rows_out(number, block, start, stop)
                if payload is None:
                    break
                sent[number] = stop
                yield _frame(MIRROR, number, block, start, stop, payload)

    def _rows_of_frame(self, block: int) -> int:
        return max(1, FRAME_BYTES // self._caches.row_bytes(block))


def check_cache(header: Header, row_bytes: int, context: int) -> None:
    """Raises ProtocolError for a CACHE frame that is not of rows of a block whose row has `row_bytes` (0: it has no
    caches here), each position within `context`; the last of a transfer may have none."""
    what = f"cache rows of block {header.tensor}"
    if header.flags & ~LAST_CHUNK or header.dtype or (header.flags and header.epoch == MIRROR):
        raise ProtocolError(f"{what} with flags {header.flags:#x} and dtype {header.dtype}")
    if header.flags and not header.rows:
        if header.length:
            raise ProtocolError(f"the end of transfer {header.epoch} has {header.length} bytes")
        return
    if not row_bytes:
        raise ProtocolError(f"{what}, which has no caches here")
    most = max(1, FRAME_BYTES // row_bytes)
    if not 1 <= header.rows <= most:
        raise ProtocolError(f"{what}: {header.rows} in a frame, 1 to {most} can be")
    if header.position + header.rows > context:
        raise ProtocolError(f"{what} end at {header.position + header.rows}, the context is {context}")
    if header.length != header.rows * row_bytes:
        raise ProtocolError(
            f"{what}: {header.length} bytes, {header.rows} rows have {header.rows * row_bytes}"
        )


def _frame(transfer: int, sequence: int, block: int, start: int, stop: int, payload: memoryview) -> _Frame:
    header = Header(CACHE, 0, 0, transfer, sequence, start, stop - start, block, len(payload))
    return _Frame(header, payload, None)
