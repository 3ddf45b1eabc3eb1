"""What was found on a device and of its links, and what is said of it: values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from llrun.device.headroom import Room
from llrun.errors import RunError
from llrun.schema import DeviceInfo, Slice
from llrun.wire.probe import Probing


class Status(StrEnum):
    """`fail`: it cannot run. `warn`: it runs slower, or something else is odd."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One line. `remedy`: what to do about it, empty where nothing is wrong."""

    name: str
    status: Status
    found: str
    expected: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class Machine:
    """`features`: of the processor, by Linux's names. `threads`: that processes here may use. `huge_pages`: the
    system's words about transparent ones, None where it has none. `packages`: installed versions by name, None where
    there is none."""

    name: str
    features: frozenset[str]
    threads: int
    huge_pages: str | None
    packages: Mapping[str, str | None]


@dataclass(frozen=True)
class Memory:
    """`room`: what is left, None where nothing says. `held_bytes`: what llrun holds that runs this part already."""

    room: Room | None
    held_bytes: int


@dataclass(frozen=True)
class Disk:
    """`free_bytes`: where the slice lies. `read_bytes_per_s`: past the page cache, None with the reason in `unread`."""

    free_bytes: int
    read_bytes_per_s: float | None
    unread: str


@dataclass(frozen=True)
class Files:
    """`faults`: of those that are not as the slice says, its words. `hashed`: whether their bytes were compared, else
    their sizes."""

    count: int
    size_bytes: int
    faults: Sequence[RunError]
    hashed: bool


@dataclass(frozen=True)
class Port:
    """Whether it can be listened on. `taken_by`: what this device's own llrun says of itself where it listens there."""

    address: str
    fault: RunError | None
    own_state: str | None


@dataclass(frozen=True)
class Way:
    """The interface by which an address is reached. `kind`: as `route.kind_of` has it; `speed_mbit`: None where the
    system does not say."""

    interface: str
    kind: str
    speed_mbit: int | None


@dataclass(frozen=True)
class Peer:
    """Another device. `measured` None: nothing was, for `fault`."""

    name: str
    address: str
    way: Way | None
    measured: Probing | None
    fault: RunError | None


@dataclass(frozen=True)
class Found:
    """All that was found on one device. `library`: why its library cannot be used, None where it can, or where the
    processor is at fault already. `whole`: whether the bundle's other devices lie here too."""

    record: Slice
    whole: bool
    machine: Machine
    memory: Memory
    disk: Disk
    files: Files
    library: RunError | None
    port: Port | None
    peers: Sequence[Peer]

    @property
    def me(self) -> DeviceInfo:
        return self.record.devices[self.record.device]

    @property
    def is_head(self) -> bool:
        return self.record.device == self.record.head


def all_well(checks: Iterable[Check]) -> bool:
    return all(check.status is not Status.FAIL for check in checks)
