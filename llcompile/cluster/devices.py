"""devices.json: the user's cluster, every figure filled in from the target files.

Everything wrong in the file is told in one error: a user mends it once, not once per mistake.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llcompile.cluster.extras import EXTRA_KEYS, Extras, read_extras
from llcompile.cluster.strict_json import (
    Faults,
    Record,
    items,
    positive,
    read_json,
    record,
    shown,
    suggestion,
    text,
)
from llcompile.cluster.targets import FIGURES, Target, figure_value, load_target, target_names, targets_dir
from llcompile.ir.cluster import Cluster, Device, Link
from llcompile.ir.errors import CompileError

SCHEMA = 1
MAX_DEVICES = 64
MAX_LATENCY_S = 3600.0
PROFILE_KEYS = ("compute_flops", "memory_bytes_per_s", "disk_bytes_per_s")
DEVICE_KEYS = ("name", "target", "address", "memory_bytes", "threads", "profile", *EXTRA_KEYS)
LINK_KEYS = ("bytes_per_s", "latency_s")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
TOKENIZER_LIBRARY_BYTES, TOKENIZER_FACTOR = 8_000_000, 13
_NOT_JSON, _WRONG = "C101", "C102"


@dataclass(frozen=True)
class _Entry:
    """One element of `devices`, as far as it could be read."""

    place: str
    name: str | None
    target: str | None
    address: str | None
    given: Mapping[str, float]
    extras: Extras


def load_cluster(path: str | Path, targets: str | Path | None = None) -> Cluster:
    """Read devices.json at `path`; target files come from the folder `targets` (default: `targets_dir()`).

    Raises CompileError (exit 2): C101 the file cannot be read or is not JSON; C102 its contents are wrong, all
    faults listed with their places and remedies; C103 a target file cannot be read.
    """
    folder = targets_dir() if targets is None else Path(targets)
    faults = Faults()
    cluster = _cluster(faults, read_json(Path(path), "devices file", _NOT_JSON), folder)
    if faults.texts or cluster is None:
        raise CompileError(_WRONG, _report(str(path), faults.texts))
    return cluster


def with_tokenizer(cluster: Cluster, tokenizer_bytes: int) -> Cluster:
    """`cluster` with what a tokenizer whose file has `tokenizer_bytes` (0: none) takes of its head's memory and disk.

    Measured with tokenizers 0.23 on byte-level BPE of 2,048, 16,000 and 40,000 entries (0.12, 1.1 and 2.9 MB of
    JSON): 5.7 MB for the library, and 12 to 13 times the file, a small one 26 times.
    """
    if not tokenizer_bytes:
        return cluster
    taken = TOKENIZER_LIBRARY_BYTES + TOKENIZER_FACTOR * tokenizer_bytes
    devices = tuple(
        replace(d, runtime_bytes=d.runtime_bytes + taken, other_bytes=tokenizer_bytes)
        if d.name == cluster.head
        else d
        for d in cluster.devices
    )
    return replace(cluster, devices=devices)


def _report(path: str, texts: Sequence[str]) -> str:
    if len(texts) == 1:
        return f"{path}: {texts[0]}"
    return "\n  ".join([f"{path}: {len(texts)} problems", *texts])


def _cluster(faults: Faults, value: Any, folder: Path) -> Cluster | None:
    fields = record(faults, value, "", ("schema", "head", "devices", "links"))
    if fields is None:
        return None
    _check_schema(faults, fields)
    entries = _entries(faults, fields)
    _check_unique(faults, entries)
    names = tuple(entry.name for entry in entries if entry.name is not None)
    head = _head(faults, fields, names)
    _check_head_works(faults, entries, head)
    devices = _devices(faults, entries, folder)
    default, links = _links(faults, fields, names, len(entries))
    if faults.texts or head is None or default is None:
        return None
    return Cluster(head, devices, default, links)


def _check_schema(faults: Faults, fields: Record) -> None:
    schema = fields.get("schema")
    if isinstance(schema, bool) or schema != SCHEMA or not isinstance(schema, int):
        given = shown(schema) if "schema" in fields else "nothing"
        faults.add("schema", f'expected {SCHEMA}, found {given}. Write "schema": {SCHEMA}')


def _head(faults: Faults, fields: Record, names: tuple[str, ...]) -> str | None:
    if "head" not in fields:
        faults.add("head", f"missing. Name the user's device, one of: {', '.join(names) or 'the devices'}")
        return None
    head = text(faults, fields["head"], "head")
    if head is not None and head not in names:
        faults.add(
            "head", f"{shown(head)} is not a device{suggestion(head, names)}. Devices: {', '.join(names)}"
        )
    return head


def _check_head_works(faults: Faults, entries: Sequence[_Entry], head: str | None) -> None:
    for entry in entries:
        if entry.name is not None and entry.name == head and entry.extras.standby:
            place = f"{entry.place}.standby"
            faults.add(place, f"{shown(head)} is the head, which always runs blocks. Leave out standby")


# --- devices -------------------------------------------------------------------------------------------------------


def _entries(faults: Faults, fields: Record) -> tuple[_Entry, ...]:
    if "devices" not in fields:
        faults.add("devices", "missing. List at least the head")
        return ()
    values = items(faults, fields["devices"], "devices")
    if isinstance(fields["devices"], list) and not values:
        faults.add("devices", "empty. List at least the head")
    if len(values) > MAX_DEVICES:
        faults.add("devices", f"{len(values)} devices, at most {MAX_DEVICES} are supported. Leave some out")
        return ()
    return tuple(_entry(faults, value, f"devices[{i}]") for i, value in enumerate(values))


def _entry(faults: Faults, value: Any, place: str) -> _Entry:
    fields = record(faults, value, place, DEVICE_KEYS)
    if fields is None:
        return _Entry(place, None, None, None, {}, Extras())
    for key in ("name", "target", "address"):
        if key not in fields:
            faults.add(f"{place}.{key}", f"missing. Every device needs a {key}")
    name = _name(faults, fields["name"], f"{place}.name") if "name" in fields else None
    target = text(faults, fields["target"], f"{place}.target") if "target" in fields else None
    address = _address(faults, fields["address"], f"{place}.address") if "address" in fields else None
    given, extras = _given(faults, fields, place), read_extras(faults, fields, place)
    return _Entry(place, name, target, address, given, extras)


def _given(faults: Faults, fields: Record, place: str) -> Mapping[str, float]:
    """The figures that the entry itself gives."""
    figures = {
        key: figure_value(faults, fields[key], f"{place}.{key}", key)
        for key in ("memory_bytes", "threads")
        if key in fields
    }
    if "profile" in fields:
        profile: Mapping[str, Any] = record(faults, fields["profile"], f"{place}.profile", PROFILE_KEYS) or {}
        figures |= {
            key: figure_value(faults, profile[key], f"{place}.profile.{key}", key)
            for key in PROFILE_KEYS
            if key in profile
        }
    # A figure that is wrong stays present (0), so that it is not reported as missing as well.
    return {key: 0.0 if value is None else value for key, value in figures.items()}


def _name(faults: Faults, value: Any, place: str) -> str | None:
    name = text(faults, value, place)
    if name is not None and not _NAME.fullmatch(name):
        rule = "a letter or digit, then letters, digits, '.', '_' or '-', 64 at most"
        faults.add(place, f"{shown(name)} cannot name a folder. Use {rule}")
    return name


def _address(faults: Faults, value: Any, place: str) -> str | None:
    address = text(faults, value, place)
    if address is None:
        return None
    host, colon, port = address.rpartition(":")
    if not colon or not host or not _good_port(port) or not _good_host(host):
        expected = "host:port with a port from 1 to 65535, such as 10.0.0.7:5700 or [::1]:5700"
        faults.add(place, f"{shown(address)} is not an address. Write {expected}")
        return None
    if _ip(host, 4) == "0.0.0.0" or (_ip(host[1:-1], 6) or "") in ("::", "::ffff:0:0"):
        faults.add(
            place, f"{shown(address)} means all addresses of a machine. Write the one that others reach"
        )
        return None
    return address


def _good_port(port: str) -> bool:
    return port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535


def _good_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        return _ip(host[1:-1], 6) is not None
    if re.fullmatch(r"[0-9.]+", host):
        return _ip(host, 4) is not None
    return len(host) <= 253 and all(_HOST_LABEL.fullmatch(label) for label in host.split("."))


def _ip(host: str, version: int) -> str | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return str(address) if address.version == version else None


def _endpoint(address: str) -> str:
    """`address` in one spelling: two devices must not listen at the same host and port."""
    host, _, port = address.rpartition(":")
    plain = host.strip("[]").lower()
    mapped = getattr(ipaddress.ip_address(plain), "ipv4_mapped", None) if _ip(plain, 6) else None
    plain = str(mapped or plain)
    plain = "127.0.0.1" if plain == "localhost" else _ip(plain, 4) or _ip(plain, 6) or plain
    return f"{plain}:{int(port)}"


def _check_unique(faults: Faults, entries: Sequence[_Entry]) -> None:
    names: dict[str, str] = {}
    addresses: dict[str, str] = {}
    for entry in entries:
        if entry.name is not None:
            # Folders are called by these names, and some file systems ignore case.
            first = names.setdefault(entry.name.lower(), entry.place)
            if first != entry.place:
                faults.add(
                    f"{entry.place}.name", f"{shown(entry.name)} is also {first}. Give each its own name"
                )
        if entry.address is not None:
            first = addresses.setdefault(_endpoint(entry.address), entry.place)
            if first != entry.place:
                text = f"{shown(entry.address)} is also the address of {first}. Give each its own port"
                faults.add(f"{entry.place}.address", text)


def _devices(faults: Faults, entries: Sequence[_Entry], folder: Path) -> tuple[Device, ...]:
    known = target_names(folder)
    named = sorted({entry.target for entry in entries if entry.target is not None})
    targets = {name: load_target(faults, name, folder) for name in named if name in known}
    devices = []
    for entry in entries:
        if entry.target is not None and entry.target not in known:
            have = ", ".join(known) or f"none in {folder}"
            hint = suggestion(entry.target, known)
            faults.add(f"{entry.place}.target", f"unknown target {shown(entry.target)}{hint}. Known: {have}")
        target = targets.get(entry.target or "")
        if target is not None:
            devices.append(_device(faults, entry, target))
    return tuple(device for device in devices if device is not None)


def _device(faults: Faults, entry: _Entry, target: Target) -> Device | None:
    figures = {**target.figures, **entry.given}
    for key in FIGURES:
        if key not in figures:
            faults.add(
                _home(entry.place, key), f"missing: target {target.name} has no figure for it. {_remedy(key)}"
            )
    if entry.name is None or entry.address is None or any(not figures.get(key) for key in FIGURES):
        return None
    return Device(
        name=entry.name,
        target=target.name,
        address=entry.address,
        memory_bytes=int(figures["memory_bytes"]),
        threads=int(figures["threads"]),
        compute_flops=figures["compute_flops"],
        memory_bytes_per_s=figures["memory_bytes_per_s"],
        disk_bytes_per_s=figures["disk_bytes_per_s"],
        runtime_bytes=int(figures["runtime_bytes"]),
        processor=target.processor,
        disk_bytes=entry.extras.disk_bytes,
        standby=entry.extras.standby,
        watts=entry.extras.watts,
        battery_joules=entry.extras.battery_joules,
    )


def _home(place: str, key: str) -> str:
    return f"{place}.profile.{key}" if key in PROFILE_KEYS else f"{place}.{key}"


def _remedy(key: str) -> str:
    return "Add it to the target file" if key == "runtime_bytes" else "Measure it and give it here"


# --- links ---------------------------------------------------------------------------------------------------------


def _links(
    faults: Faults, fields: Record, names: tuple[str, ...], count: int
) -> tuple[Link | None, Mapping[tuple[str, str], Link]]:
    """The default link, and both directions of every given pair."""
    lone = Link(LARGEST_RATE, MIN_LATENCY_S) if count <= 1 else None
    if "links" not in fields:
        if lone is None:
            faults.add("links", "missing. Give links.default, the figures between any two devices")
        return lone, {}
    links = record(faults, fields["links"], "links", ("default", "pairs"))
    if links is None:
        return None, {}
    default = _link(faults, links["default"], "links.default", LINK_KEYS) if "default" in links else None
    pairs = _pairs(faults, links, names)
    if "default" not in links and not faults.texts:
        absent = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if (a, b) not in pairs]
        if absent:
            first = f"{absent[0][0]} and {absent[0][1]}"
            faults.add("links.default", f"missing, and no pair gives the link between {first}. Give either")
    return default or lone or next(iter(pairs.values()), None), pairs


LARGEST_RATE, MIN_LATENCY_S = 1e18, 1e-9  # stand-ins for the links of a cluster that has none


def _pairs(faults: Faults, links: Record, names: tuple[str, ...]) -> Mapping[tuple[str, str], Link]:
    pairs: dict[tuple[str, str], Link] = {}
    places: dict[frozenset[str], str] = {}
    for i, value in enumerate(items(faults, links.get("pairs", []), "links.pairs")):
        place = f"links.pairs[{i}]"
        link = _link(faults, value, place, ("between", *LINK_KEYS))
        ends = (
            _between(faults, value.get("between"), f"{place}.between", names)
            if isinstance(value, Record)
            else None
        )
        if ends is None:
            continue
        first = places.setdefault(frozenset(ends), place)
        if first != place:
            faults.add(
                f"{place}.between",
                f"{ends[0]} and {ends[1]} are also {first}. A pair holds both ways: keep one",
            )
        elif link is not None:
            pairs[ends] = pairs[ends[1], ends[0]] = link
    return pairs


def _link(faults: Faults, value: Any, place: str, known: tuple[str, ...]) -> Link | None:
    fields = record(faults, value, place, known)
    if fields is None:
        return None
    for key in LINK_KEYS:
        if key not in fields:
            faults.add(f"{place}.{key}", "missing. Measure it and give it here")
    if any(key not in fields for key in LINK_KEYS):
        return None
    rate = positive(faults, fields["bytes_per_s"], f"{place}.bytes_per_s", "bytes per second")
    latency = positive(faults, fields["latency_s"], f"{place}.latency_s", "seconds", MAX_LATENCY_S)
    return None if rate is None or latency is None else Link(rate, latency)


def _between(faults: Faults, value: Any, place: str, names: tuple[str, ...]) -> tuple[str, str] | None:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(end, str) for end in value):
        faults.add(place, f'expected two device names, found {shown(value)}. Write ["a", "b"]')
        return None
    unknown = [end for end in value if end not in names]
    for end in unknown:
        faults.add(
            place, f"{shown(end)} is not a device{suggestion(end, names)}. Devices: {', '.join(names)}"
        )
    if not unknown and value[0] == value[1]:
        faults.add(place, f"{shown(value[0])} with itself. A link joins two devices: remove it")
        return None
    return None if unknown else (value[0], value[1])
