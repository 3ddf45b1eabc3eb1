"""Where a bundle's devices are, and a session on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from llrun.device.headroom import check_together
from llrun.device.load import load_device
from llrun.device.slice import StoredSlice
from llrun.errors import RunError
from llrun.faces import local
from llrun.faces.processes.folder import Role, State
from llrun.faces.processes.noted import Doing, noted
from llrun.head.controls import Note
from llrun.head.options import Balancing
from llrun.head.session import Session
from llrun.wire.addresses import parse_address
from llrun.wire.transport import Transport


class Told(Protocol):
    """Who is told what a session does meanwhile: a console, or a program."""

    @property
    def note(self) -> Note:
        """Takes a line."""

    def progress(self, done: int, total: int) -> None:
        """Bytes of weights that are read, of all."""


@dataclass(frozen=True)
class Where:
    """Where the devices are, and how they are reached.

    `local`: all on this machine; `peers`: addresses that differ from the bundle's; `verify`: hash what is
    loaded; `timeout_s`: bounds every wait, for a device to be reached and for progress; `serves`: where requests are
    taken, empty where they are not.
    """

    local: bool
    peers: Mapping[str, str]
    verify: bool
    timeout_s: float
    transport: Transport
    serves: str = ""

    @property
    def role(self) -> Role:
        """What this process is to `ps`."""
        return Role.SERVE if self.serves else Role.LOCAL if self.local else Role.HEAD


def check_peers(stored: StoredSlice, peers: Mapping[str, str]) -> list[str]:
    """The bundle's workers. Raises RunError R108 for a peer that is none, R101 for what is no address."""
    names = sorted(stored.record.devices.keys() - {stored.record.head})
    unknown = sorted(peers.keys() - set(names))
    if unknown:
        raise RunError("R108", f"--peer {unknown[0]}: this bundle's workers are {', '.join(names) or 'none'}")
    for address in peers.values():
        parse_address(address)
    return names


@contextmanager
def session_on(
    stored: StoredSlice, where: Where, told: Told, balancing: Balancing | None = None
) -> Iterator[Session]:
    """All devices, connected. With `local`, the workers load while the head does. `balancing` None: as by default.

    Raises RunError as check_peers does, R108 for `local` without the whole bundle.
    """
    with (
        noted(stored, where.role, where.serves) as own,
        _connected(stored, where, told, balancing) as session,
    ):
        own.looks(lambda: _doing(session))
        yield session


def _doing(session: Session) -> Doing:
    sequences = len(session.open_numbers())
    return Doing(State.SERVING, sequences) if sequences else Doing(State.WAITING)


@contextmanager
def _connected(
    stored: StoredSlice, where: Where, told: Told, balancing: Balancing | None
) -> Iterator[Session]:
    names = check_peers(stored, where.peers)
    if not where.local:
        described = {name: stored.record.devices[name].address for name in names}
        device = load_device(stored, where.verify, told.progress)
        addresses = {**described, **where.peers}
        with Session(device, where.transport, addresses, where.timeout_s, told.note, balancing) as session:
            yield session
        return
    if stored.bundle is None:
        raise RunError("R108", f"--local needs the whole bundle, {stored.folder} is one device's slice")
    check_together(stored.record.devices)
    options = () if where.verify else ("--no-verify",)
    with local.workers(stored.bundle, names, options) as listening:
        device = load_device(stored, where.verify, told.progress)
        with Session(device, where.transport, listening(), where.timeout_s, told.note, balancing) as session:
            yield session
