"""Looks, judges, prints: `llrun doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llrun.device.headroom import memory_left
from llrun.device.slice import StoredSlice, find
from llrun.errors import INTERNAL, RunError, printable
from llrun.faces.doctor import judge
from llrun.faces.doctor.found import Check, Memory, Status, all_well
from llrun.faces.doctor.judge_links import link_checks
from llrun.faces.doctor.look import held_bytes, look_at, needs
from llrun.faces.doctor.peers import look_at_peers, look_at_port
from llrun.faces.where import check_peers
from llrun.wire.transport import Transport

NAME_WIDTH = 18
OF_EACH = frozenset({"bundle", "processor", "threads", "library", "files", "disk rate"})  # device


@dataclass(frozen=True)
class Asked:
    """`local`: all devices are to run on this machine. `listen`, `peers`: addresses that differ from the bundle's.
    `verify`: compare every byte. `timeout_s`: bounds each attempt to reach a device."""

    local: bool
    listen: str | None
    peers: Mapping[str, str]
    verify: bool
    timeout_s: float
    transport: Transport


def examine(stored: StoredSlice, asked: Asked) -> list[Check]:
    """All checks. Raises RunError for wrong use."""
    check_peers(stored, asked.peers)
    if asked.local and (asked.listen or asked.peers):
        raise RunError(
            "R108", "--local is of all devices on this machine: --listen and --peer mean nothing with it"
        )
    if asked.local:
        return list(_together(stored, asked))
    worker = stored.device != stored.record.head
    if asked.listen and not worker:
        raise RunError("R108", f"{stored.device} is the head, which does not listen: --listen is for workers")
    port = look_at_port(stored, asked.listen, asked.transport, asked.timeout_s) if worker else None
    peers = look_at_peers(stored, asked.peers, asked.transport, asked.timeout_s)
    found = look_at(stored, asked.verify, port, peers)
    return [*judge.checks_of(found, needs(head=not worker)), *link_checks(found)]


def _together(stored: StoredSlice, asked: Asked) -> Iterator[Check]:
    """Every device's part, on this one machine: no port, no link, and memory for all at once."""
    if stored.bundle is None:
        raise RunError("R108", f"--local needs the whole bundle, {stored.folder} is one device's slice")
    record, held = stored.record, 0
    for name in sorted(record.devices, key=lambda name: (name != record.head, name)):
        try:
            part = find(stored.bundle, name)
        except RunError as error:
            yield broken(error, f"bundle {name}")
            continue
        held += held_bytes(part)
        found = look_at(part, asked.verify, None, ())
        for check in judge.checks_of(found, needs(head=name == record.head)):
            if check.name in OF_EACH:
                yield replace(check, name=f"{check.name} {name}")
            elif check.name != "memory" and name == record.head:
                yield check
    yield judge.memory(list(record.devices.values()), Memory(memory_left(), held))


def broken(error: RunError, name: str = "bundle") -> Check:
    """A slice that cannot even be read."""
    what, _, remedy = error.message.rpartition(". ")
    expected = "a bundle or slice that this version reads"
    return Check(
        name, Status.FAIL, what or error.message, expected, remedy or "copy it again, or build it again"
    )


def as_lines(checks: Sequence[Check]) -> Iterator[str]:
    """One line a check, and one for its remedy."""
    width = max([NAME_WIDTH, *(len(check.name) for check in checks)])
    for check in checks:
        expected = f"; expected: {check.expected}" if check.expected and check.status is not Status.OK else ""
        yield printable(f"{check.status:<5}{check.name:<{width}}  {check.found}{expected}")
        if check.remedy:
            yield printable(f"{'':<5}{'':<{width}}  -> {check.remedy}")


def as_json(checks: Sequence[Check]) -> dict[str, object]:
    fields = ("name", "status", "found", "expected", "remedy")
    return {
        "checks": [{field: str(getattr(check, field)) for field in fields} for check in checks],
        "ok": all_well(checks),
    }


def exit_code(checks: Sequence[Check]) -> int:
    return 0 if all_well(checks) else INTERNAL
