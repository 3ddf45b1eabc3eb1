"""Plans that cannot be: the code, the exit code, both numbers, the cause and the remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.errors import INFEASIBLE, USAGE, CompileError
from llcompile.partition import Pin, parse_pins, plan
from llcompile.partition.disk import LIBRARIES_BYTES, RECORD_BYTES
from llrun.schema import Precision
from tests.unit.partition.cases import OPTIONS, chain, cost, device

MIB = 2**20


def cluster(*megabytes: float) -> Cluster:
    """Devices h, a, b ... with so many MiB free beside the 1000 bytes of the runtime and 2 kB of buffers."""
    devices = tuple(
        device(name, int(size * MIB) + 1000 + 2048) for name, size in zip("habcdefg", megabytes, strict=False)
    )
    return Cluster("h", devices, Link(1e7, 1e-4), {})


def refusal(*sizes: int, devices: Cluster, **options: Any) -> str:
    costs = tuple(cost(b, size * MIB, activation=0) for b, size in enumerate(sizes))
    with pytest.raises(CompileError) as caught:
        plan(costs, chain(len(costs)), devices, replace(OPTIONS, **options))
    assert caught.value.code == "P201"
    assert caught.value.exit_code == INFEASIBLE
    return caught.value.message


def test_too_little_memory_in_all() -> None:
    costs = tuple(cost(b, 3 * MIB, MIB, 0) for b in range(6))
    with pytest.raises(CompileError) as caught:
        plan(costs, chain(6), cluster(10, 9), OPTIONS)
    assert caught.value.message == (
        "no feasible plan: the model needs 24.0 MiB (weights 18.0 MiB, cache 6.0 MiB), the devices have 19.0 MiB "
        "free. Use a smaller --context, or more devices"
    )


def test_fewer_bits_are_a_remedy_where_there_are_fewer() -> None:
    with pytest.raises(CompileError) as caught:
        plan(
            tuple(cost(b, 3 * MIB, 0, 0) for b in range(6)),
            chain(6),
            cluster(1),
            replace(OPTIONS, precision=Precision.of("q8", "f16")),
        )
    assert caught.value.message.endswith("Use --quant q4, or a head with more memory")


def test_block_larger_than_the_largest_device() -> None:
    assert refusal(1, 1, 8, 1, devices=cluster(3, 5, 7)) == (
        "no feasible plan: block 2 needs 8.0 MiB, the largest device (b) has 7.0 MiB free. "
        "Use a smaller --context, or more devices"
    )


def test_head_too_small_for_both_ends() -> None:
    assert refusal(3, 1, 3, devices=cluster(5, 50)) == (
        "no feasible plan: the first and the last block (embedding and output head) need 6.0 MiB on the head, "
        "h has 5.0 MiB free beside the runtime. Use a head with more memory"
    )


def test_device_smaller_than_its_runtime_counts_as_empty() -> None:
    tiny = cluster(4, 4)
    tiny = replace(tiny, devices=(tiny.devices[0], replace(tiny.devices[1], memory_bytes=10)))
    assert "the devices have 4.0 MiB free" in refusal(1, 2, 2, 1, devices=tiny)


def test_enough_in_all_but_not_in_whole_blocks() -> None:
    message = refusal(1, 3, 3, 3, 1, devices=cluster(2.5, 5, 5))
    assert "the model needs 11.0 MiB" in message
    assert "the devices have 12.5 MiB free in all, but less in whole blocks" in message
    assert message.endswith("Use a smaller --context, or more devices")


def on_disks(devices: Cluster, *megabytes: float | None) -> Cluster:
    """`devices` with so many MiB of disk for the files of four blocks; None: without a bound."""
    fixed = LIBRARIES_BYTES + 4 * RECORD_BYTES
    bounded = tuple(
        replace(d, disk_bytes=None if size is None else int(size * MIB) + fixed)
        for d, size in zip(devices.devices, megabytes, strict=True)
    )
    return replace(devices, devices=bounded)


def test_disk_of_the_head_too_small_for_both_ends() -> None:
    assert refusal(3, 1, 1, 3, devices=on_disks(cluster(50, 50), 5, 50)) == (
        "no feasible plan: the files of the first and the last block have 6.0 MiB, disk_bytes leaves h 5.0 MiB beside "
        "the libraries. Give the head more disk_bytes"
    )


def test_too_little_disk_in_all() -> None:
    message = refusal(1, 3, 3, 1, devices=on_disks(cluster(50, 50), 3, 3))
    assert message.startswith(
        "no feasible plan: the blocks' files have 8.1 MiB, disk_bytes leaves 6.0 MiB in all"
    )
    assert message.endswith("more disk_bytes")


def test_disks_that_hold_no_whole_blocks() -> None:
    message = refusal(1, 3, 3, 1, devices=on_disks(cluster(50, 50), 4.5, 5))
    assert message.endswith("fit onto their disks as well. Use more disk_bytes")


def test_pin_and_use_all_beyond_a_disk() -> None:
    devices = on_disks(cluster(50, 50), None, 2)
    assert (
        "--pin 1:3=a needs files of 4.0 MiB on a, disk_bytes leaves it 2.0 MiB. Pin fewer blocks"
        in refusal(1, 2, 2, 1, devices=devices, pins=(Pin(1, 3, "a"),))
    )
    assert "--use-all: the smallest block's file has 3.0 MiB, disk_bytes leaves a 2.0 MiB" in refusal(
        1, 3, 3, 1, devices=devices, use_all=True
    )


def test_pin_to_a_device_that_stands_by() -> None:
    devices = cluster(9, 9, 9)
    standing = replace(devices, devices=(*devices.devices[:2], replace(devices.devices[2], standby=True)))
    with pytest.raises(CompileError) as caught:
        parse_pins(["1:2=a", "3:4=b"], standing, 10)
    assert (caught.value.code, caught.value.exit_code) == ("P213", USAGE)
    assert "--pin 3:4=b: b stands by in devices.json" in caught.value.message


def test_use_all_with_more_devices_than_blocks() -> None:
    message = refusal(1, 1, 1, devices=cluster(9, 9, 9), use_all=True)
    assert "--use-all gives each of 3 devices a block" in message
    assert "at most 2 devices" in message


def test_use_all_with_a_device_that_holds_nothing() -> None:
    message = refusal(1, 2, 1, devices=cluster(9, 1), use_all=True)
    assert message.startswith(
        "no feasible plan: --use-all: the smallest block needs 2.0 MiB, a has 1.0 MiB free"
    )


def test_pin_beyond_a_devices_memory() -> None:
    message = refusal(1, 3, 3, 3, 1, devices=cluster(20, 5), pins=(Pin(1, 4, "a"),))
    assert (
        message
        == "no feasible plan: --pin 1:4=a needs 9.0 MiB on a, which has 5.0 MiB free. Pin fewer blocks"
    )


def test_pin_on_the_head_counts_its_ends() -> None:
    message = refusal(2, 3, 2, devices=cluster(6, 9), pins=(Pin(1, 2, "h"),))
    assert "--pin 1:2=h needs 7.0 MiB with the first and last on h, which has 6.0 MiB free" in message


def test_wishes_that_alone_do_not_fit_are_named() -> None:
    """The pin fits, and the model would fit without it: what is left after it has no place."""
    message = refusal(1, 3, 3, 3, 3, 3, 1, devices=cluster(2, 6, 4, 6), pins=(Pin(2, 3, "b"),))
    assert (
        "needs 17.0 MiB (weights 17.0 MiB, cache 0 bytes), the devices have 18.0 MiB free in all" in message
    )
    assert message.endswith("fit with --pin 2:3=b. Leave out one of these")


def test_wishes_that_make_no_difference_are_not_blamed() -> None:
    message = refusal(1, 3, 3, 3, 3, 3, 1, devices=cluster(2, 5, 4, 8), pins=(Pin(2, 3, "b"),), use_all=True)
    assert "--pin" not in message
    assert message.endswith("Use a smaller --context, or more devices")


@pytest.mark.parametrize(
    ("pins", "code", "parts"),
    [
        (["3-7=pi"], "P210", ["--pin 3-7=pi", "START:STOP=DEVICE"]),
        (["3:7"], "P210", ["START:STOP=DEVICE"]),
        (["3:7="], "P210", ["START:STOP=DEVICE"]),
        ([""], "P210", ["START:STOP=DEVICE"]),
        (["-1:2=a"], "P210", ["START:STOP=DEVICE"]),
        (["1:99999999999999999999=a"], "P210", ["START:STOP=DEVICE"]),
        (["٣:٧=a"], "P210", ["START:STOP=DEVICE"]),
        (["1:2=a\n"], "P210", ["START:STOP=DEVICE"]),
        (["3:3=a"], "P212", ["empty range"]),
        (["5:2=a"], "P212", ["empty range"]),
        (["0:0=a"], "P212", ["empty range"]),
        (["1:2=aa"], "P211", ["unknown device", "did you mean a?", "Devices: h, a, b"]),
        (["1:11=a"], "P212", ["the model has 10 blocks, 0 to 9"]),
        (["0:2=a"], "P213", ["block 0 must be on the head, h", "Pin blocks 1 to 8"]),
        (["8:10=a"], "P213", ["block 9 must be on the head"]),
        (["1:5=a", "4:6=b"], "P213", ["both claim block 4, for a and b"]),
        (["1:2=a", "4:5=a", "3:4=b"], "P213", ["--pin 3:4=b splits the stage of a"]),
        (["1:2=a", "4:5=h", "6:7=b"], "P213", ["h has the first and the last stage and none between"]),
        (["1:2=a", "4:5=h", "6:7=a"], "P213", ["splits the stage of a"]),
    ],
)
def test_bad_pins(pins: list[str], code: str, parts: list[str]) -> None:
    with pytest.raises(CompileError) as caught:
        parse_pins(pins, cluster(9, 9, 9), 10)
    assert (caught.value.code, caught.value.exit_code) == (code, USAGE)
    for part in parts:
        assert part in caught.value.message


def test_good_pins() -> None:
    texts = ["1:3=a", "2:5=a", "0:1=h", "9:10=h", "6:7=b"]
    assert [str(pin) for pin in parse_pins(texts, cluster(9, 9, 9), 10)] == [
        f"--pin {text}" for text in texts
    ]
