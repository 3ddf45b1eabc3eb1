"""What is to be said of a device by itself: pure, of what was found."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from llrun.device.headroom import MIB, SLACK_BYTES
from llrun.device.processor import NEEDED
from llrun.faces.doctor.found import Check, Found, Memory, Status
from llrun.schema import SCHEMA, DeviceInfo
from llrun.version import VERSION
from llrun.wire.protocol import VERSION as PROTOCOL

ENOUGH = 0.7  # of a rate that the plan reckons with
NEED = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^]]*\])?\s*(==|>=)?\s*([0-9][^,;\s]*)?")


def checks_of(found: Found, needs: Sequence[str]) -> Iterator[Check]:
    """Of one device, its links aside. `needs`: requirements of llrun's distribution that hold for it."""
    yield bundle(found)
    yield versions(found.machine.packages, needs)
    processor_check = processor(found)
    yield processor_check
    yield threads(found)
    if processor_check.status is Status.OK:
        yield library(found)
    yield memory([found.me], found.memory)
    yield huge_pages(found)
    yield files(found)
    yield disk_space(found)
    yield disk_rate(found)
    if found.port:
        yield port(found)


def bundle(found: Found) -> Check:
    record = found.record
    text = (
        f"{record.model.name}, bundle {record.bundle[:12]}, schema {SCHEMA}: the part of {record.device},"
        f" 1 of {len(record.devices)} devices{', the head' if found.is_head else ''}"
    )
    return Check("bundle", Status.OK, text)


def versions(packages: Mapping[str, str | None], needs: Sequence[str]) -> Check:
    """llrun's own, and those of the packages that it needs."""
    own = f"llrun {VERSION}, protocol {PROTOCOL}"
    if not needs:
        text = (
            f"{own}; llrun is not installed as a package, so nothing says which versions of others it needs"
        )
        return Check(
            "versions", Status.WARN, text, "an installed llrun", "pip install it: pip install ./runtime"
        )
    wanted = [match.groups() for need in needs if (match := NEED.match(need))]
    wrong = [
        (name, packages.get(name), f"{name}{sign or ''}{version or ''}")
        for name, sign, version in wanted
        if not fits(packages.get(name), sign, version)
    ]
    if not wrong:
        listed = ", ".join(f"{name} {packages[name]}" for name, _, _ in wanted)
        return Check("versions", Status.OK, f"{own}; {listed}")
    text = ", ".join(f"{name} {version}" if version else f"{name} is missing" for name, version, _ in wrong)
    expected = [each for _, _, each in wrong]
    remedy = f"pip install {shlex.join(expected)}"
    return Check("versions", Status.FAIL, f"{own}; {text}", ", ".join(expected), remedy)


def fits(version: str | None, sign: str | None, wanted: str | None) -> bool:
    if version is None or not (sign and wanted):
        return version is not None
    return version == wanted if sign == "==" else _numbers(version) >= _numbers(wanted)


def _numbers(version: str) -> tuple[int, ...]:
    """Of a version, the numbers before any letter."""
    leading = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()


def processor(found: Found) -> Check:
    me, machine = found.me, found.machine
    expected = f"{me.isa}, for target {me.target}"
    missing = sorted(NEEDED[me.isa] - machine.features)
    if not missing:
        return Check("processor", Status.OK, f"{machine.name} with all that {expected} needs")
    text = f"{machine.name} without {', '.join(missing)}"
    remedy = f"build the bundle with a target for {me.name} that fits this processor"
    return Check("processor", Status.FAIL, text, expected, remedy)


def threads(found: Found) -> Check:
    me, here = found.me, found.machine.threads
    if here >= me.threads:
        return Check("threads", Status.OK, f"{here}, of which the plan uses {me.threads}")
    remedy = (
        f'give this process {me.threads} cores, or build with "threads": {here} for {me.name} in devices.json'
    )
    return Check("threads", Status.WARN, str(here), f"{me.threads} as planned", remedy)


def library(found: Found) -> Check:
    if found.library is None:
        text = "the compiled functions and TVM's runtime load, and have all that this device's blocks need"
        return Check("library", Status.OK, text)
    remedy = "copy the slice again; where that changes nothing, build the bundle again for this system"
    return Check("library", Status.FAIL, found.library.message, "one that loads", remedy)


def memory(devices: Sequence[DeviceInfo], there: Memory) -> Check:
    """`devices`: those that are to run on this machine together."""
    needed = max(sum(device.peak_bytes for device in devices) - there.held_bytes, 0)
    whose = f"{mib(needed)} more than llrun holds here" if there.held_bytes else mib(needed)
    if there.room is None:
        return Check(
            "memory", Status.WARN, "this system does not say what is left", whose, "look at it yourself"
        )
    text = f"{there.room.bound} leaves {mib(there.room.free_bytes)}"
    if needed <= there.room.free_bytes + SLACK_BYTES * len(devices):
        return Check("memory", Status.OK, f"{text}; the plan takes {whose}")
    remedy = (
        "end other programs or raise the limit, or build again with a smaller memory_bytes in devices.json,"
        " --context or --quant"
    )
    return Check("memory", Status.FAIL, text, f"{whose}, as the plan has it", remedy)


def huge_pages(found: Found) -> Check:
    words = found.machine.huge_pages
    chosen = re.search(r"\[(\w+)\]", words or "")
    mode = chosen[1] if chosen else None
    if mode in ("always", "madvise"):
        return Check("huge pages", Status.OK, f"{mode}, which weights ask for")
    if mode is None:
        text, remedy = (
            "this kernel has none",
            "nothing, but for another kernel: weights are read somewhat slower",
        )
    else:
        text = mode
        remedy = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
    return Check("huge pages", Status.WARN, text, "madvise or always", remedy)


def files(found: Found) -> Check:
    there = found.files
    how = "with the right sha256" if there.hashed else "of the right size (--verify compares every byte)"
    if not there.faults:
        return Check("files", Status.OK, f"{there.count} files, {mib(there.size_bytes)}, all {how}")
    first, more = there.faults[0].message.removesuffix(" Copy the slice again."), len(there.faults) - 1
    text = f"{first}{f' {more} more are wrong.' if more else ''}"
    return Check(
        "files", Status.FAIL, text, f"{there.count} files as the bundle says", "copy the slice again"
    )


def disk_space(found: Found) -> Check:
    free, needed = found.disk.free_bytes, found.files.size_bytes
    if free >= needed:
        return Check("disk space", Status.OK, f"{mib(free)} are free where the slice lies")
    expected = f"{mib(needed)}, so that a new build of this slice can be copied beside it"
    return Check(
        "disk space", Status.WARN, f"{mib(free)} are free where the slice lies", expected, "make room there"
    )


def disk_rate(found: Found) -> Check:
    """Matters for each token where weights stream, else while they are loaded."""
    envelope = found.record.envelope.devices[found.record.device]
    streams, planned, rate = bool(envelope.streamed), envelope.disk_bytes_per_s, found.disk.read_bytes_per_s
    use = (
        f"{len(envelope.streamed)} blocks stream from it for each token"
        if streams
        else "weights are read once"
    )
    if rate is None:
        return Check("disk rate", Status.OK, f"not measured: {found.disk.unread}; {use}")
    text = f"{per_s(rate)} past the page cache; {use}"
    if not streams or rate >= ENOUGH * planned:
        return Check("disk rate", Status.OK, text)
    remedy = (
        f'put the slice on a faster disk, or build again with "disk_bytes_per_s": {rate:.2g} in the profile of'
        f" {found.me.name}"
    )
    return Check("disk rate", Status.WARN, text, f"{per_s(planned)} as planned", remedy)


def port(found: Found) -> Check:
    there = found.port
    assert there is not None
    if there.own_state is not None:
        text = f"llrun of {found.me.name} listens at {there.address} already, and is {there.own_state}"
        return Check("port", Status.OK, text)
    if there.fault is None:
        return Check("port", Status.OK, f"{there.address} is free to listen at")
    where, reason, *more = there.fault.message.split(": ", 2)
    remedy = ": ".join(more) or "choose another address with --listen"
    return Check("port", Status.FAIL, f"{where}: {reason}", "a free port of this machine", remedy)


def mib(count: float) -> str:
    """Bytes, for people."""
    return f"{count / MIB:.0f} MiB" if abs(count) < 10 * 1024 * MIB else f"{count / MIB / 1024:.1f} GiB"


def per_s(rate: float) -> str:
    """Bytes a second, for people."""
    for size, unit in ((1e9, "GB/s"), (1e6, "MB/s")):
        if rate >= size:
            return f"{rate / size:.3g} {unit}"
    return f"{rate / 1e3:.3g} kB/s"
