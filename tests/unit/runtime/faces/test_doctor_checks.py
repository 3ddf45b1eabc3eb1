"""What the doctor says of what was found: pure, so every broken set-up is a value."""

from __future__ import annotations

from dataclasses import replace

import numpy_model
import pytest
from msgspec.structs import replace as changed

from llrun.device.headroom import Room
from llrun.device.processor import AVX2
from llrun.errors import INTERNAL, RunError
from llrun.faces.doctor import judge
from llrun.faces.doctor.doctor import as_json, as_lines, broken, exit_code
from llrun.faces.doctor.found import (
    Check,
    Disk,
    Files,
    Found,
    Machine,
    Memory,
    Peer,
    Port,
    Probing,
    Status,
    Way,
)
from llrun.faces.doctor.judge import checks_of
from llrun.faces.doctor.judge_links import link_checks
from llrun.faces.doctor.look import needs
from llrun.faces.doctor.route import LOOPBACK, MOBILE, TUNNEL, WIRED, WIRELESS, kind_of, way_to
from llrun.version import VERSION
from llrun.wire.addresses import peer_endpoints

NAMES = ["head", "anna", "bert"]
PACKAGES = {"numpy": "2.4.6", "click": "8.5.1"}
NEEDS = ["numpy>=1.24", "click>=8.1"]
CABLE = Way("eth0", WIRED, 1000)
GOOD = Probing(VERSION, "waiting", 1e-3, 1e8, 1e8)
MIB = 1 << 20


def found(device: str = "head", **changes: object) -> Found:
    """A device with which all is well. The plan's links have 1 ms and 100 MB/s."""
    addresses = {name: f"10.0.0.{number}:5700" for number, name in enumerate(NAMES, 1)}
    record = numpy_model.record(device, NAMES, addresses)
    peers = [Peer(name, addresses[name], CABLE, GOOD, None) for name in NAMES[1:] if name != device]
    well = Found(
        record=record,
        whole=False,
        machine=Machine("x86_64", AVX2, 4, "always [madvise] never\n", PACKAGES),
        memory=Memory(Room(2 << 30, "this machine"), 0),
        disk=Disk(1 << 30, 5e8, ""),
        files=Files(9, 9 * MIB, (), False),
        library=None,
        port=None if device == "head" else Port(addresses[device], None, None),
        peers=peers,
    )
    return replace(well, **changes)


def checks(what: Found) -> dict[str, Check]:
    every = [*checks_of(what, NEEDS), *link_checks(what)]
    assert len({check.name for check in every}) == len(every)
    for check in every:
        assert bool(check.remedy) == (check.status is not Status.OK), check
        assert not check.remedy or check.expected, check
        assert not {"\n"} & {*check.found, *check.expected, *check.remedy}
    return {check.name: check for check in every}


def wrong(what: Found) -> dict[str, Check]:
    return {name: check for name, check in checks(what).items() if check.status is not Status.OK}


def of_machine(**changes: object) -> Found:
    return found(machine=replace(found().machine, **changes))


def measured(name: str, **changes: object) -> Found:
    peers = [replace(p, measured=replace(GOOD, **changes)) if p.name == name else p for p in found().peers]
    return found(peers=peers)


def refused(name: str, code: str, message: str, device: str = "head", **changes: object) -> Found:
    fault = RunError(code, message, INTERNAL)
    peers = [replace(p, measured=None, fault=fault) if p.name == name else p for p in found(device).peers]
    return found(device, peers=peers, **changes)


def streaming(disk_bytes_per_s: float, read: float | None) -> Found:
    record = found().record
    own = changed(record.envelope.devices["head"], streamed=(1, 2), ring=1, disk_bytes_per_s=disk_bytes_per_s)
    envelope = changed(record.envelope, devices={**record.envelope.devices, "head": own})
    return found(record=changed(record, envelope=envelope), disk=Disk(1 << 30, read, "" if read else "no"))


@pytest.mark.parametrize("device", NAMES)
def test_nothing_is_said_where_all_is_well(device):
    assert wrong(found(device)) == {}
    names = set(checks(found(device)))
    assert {"bundle", "versions", "processor", "library", "memory", "files", "disk rate"} <= names
    assert ("port" in names) == (device != "head")
    assert ("plan" in names) == (device == "head")
    assert "rate from bert" in names or device == "bert"


SETUPS = [
    (of_machine(features=AVX2 - {"fma"}), "processor", "fail", "without fma", "target"),
    (of_machine(name="aarch64", features=frozenset({"asimd"})), "processor", "fail", "aarch64 without avx2", ""),
    (of_machine(threads=0), "threads", "warn", "0", "1 as planned"),
    (of_machine(huge_pages="always madvise [never]\n"), "huge pages", "warn", "never", "echo madvise"),
    (of_machine(huge_pages=None), "huge pages", "warn", "has none", ""),
    (of_machine(packages={**PACKAGES, "numpy": "1.23.9"}), "versions", "fail", "numpy 1.23.9", "numpy>=1.24"),
    (of_machine(packages={**PACKAGES, "click": None}), "versions", "fail", "click is missing", "pip install"),
    (found(library=RunError("R205", "no symbol x", 1)), "library", "fail", "no symbol x", "copy the slice"),
    (found(memory=Memory(Room(400 * MIB, "the control group /x of 450 MiB"), 0)), "memory", "fail",
     "control group /x of 450 MiB leaves 400 MiB", "512 MiB"),
    (found(memory=Memory(None, 0)), "memory", "warn", "does not say", "512 MiB"),
    (found(disk=Disk(MIB, 5e8, "")), "disk space", "warn", "1 MiB are free", "9 MiB"),
    (streaming(5e8, 1e8), "disk rate", "warn", "100 MB/s", "500 MB/s as planned"),
    (found(files=Files(9, 9 * MIB, (RunError("R202", "weights/3 has 5 bytes. Copy the slice again."),
                                    RunError("R202", "x")), False)),
     "files", "fail", "weights/3 has 5 bytes. 1 more", "copy the slice again"),
    (found("anna", port=Port("10.0.0.2:5700", RunError("R303", "cannot listen on 10.0.0.2:5700: address already in"
                                                       " use: end it"), None)),
     "port", "fail", "address already in use", "end it"),
    (refused("bert", "R302", "nothing answers at 10.0.0.3:5700: refused"), "device bert", "fail", "refused",
     "llrun bert/"),
    (refused("bert", "R302", "nothing answers", "anna"), "device bert", "warn", "nothing answers", "llrun bert/"),
    (refused("bert", "R304", "it does not run bundle bbbb"), "device bert", "fail", "does not run", "--peer"),
    (refused("bert", "R401", "protocol version 2, this side speaks 3"), "device bert", "fail", "version 2",
     "install the same llrun"),
    (refused("bert", "R401", "not a frame of this protocol"), "device bert", "fail", "not a frame", "end what"),
    (refused("bert", "R306", "another measures"), "device bert", "warn", "another", "again"),
    (measured("bert", version="0.0.9"), "device bert", "warn", "llrun 0.0.9", "install the same"),
    (measured("bert", there_bytes_per_s=6.9e7), "rate to bert", "warn", "69 MB/s", "100 MB/s as planned"),
    (measured("bert", back_bytes_per_s=1e6), "rate from bert", "warn", "1 MB/s", "devices.json"),
    (found(peers=[replace(found().peers[0], way=Way("wg0", TUNNEL, None))]), "path to anna", "warn",
     "wg0: a VPN or tunnel", "cable"),
    (found(peers=[replace(found().peers[0], way=Way("wlan0", WIRELESS, 72))]), "path to anna", "warn",
     "wlan0: Wi-Fi, 72 Mbit/s", "cable"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "name", "status", "text", "then"), SETUPS)
def test_each_broken_set_up_has_its_line_and_no_other(what, name, status, text, then):
    found_wrong = wrong(what)
    assert list(found_wrong) == [name]
    check = found_wrong[name]
    assert check.status == status
    assert text in check.found
    assert then in f"{check.expected} {check.remedy}"
    lines = list(as_lines([check]))
    assert len(lines) == 2
    assert lines[0].startswith(status)
    assert exit_code([check]) == (1 if status == "fail" else 0)


def test_a_link_far_slower_than_planned_changes_what_a_token_takes():
    slow = wrong(measured("bert", latency_s=9e-3))
    assert list(slow) == ["latency to bert", "plan"]
    assert (slow["latency to bert"].found, slow["latency to bert"].expected) == ("9 ms", "1 ms as planned")
    assert "a token would take" in slow["plan"].found


def test_a_little_more_than_planned_is_well():
    assert wrong(measured("bert", latency_s=1.6e-3, there_bytes_per_s=7.1e7)) == {}


def test_devices_that_are_all_here_need_not_listen():
    record = numpy_model.record("head", NAMES, dict.fromkeys(NAMES, "127.0.0.1:5700"))
    fault = RunError("R302", "nothing answers at 127.0.0.1:5700: connection refused: x. Is llrun running?")
    peer = Peer("anna", "127.0.0.1:5700", Way("lo", LOOPBACK, None), None, fault)
    only = wrong(found(record=record, whole=True, peers=[peer]))
    assert only["device anna"].status is Status.WARN
    assert "--local" in only["device anna"].remedy
    assert "Is llrun" not in only["device anna"].found
    assert wrong(found(record=record, peers=[peer]))["device anna"].status is Status.FAIL


def test_what_llrun_holds_already_is_not_needed_twice():
    needed = found().me.peak_bytes
    room = Room(needed // 2, "this machine")
    assert judge.memory([found().me], Memory(room, 0)).status is Status.FAIL
    assert judge.memory([found().me], Memory(room, needed * 3 // 4)).status is Status.OK
    assert "0 MiB more" in judge.memory([found().me], Memory(room, needed + MIB)).found
    assert judge.memory([found().me] * 2, Memory(Room(needed, "x"), 0)).status is Status.FAIL


def test_a_port_that_the_device_itself_listens_on_is_well():
    own = Port("10.0.0.2:5700", RunError("R303", "taken"), "serving")
    assert "already, and is serving" in checks(found("anna", port=own))["port"].found


def test_without_a_package_nothing_is_claimed_of_versions():
    check = judge.versions({}, [])
    assert check.status is Status.WARN
    assert "not installed as a package" in check.found


@pytest.mark.parametrize(
    ("version", "sign", "wanted", "fits"),
    [("2.10.0", ">=", "2.9", True), ("1.2", ">=", "1.2.1", False), ("0.1.15.post2", "==", "0.1.15.post2", True),
     ("0.1.15", "==", "0.1.15.post2", False), ("3", None, None, True), (None, ">=", "1", False),
     ("2.0rc1", ">=", "1.24", True)],
)  # fmt: skip
def test_versions_are_compared_as_numbers(version, sign, wanted, fits):
    assert judge.fits(version, sign, wanted) is fits


def test_what_this_llrun_needs_is_read_of_its_own_package():
    of_worker, of_head = needs(head=False), needs(head=True)
    assert any(need.startswith("apache-tvm-ffi==") for need in of_worker)
    assert {need.split(">")[0] for need in set(of_head) - set(of_worker)} == {"jinja2", "tokenizers"}
    assert not any("starlette" in need for need in of_head)


def test_a_slice_that_cannot_be_read_is_one_line():
    error = RunError(
        "R202", "slice.json: it has schema 4, this version reads another. Build the bundle again."
    )
    check = broken(error)
    assert (check.status, check.found) == ("fail", "slice.json: it has schema 4, this version reads another")
    assert check.remedy == "Build the bundle again."


def test_json_has_every_line_and_whether_all_is_well():
    told = as_json([Check("a", Status.WARN, "x\x1b", "y", "z"), Check("b", Status.OK, "w")])
    assert told["ok"] is True
    assert told["checks"][0] == {
        "name": "a", "status": "warn", "found": "x\x1b", "expected": "y", "remedy": "z"
    }  # fmt: skip
    assert as_json([Check("a", Status.FAIL, "x")])["ok"] is False
    assert "\x1b" not in "".join(as_lines([Check("a", Status.OK, "x\x1b")]))


@pytest.mark.parametrize(
    ("name", "uevent", "link_type", "wireless", "tun", "kind"),
    [
        ("eth0", "INTERFACE=eth0\n", 1, False, False, WIRED),
        ("enp3s0", "", 1, False, False, WIRED),
        ("br0", "DEVTYPE=bridge\n", 1, False, False, WIRED),
        ("lo", "", 772, False, False, LOOPBACK),
        ("wlp2s0", "DEVTYPE=wlan\nINTERFACE=wlp2s0\n", 1, False, False, WIRELESS),
        ("radio", "", 1, True, False, WIRELESS),
        ("home", "DEVTYPE=wireguard\n", 65534, False, False, TUNNEL),
        ("anything", "", 1, False, True, TUNNEL),
        ("tailscale0", "", 65534, False, True, TUNNEL),
        ("gre1", "", 778, False, False, TUNNEL),
        ("corp", "", 65534, False, False, TUNNEL),
        ("tun5", "", None, False, False, TUNNEL),
        ("wwan0", "DEVTYPE=wwan\n", 65534, False, False, MOBILE),
        ("ppp0", "", 512, False, False, MOBILE),
    ],
)
def test_interfaces_are_known_by_what_the_system_says_of_them(name, uevent, link_type, wireless, tun, kind):
    assert kind_of(name, uevent, link_type, wireless, tun) == kind


def test_this_machine_reaches_itself_by_loopback():
    way = way_to(peer_endpoints("127.0.0.1:5700")[0])
    assert way is not None
    assert (way.interface, way.kind) == ("lo", LOOPBACK)
