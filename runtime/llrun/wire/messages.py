"""The control messages: what heads and workers say to each other, msgpack in a frame of its own."""

from __future__ import annotations

from typing import Annotated

import msgspec

from llrun.schema import MAX_BATCH, DeviceProgram

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Name = Annotated[
    str, msgspec.Meta(max_length=256, pattern=r"\A[ -~]+\Z")
]  # printable ASCII, at least a letter
Token = Annotated[str, msgspec.Meta(max_length=256, pattern=r"\A[ -~]*\Z")]
Text = Annotated[str, msgspec.Meta(max_length=4096)]  # for people; printable once it was decoded
Names = Annotated[tuple[Name, ...], msgspec.Meta(max_length=1 << 10)]
PROBE_LIMIT = 1 << 18
Piece = Annotated[bytes, msgspec.Meta(max_length=PROBE_LIMIT)]
Blocks = Annotated[tuple[Count, ...], msgspec.Meta(max_length=1 << 14)]


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of the control messages."""


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device has spent since the session began: seconds, bytes; of memory, its most."""

    compute_s: float = 0.0
    wait_s: float = 0.0
    sent_bytes: int = 0
    peak_memory_bytes: int = 0


class Hello(Message, frozen=True, tag="hello"):
    """First message on a connection. `role`: control (from the head, one a session), data (`session` must be the one
    the head gave), or probe (from any device of the bundle, to measure the link)."""

    bundle: Name
    sender: Name
    role: Name
    session: Token = ""


class Welcome(Message, frozen=True, tag="welcome"):
    device: Name


class Refused(Message, frozen=True, tag="refused"):
    code: Name
    reason: Text


class Configure(Message, frozen=True, tag="configure"):
    """The session's name, its epoch, and where each device listens. The epoch of the slice's own program: that one
    runs. A later one: the device comes to a session that goes on, and runs nothing yet."""

    session: Name
    epoch: Count
    addresses: dict[Name, Name]


class Configured(Message, frozen=True, tag="configured"):
    """The session's name is known: data connections may come. `every_chunk`: whether this device takes part
    in a prompt's every chunk, or only in the last. `sequences`: how many it has room for at once."""

    every_chunk: bool
    sequences: Count


class Connect(Message, frozen=True, tag="connect"):
    """Make the data connections that are this device's to make."""


class Ready(Message, frozen=True, tag="ready"):
    """All data connections are there."""


class Open(Message, frozen=True, tag="open"):
    """Make room for a sequence. Numbers rise and are never used twice in a session.

    `after`: a sequence that nothing is under way of, and that is closed by this; the new one takes over its caches, and
    goes on after the first `tokens` that they hold.
    """

    sequence: Count
    after: Count | None = None
    tokens: Count = 0


class Opened(Message, frozen=True, tag="opened"):
    sequence: Count
    figures: Figures


class Rejected(Message, frozen=True, tag="rejected"):
    """There is no room for a sequence here; the session goes on without it."""

    sequence: Count
    code: Name
    reason: Text


class Close(Message, frozen=True, tag="close"):
    sequence: Count


class StepDone(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A step of which a device has done all its work, and what that cost the device.

    `compute_s`, `sent_bytes`: where steps were computed as one, an equal share of it, as each has one row
    there. `wait_s`: how long the device had been idle before it went to work on the step, shared likewise.
    `send_s`: in handing what it sends to the system. `runs`: of `compute_s`, that of each segment, where there are few.
    """

    sequence: Count
    position: Count
    compute_s: float
    wait_s: float
    sent_bytes: int
    send_s: float = 0.0
    runs: Annotated[tuple[float, ...], msgspec.Meta(max_length=1 << 10)] = ()


class StepsDone(Message, frozen=True, tag="steps_done"):
    """Some steps are done on this device: one, or those of a pass."""

    steps: Annotated[tuple[StepDone, ...], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]
    figures: Figures


class Prepare(Message, frozen=True, tag="prepare"):
    """Get ready for `program`, of the next epoch, while the present one runs: check it, read its blocks, and have data
    connections with its neighbours and `links`.

    `drop`: blocks that it does not run are given up first; only after Halt. One for the same epoch replaces it, with
    another `attempt`, which the answer repeats.
    """

    epoch: Count
    attempt: Count
    program: DeviceProgram
    links: Names = ()
    drop: bool = False


class Prepared(Message, frozen=True, tag="prepared"):
    epoch: Count
    attempt: Count


class Unprepared(Message, frozen=True, tag="unprepared"):
    """It cannot be got ready; the present program goes on."""

    epoch: Count
    attempt: Count
    code: Name
    reason: Text


class Halt(Message, frozen=True, tag="halt"):
    """Drop all steps under way and run nothing until the Switch to `epoch`."""

    epoch: Count


class Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """The caches of blocks start..stop-1 hold the first `tokens` tokens of a sequence; blocks without caches are in
    none of these."""

    sequence: Count
    start: Count
    stop: Count
    tokens: Count


class Halted(Message, frozen=True, tag="halted"):
    epoch: Count
    held: Annotated[tuple[Held, ...], msgspec.Meta(max_length=1 << 15)]


class Places(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Where a sequence goes on in each segment of a program, as token positions."""

    sequence: Count
    segments: Annotated[tuple[Count, ...], msgspec.Meta(max_length=1 << 10)]


class Switch(Message, frozen=True, tag="switch"):
    """Take up the program that was prepared for `epoch`, at the next step boundary. Every open sequence is in
    `positions`."""

    epoch: Count
    positions: Annotated[tuple[Places, ...], msgspec.Meta(max_length=1 << 10)]


class Switched(Message, frozen=True, tag="switched"):
    epoch: Count


class CacheRows(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Rows start..stop-1, positions, of a block's caches for a sequence."""

    sequence: Count
    block: Count
    start: Count
    stop: Count


class Copy(Message, frozen=True, tag="copy"):
    """Send these rows, which are computed here, to `destination`, which tells the head when it has all."""

    transfer: Annotated[int, msgspec.Meta(ge=1, lt=1 << 32)]
    destination: Name
    rows: Annotated[tuple[CacheRows, ...], msgspec.Meta(min_length=1, max_length=1 << 14)]


class Copied(Message, frozen=True, tag="copied"):
    transfer: Count


class Way(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Blocks that are run here, whose caches `destination` shall have too."""

    destination: Name
    blocks: Blocks


class Mirror(Message, frozen=True, tag="mirror"):
    """Keep others' caches up to date with what is computed here, from now until the next Mirror or Switch."""

    ways: Annotated[tuple[Way, ...], msgspec.Meta(max_length=1 << 10)]


class LostPeer(Message, frozen=True, tag="lost_peer"):
    """The data connection with a device is gone; what would go there is dropped until the next epoch."""

    device: Name
    reason: Text


class LinkFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A data connection as its traffic shows it: seconds one way, and bytes a second; 0 where it is not known."""

    device: Name
    latency_s: float
    bytes_per_s: float


class AskFigures(Message, frozen=True, tag="ask_figures"):
    pass


class Measured(Message, frozen=True, tag="measured"):
    """`free_memory_bytes`: what the system leaves; 0 where it does not say."""

    figures: Figures
    links: Annotated[tuple[LinkFigures, ...], msgspec.Meta(max_length=1 << 10)] = ()
    free_memory_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    pass


class Failed(Message, frozen=True, tag="failed"):
    """The session cannot go on. `lost`: the device that is gone, where that is the reason."""

    code: Name
    reason: Text
    lost: Token = ""


class Probe(Message, frozen=True, tag="probe"):
    """Bytes that are carried for the time that it takes, and how many to send back."""

    payload: Piece
    back: Annotated[int, msgspec.Meta(ge=0, le=PROBE_LIMIT)]


class Probed(Message, frozen=True, tag="probed"):
    """`version`: of llrun there; `state`: what the worker does, in a word."""

    payload: Piece
    version: Token
    state: Token


class Goodbye(Message, frozen=True, tag="goodbye"):
    pass


AnyMessage = (
    Hello | Welcome | Refused | Configure | Configured | Connect | Ready | Open | Opened | Rejected | Close
    | Prepare | Prepared | Unprepared | Halt | Halted | Switch | Switched | Copy | Copied | Mirror | LostPeer
    | StepsDone | AskFigures | Measured | Heartbeat | Failed | Probe | Probed | Goodbye
)  # fmt: skip
