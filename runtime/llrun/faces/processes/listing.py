"""What `llrun ps` prints: each process with its age and memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from llrun.errors import printable
from llrun.faces.processes.folder import PROC, Record, State, run_folder, running

MIB = 1 << 20
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400


@dataclass(frozen=True)
class Process:
    """`running_s`: since it was started; `memory_bytes`: in its memory now, the most so far in `peak_memory_bytes`. 0
    where the system does not say."""

    record: Record
    running_s: float
    memory_bytes: int
    peak_memory_bytes: int


def processes() -> list[Process]:
    """This user's processes of llrun. Raises RunError R150."""
    ticks, now_s = os.sysconf("SC_CLK_TCK"), _uptime_s()
    found = []
    for record in running(run_folder()):
        held, most = memory_of(record.pid)
        found.append(Process(record, max(now_s - record.started_ticks / ticks, 0.0), held, most))
    return found


def as_json(found: Sequence[Process]) -> dict[str, object]:
    records = []
    for each in found:
        record = msgspec.to_builtins(each.record)
        for key in ("started_ticks", "namespace"):
            del record[key]
        record |= {
            "running_s": round(each.running_s, 2),
            "memory_bytes": each.memory_bytes,
            "peak_memory_bytes": each.peak_memory_bytes,
        }
        records.append(record)
    return {"processes": records}


def as_table(found: Sequence[Process]) -> str:
    """A line for each process, under one of headings."""
    rows = [("PID", "ROLE", "DEVICE", "MODEL", "ADDRESS", "RUNNING", "MEMORY", "STATE")]
    rows += [
        (
            str(each.record.pid),
            each.record.role,
            printable(each.record.device),
            printable(each.record.model),
            printable(each.record.address) or "-",
            age(each.running_s),
            f"{each.memory_bytes / MIB:.0f} MiB",
            doing(each.record),
        )
        for each in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def doing(record: Record) -> str:
    if record.state is not State.SERVING:
        return record.state
    return f"serving {record.sequences} sequence{'' if record.sequences == 1 else 's'}"


def age(seconds: float) -> str:
    """12 s, 3:07, 2:03:07 or 4 d 2:03:07."""
    whole = int(seconds)
    if whole < MINUTE_S:
        return f"{whole} s"
    days, rest = divmod(whole, DAY_S)
    hours, minutes = rest // HOUR_S, rest % HOUR_S // MINUTE_S
    clock = (
        f"{minutes}:{rest % MINUTE_S:02d}"
        if not (hours or days)
        else f"{hours}:{minutes:02d}:{rest % 60:02d}"
    )
    return f"{days} d {clock}" if days else clock


def memory_of(pid: int) -> tuple[int, int]:
    """What the process has in memory, and the most that it had, in bytes; zeros where the system does not say."""
    found = {"VmRSS": 0, "VmHWM": 0}
    with suppress(OSError, ValueError, IndexError):
        for line in (PROC / str(pid) / "status").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key in found:
                found[key] = int(value.split()[0]) * 1024
    return found["VmRSS"], found["VmHWM"]


def _uptime_s() -> float:
    with suppress(OSError, ValueError, IndexError):
        return float((PROC / "uptime").read_text().split()[0])
    return 0.0
