"""The plan in words, tables and JSON."""

from __future__ import annotations

import io
import json

import msgspec
import pytest
from rich.console import Console

from llcompile.bundle import plan_json, plan_record
from llcompile.explain import human_bytes, human_seconds, plan_text, print_plan
from llcompile.explain.pages import memory_bar
from llrun import schema
from tests.unit.bundle.small_bundle import COSTS, GRAPH, PLAN

RECORD = plan_record(PLAN, GRAPH, COSTS)


def rendered(record: schema.PlanRecord, measured: dict[str, object] | None = None) -> str:
    out = io.StringIO()
    Console(file=out, width=140, highlight=False).print(plan_text(record, measured))
    return out.getvalue()


@pytest.mark.parametrize(("size", "text"), [
    (0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1536, "1.50 KiB"), (512 << 20, "512 MiB"),
    (1.42 * (1 << 30), "1.42 GiB"), (70e9, "65.2 GiB"),
])  # fmt: skip
def test_human_bytes(size: float, text: str) -> None:
    assert human_bytes(size) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0.00 s"), (2.345, "2.35 s"), (0.0412, "41.2 ms"), (0.00085, "850 us"), (123.4, "123 s"),
])  # fmt: skip
def test_human_seconds(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_the_text_reads_so() -> None:
    assert " ".join(rendered(RECORD).split("stage ")[0].split()) == SUMMARY
    tables = rendered(RECORD)[rendered(RECORD).index("stage ") :]
    assert [line.rstrip() for line in tables.splitlines()] == TABLES.splitlines()


SUMMARY = (
    "4 blocks, 9.77 KiB of q4 weights, on 2 devices with a context of 64 tokens: the best plan. "
    "Predicted: first token after 500 ms, then one every 20.0 ms (50 tokens/s)."
)
TABLES = """\
stage  devices  blocks    weights
0      laptop   0 (1)      1000 B
1      pi       1-2 (2)  4.88 KiB
2      laptop   3 (1)    3.91 KiB

device   weights  cache    memory             of  compute a token
laptop  4.88 KiB    0 B  57.2 MiB  1.00 GiB (6%)          1.00 ms
pi      4.88 KiB  128 B  66.8 MiB  512 MiB (13%)          2.00 ms

tensor  from    to      kind        bytes a token
h0      laptop  pi      sequential          128 B
h2      pi      laptop  sequential          128 B

phone is not used: its link adds <9 ms> a token & saves 2 ms

"""


def test_a_plan_that_is_not_proven_best_says_how_far_it_may_be() -> None:
    text = rendered(msgspec.structs.replace(RECORD, status="feasible", gap=0.125))
    assert "a plan within 12.5% of the best possible" in text


def test_windows_and_shares() -> None:
    stage = schema.StageRecord(devices=("laptop", "pi"), shares=(0.75, 0.25), blocks=(0, 4), window=2)
    text = rendered(msgspec.structs.replace(RECORD, stages=(stage,)))
    assert "laptop 75%, pi 25%" in text
    assert "0-3 (4), 2 in memory at once" in text


def test_measured_figures_stand_beside_predicted_ones() -> None:
    measured = {
        "tokens": [1, 2, 3, 4],
        "ttft_s": 0.4,
        "tpot_s": 0.03,
        "devices": {"pi": {"peak_memory_bytes": 64 << 20, "compute_s": 0.02}},
    }
    text = rendered(RECORD, measured)
    assert "first token: predicted 500 ms, measured 400 ms" in text
    assert "each further token: predicted 20.0 ms, measured 30.0 ms" in text
    row = next(line for line in text.splitlines() if line.startswith("pi"))
    assert row.split()[-4:] == ["64.0", "MiB", "5.00", "ms"]
    assert rendered(RECORD, {}) == rendered(RECORD)


def test_print_plan_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(RECORD)
    shown = capsys.readouterr()
    assert shown.out == rendered(RECORD)
    assert shown.err == ""


def test_json_has_the_keys_of_the_contract() -> None:
    plain = json.loads(json.dumps(plan_json(RECORD)))
    assert {"status", "objective", "bound", "gap", "solve_s", "ttft_s", "tpot_s"} <= set(plain)
    assert plain["solve_s"] == 1.25
    assert plain["stages"][1] == {"devices": ["pi"], "shares": [1.0], "blocks": [1, 3], "window": 0}
    assert plain["devices"]["pi"] == {
        "weights_bytes": 5000,
        "kv_bytes": 128,
        "peak_bytes": 70_000_000,
        "memory_bytes": 1 << 29,
        "compute_s": 0.002,
    }
    assert plain["unused"] == {"phone": "its link adds <9 ms> a token & saves 2 ms"}
    assert plain["transmissions"][0] == {
        "tensor": "h0",
        "kind": "sequential",
        "from": "laptop",
        "to": "pi",
        "bytes": 128,
    }
    assert plain["blocks"][1] == {
        "id": 1,
        "template": "t1",
        "ops": ["Linear", "Add"],
        "weights_bytes": 2000,
        "decode_flops": 4096.0,
    }


def test_memory_bars_add_up_to_the_peak() -> None:
    load = schema.LoadRecord(
        weights_bytes=300, kv_bytes=100, peak_bytes=600, memory_bytes=1000, compute_s=0.0
    )
    bar = memory_bar("pi", load)
    assert bar.parts == (("weights", 0.0, 30.0), ("cache", 30.0, 10.0), ("rest", 40.0, 20.0))
