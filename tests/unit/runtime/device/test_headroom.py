"""The memory that a device's plan claims, against what the system and the control groups leave."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy_model
import pytest
from msgspec.structs import replace

from llrun.device.headroom import Room, check_memory, check_together, memory_left
from llrun.device.load import load_device
from llrun.device.slice import StoredSlice
from llrun.errors import RunError
from llrun.schema import DeviceInfo

MIB = 1 << 20
NONE_V1 = "9223372036854771712\n"
V1_MOUNT = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime shared:1 - cgroup cgroup rw,memory\n"
CPU_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
V2_MOUNT = "41 31 0:38 {root} {at} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def system(root: Path, available: int = 8000, anonymous: int = 30, shared: int = 20) -> Path:
    """A machine with `available` MiB; this process takes `anonymous`, and `shared` of files."""
    write(
        root / "proc/meminfo", f"MemTotal: 99999999 kB\nMemFree: 5 kB\nMemAvailable: {available * 1024} kB\n"
    )
    status = (
        f"Name:\tllrun\nVmHWM:\t   99 kB\nRssAnon:\t {anonymous * 1024} kB\nRssFile:\t {shared * 1024} kB\n"
    )
    write(root / "proc/self/status", status)
    return root


def v1(
    root: Path, group: str, limit: str, usage: int, files: int = 0, at: str = "sys/fs/cgroup/memory"
) -> None:
    folder = root / at / group
    write(folder / "memory.limit_in_bytes", limit)
    write(folder / "memory.usage_in_bytes", f"{usage * MIB}\n")
    write(folder / "memory.stat", f"cache 1\ninactive_file 7\ntotal_inactive_file {files * MIB // 2}\n"
          f"total_active_file {files * MIB // 2}\n")  # fmt: skip


def v2(
    root: Path, group: str, limit: str, usage: int, files: int = 0, high: str = "max\n", at: str = "cg"
) -> None:
    folder = root / at / group
    write(folder / "memory.max", limit)
    write(folder / "memory.high", high)
    write(folder / "memory.current", f"{usage * MIB}\n")
    write(folder / "memory.stat", f"anon 3\ninactive_file {files * MIB}\nactive_file 0\nslab_reclaimable 0\n")


def member(root: Path, groups: str, mounts: str) -> None:
    write(root / "proc/self/cgroup", groups)
    write(root / "proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/root rw\n" + mounts)


def left(root: Path) -> tuple[float, str]:
    room = memory_left(root)
    assert room is not None
    return room.free_bytes / MIB, room.bound


def device(peak_mib: int, name: str = "pi") -> DeviceInfo:
    info = numpy_model.record("head", ["head"]).devices["head"]
    return replace(info, name=name, peak_bytes=peak_mib * MIB)


def test_no_control_group(tmp_path: Path) -> None:
    assert left(system(tmp_path)) == (8000, "this machine")
    member(tmp_path, "0::/\n", "")
    assert left(tmp_path) == (8000, "this machine")


def test_an_old_kernel_that_does_not_say_what_is_available(tmp_path: Path) -> None:
    write(
        tmp_path / "proc/meminfo", "MemFree: 1024 kB\nBuffers: 1024 kB\nCached: 2048 kB\nSwapCached: 5 kB\n"
    )
    assert left(tmp_path) == (4, "this machine")


def test_nothing_known_bounds_nothing(tmp_path: Path) -> None:
    assert memory_left(tmp_path) is None
    check_memory(device(1 << 20), tmp_path)


def test_version_1(tmp_path: Path) -> None:
    member(system(tmp_path), "9:cpu:/x\n4:memory:/box\n0::/\n", CPU_MOUNT + V1_MOUNT.format(root="/"))
    v1(tmp_path, "box", f"{1000 * MIB}\n", usage=700, files=200)
    v1(tmp_path, ".", NONE_V1, usage=5000)
    assert left(tmp_path) == (500, "the control group /box of 1000 MiB")
    v1(tmp_path, "box", NONE_V1, usage=700)
    assert left(tmp_path) == (8000, "this machine")


def test_version_2(tmp_path: Path) -> None:
    member(system(tmp_path), "0::/user/app\n", V2_MOUNT.format(root="/", at="/cg"))
    v2(tmp_path, "user/app", f"{1000 * MIB}\n", usage=900, files=100)
    assert left(tmp_path) == (200, "the control group /user/app of 1000 MiB")
    v2(tmp_path, "user/app", "max\n", usage=900)
    assert left(tmp_path) == (8000, "this machine")
    v2(
        tmp_path, "user/app", "max\n", usage=900, high=f"{950 * MIB}\n"
    )  # beyond it a group is slowed to a crawl
    assert left(tmp_path) == (50, "the control group /user/app of 950 MiB")


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    member(system(tmp_path), "0::/a/b/c\n", V2_MOUNT.format(root="/", at="/cg"))
    v2(tmp_path, "a/b/c", "max\n", usage=10)
    v2(tmp_path, "a/b", f"{3000 * MIB}\n", usage=100)
    v2(tmp_path, "a", f"{4000 * MIB}\n", usage=3500, files=100)
    assert left(tmp_path) == (600, "the control group /a of 4000 MiB")
    v2(tmp_path, "a/b/c", f"{100 * MIB}\n", usage=400)  # lowered below what is used
    assert left(tmp_path) == (0, "the control group /a/b/c of 100 MiB")


def test_both_versions_at_once(tmp_path: Path) -> None:
    """Hybrid systems count memory by one of them; a group of the other has no memory files."""
    mounts = V1_MOUNT.format(root="/") + V2_MOUNT.format(root="/", at="/sys/fs/cgroup/unified")
    member(system(tmp_path), "4:cpuset,memory:/box\n0::/box\n", mounts)
    (tmp_path / "sys/fs/cgroup/unified/box").mkdir(parents=True)
    v1(tmp_path, "box", f"{300 * MIB}\n", usage=100)
    assert left(tmp_path) == (200, "the control group /box of 300 MiB")
    v1(tmp_path, "box", NONE_V1, usage=100)
    v2(tmp_path, "box", f"{500 * MIB}\n", usage=100, at="sys/fs/cgroup/unified")
    assert left(tmp_path) == (400, "the control group /box of 500 MiB")


@pytest.mark.parametrize("path", ["/docker/abc", "/", "/docker/other", "/../outside"])
def test_a_container_sees_its_own_group_alone(tmp_path: Path, path: str) -> None:
    """The mount shows one group, by whatever name the process is told of it."""
    member(system(tmp_path), f"4:memory:{path}\n", V1_MOUNT.format(root="/docker/abc"))
    v1(tmp_path, ".", f"{300 * MIB}\n", usage=100)
    assert left(tmp_path) == (200, "the control group /docker/abc of 300 MiB")


def test_names_with_blanks(tmp_path: Path) -> None:
    member(system(tmp_path), "0::/my app:1\n", V2_MOUNT.format(root="/", at="/my\\040groups"))
    v2(tmp_path, "my app:1", f"{300 * MIB}\n", usage=100, at="my groups")
    assert left(tmp_path) == (200, "the control group /my app:1 of 300 MiB")


@pytest.mark.parametrize("text", ["", "\n", "many", "-5", "1e9", "0x10", "9" * 400, "\u0663", "\0" * 100])
def test_numbers_that_are_none(tmp_path: Path, text: str) -> None:
    member(system(tmp_path), "0::/box\n", V2_MOUNT.format(root="/", at="/cg"))
    v2(tmp_path, "box", text, usage=100)
    assert left(tmp_path) == (8000, "this machine")
    v2(tmp_path, "box", f"{300 * MIB}", usage=100)
    write(tmp_path / "cg/box/memory.stat", f"inactive_file {text}\nactive_file\n\n {text}\n")
    assert left(tmp_path)[0] in (200, 300)
    write(tmp_path / "cg/box/memory.current", text)
    write(tmp_path / "proc/self/mountinfo", text)
    write(tmp_path / "proc/self/cgroup", text)
    write(tmp_path / "proc/self/status", f"RssAnon: {text} kB")
    assert left(tmp_path) == (8000, "this machine")


def test_more_than_there_is_is_refused_with_both_numbers(tmp_path: Path) -> None:
    member(system(tmp_path), "0::/box\n", V2_MOUNT.format(root="/", at="/cg"))
    v2(tmp_path, "box", f"{300 * MIB}\n", usage=100)
    # 30 of which this process takes already, and 4 that a group counts and a plan does not.
    check_memory(device(230 + 4), tmp_path)
    with pytest.raises(RunError) as caught:
        check_memory(device(230 + 5), tmp_path)
    assert (caught.value.code, caught.value.exit_code) == ("R208", 1)
    for words in (
        "device pi",
        "up to 205 MiB more",
        "the control group /box of 300 MiB leaves 200 MiB",
        "--quant",
    ):
        assert words in caught.value.message


def test_devices_on_one_machine_are_counted_together(tmp_path: Path) -> None:
    """Each alone would fit. Pages of libraries, 20 MiB a process, are shared."""
    devices = {name: device(100, name) for name in ("a", "b", "c")}
    needed = 300 - 30 - 2 * 20
    check_together(devices, system(tmp_path, available=needed - 3 * 4))
    with pytest.raises(
        RunError, match=r"the 3 devices of this bundle: .* 230 MiB more, this machine leaves 217"
    ):
        check_together(devices, system(tmp_path, available=needed - 3 * 4 - 1))


def test_this_machine_says_something() -> None:
    room = memory_left()
    assert isinstance(room, Room)
    assert 16 * MIB < room.free_bytes < 1 << 45


@pytest.mark.parametrize("verify", [True, False])
def test_nothing_is_read_where_memory_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    record = replace(numpy_model.record("head", ["head"]), devices={"head": device(4096, "head")})
    for name, entry in record.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0" * entry.size_bytes)  # not what the digests say: never asked
    monkeypatch.setattr("llrun.device.headroom.memory_left", lambda root: Room(MIB, "this machine"))
    with pytest.raises(RunError, match=r"not enough memory for device head: .*leaves 1 MiB") as caught:
        load_device(StoredSlice(tmp_path, "head", None, record), verify, lambda done, total: None)
    assert caught.value.code == "R208"


# --- a real control group ---

GROUPS = Path("/sys/fs/cgroup/memory")
SCRIPT = """
import sys
from llrun.device.headroom import memory_left
ballast = bytearray(int(sys.argv[1]))
room = memory_left()
print(room.free_bytes, room.bound)
"""


@pytest.fixture
def group() -> Iterator[Path]:
    if os.geteuid() != 0 or not (GROUPS / "memory.limit_in_bytes").is_file():
        pytest.skip("needs root and control groups of version 1, to make one")
    folder = GROUPS / f"llrun-test-{os.getpid()}"
    try:
        (folder / "inner").mkdir(parents=True)
    except OSError as error:
        pytest.skip(f"cannot make a control group: {error}")
    try:
        yield folder
    finally:
        (folder / "inner").rmdir()
        folder.rmdir()


@pytest.mark.root
def test_a_real_group_of_version_1(group: Path) -> None:
    (group / "memory.limit_in_bytes").write_text(str(256 * MIB))

    def free(ballast: int) -> int:
        command = [sys.executable, "-c", SCRIPT, str(ballast)]
        tasks = group / "inner/cgroup.procs"
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: tasks.write_text(str(os.getpid())),
        )
        number, _, bound = done.stdout.partition(" ")
        assert bound.strip() == f"the control group /{group.name} of 256 MiB"
        return int(number)

    empty, laden = free(1), free(100 * MIB)
    assert 150 * MIB < empty < 256 * MIB
    assert abs(empty - laden - 100 * MIB) < 8 * MIB
