"""What is written for other programs that split a model, and read from them; what is reckoned from measured parts."""

from __future__ import annotations

import io
import struct

import pytest
from layer_70b import simulated
from peers import FIRST, FURTHER, Request
from shared import distributed_llama, llama_rpc

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 16,
}


def test_each_device_of_llama_cpp_has_an_equal_part() -> None:
    assert llama_rpc.offloaded(2) == 11  # ten layers and the head, which weighs one and a half; twelve stay
    assert llama_rpc.offloaded(4) == 17


def test_the_file_for_distributed_llama_holds_its_header_and_all_tensors() -> None:
    file = io.BytesIO()
    distributed_llama._write_model(file, TINY)
    data = file.getvalue()
    magic, size = struct.unpack_from("<2i", data)
    pairs = dict(struct.iter_unpack("<2i", data[8:size]))
    assert (magic, pairs[2], pairs[3], pairs[6], pairs[9], pairs[13]) == (0xA00ABCD, 64, 96, 2, 32, 2)
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96
    packed = (2 * layer + 32 * 64) // 32 * 18
    assert len(data) == size + packed + 4 * (32 * 64 + 5 * 64)


def test_times_of_distributed_llama_are_summed_up_to_the_first_token() -> None:
    lines = ("Eval  300 ms Sync   20 ms", "Eval 280 ms Sync 0 ms", "Pred   90 ms Sync    5 ms")
    said = "\n".join((*lines, "Pred 60 ms Sync 4 ms", "Pred 70 ms Sync 6 ms"))
    steps = distributed_llama.parse(said)
    assert distributed_llama.milliseconds(steps) == (320 + 280 + 95, 70)
    with pytest.raises(ValueError, match="printed no times"):
        distributed_llama.parse("🔶 nothing")


def test_rates_become_milliseconds_of_the_request() -> None:
    assert Request(128, 32).of_rates({"pp128": 64.0, "tg32": 20.0}) == {FIRST: 2000.0, FURTHER: 50.0}


def _plan(window: int, head: tuple[int, ...] = (50,), at_head: int = 0) -> dict[str, object]:
    """The ends on `a`, an output head in pieces of `head` bytes; four blocks of 100 bytes on `b`."""
    blocks = [{"weights_bytes": size, "ops": ["layer"]} for size in (100, 100, 100, 100)]
    pieces = [{"weights_bytes": size, "ops": ["output"]} for size in head]
    places = (("a", 0, 1), ("b", 1, 5), ("a", 5, 5 + len(head)))
    return {
        "blocks": [{"weights_bytes": 7, "ops": ["embedding"]}, *blocks, *pieces],
        "stages": [{"devices": [name], "start": start, "stop": stop} for name, start, stop in places],
        "devices": {"a": {"window": at_head}, "b": {"window": window}},
        "transmissions": [{"bytes": 75}, {"bytes": 75}],
    }


SECONDS = {(7, ("embedding",)): 0.0, (100, ("layer",)): 1.0, (50, ("output",)): 2.0}
RATES = {"a": 10.0, "b": 10.0}


def test_a_token_is_reckoned_from_measured_seconds() -> None:
    assert simulated(_plan(0), SECONDS, RATES, network=False) == pytest.approx(6.0)
    travel_s = 2 * (0.001 + 75 / 3.75e7)
    assert simulated(_plan(0), SECONDS, RATES, network=True) == pytest.approx(6.0 + travel_s)


def test_blocks_from_disk_are_waited_for() -> None:
    assert simulated(_plan(3), SECONDS, RATES, network=False) == pytest.approx(
        40.0
    )  # 400 bytes at 10 a second


def test_an_output_head_streams_in_pieces_alone() -> None:
    assert simulated(_plan(0, at_head=1), SECONDS, RATES, network=False) == pytest.approx(6.0)
    # In a ring of one each of two pieces is read, 5 seconds, when the other has run, 2; the layers' 4 seconds hide.
    plan = _plan(0, (50, 50), at_head=1)
    assert simulated(plan, SECONDS, RATES, network=False) == pytest.approx(2 * (5.0 + 2.0))


def test_a_plan_with_a_group_is_refused() -> None:
    plan = _plan(0)
    plan["stages"][1]["devices"] = ["b", "c"]
    with pytest.raises(SystemExit, match="has a group"):
        simulated(plan, {}, {}, network=False)
