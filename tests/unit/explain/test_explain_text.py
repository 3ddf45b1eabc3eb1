"""The plan in words, tables and JSON."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from llcompile.bundle import plan_json, plan_record
from llcompile.explain import (
    Measured,
    comparison_json,
    human_bytes,
    human_seconds,
    plan_text,
    print_plan,
    read_measured,
)
from llcompile.explain.measured import DeviceFigures
from llcompile.explain.pages import memory_bar, report_page
from llcompile.explain.tables import columns
from llcompile.ir.errors import CompileError
from llrun import schema
from tests.unit.bundle.small_bundle import COSTS, GRAPH, PLAN, build

RECORD = plan_record(PLAN, GRAPH, COSTS)


def rendered(record: schema.PlanRecord, measured: Measured | None = None, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(plan_text(record, measured))
    return out.getvalue()


def test_formats_that_were_chosen_are_told_by_block() -> None:
    costs = {0: 0.001, 1: 0.02}
    blocks = tuple(
        msgspec.structs.replace(b, divergence=costs.get(b.id), bits=5.5 if b.id in costs else 0.0)
        for b in RECORD.blocks
    )
    text = rendered(msgspec.structs.replace(RECORD, blocks=blocks))
    assert "weights of 5.50 bits (predicted divergence 0.0210)" in text
    assert "divergence, predicted" in text
    assert "divergence" not in rendered(RECORD)


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
    "Predicted: first token 500 ms after a prompt of 512 tokens, then one every 20.0 ms (50 tokens/s) "
    "with 64 tokens in the cache."
)
TABLES = """\
stage  devices  blocks    weights
0      laptop   0 (1)      1000 B
1      pi       1-2 (2)  4.88 KiB
2      laptop   3 (1)    3.91 KiB

device   weights  cache    memory             of  compute a token
laptop  4.88 KiB    0 B  57.2 MiB  1.00 GiB (6%)          1.00 ms
pi      4.88 KiB  128 B  66.8 MiB  512 MiB (13%)          2.00 ms

tensor  from    to      kind        format  bytes a token
h0      laptop  pi      sequential  f32             128 B
h2      pi      laptop  sequential  f32             128 B

phone is not used: its link adds <9 ms> a token & saves 2 ms

"""


def test_what_a_lost_or_slow_device_leads_to_is_told() -> None:
    lost = schema.MoveRecord(
        event="lost", device="pi", possible=True, tpot_s=0.03, change_s=1.5,
        stages=(schema.StageRecord.on("laptop", 0, 4),), reason="",
    )  # fmt: skip
    half = msgspec.structs.replace(lost, event="half", change_s=0.0, stages=RECORD.stages)
    none = schema.MoveRecord(
        event="lost",
        device="phone",
        possible=False,
        tpot_s=None,
        change_s=None,
        stages=(),
        reason="add a device",
    )
    envelope = tuple(
        msgspec.convert(msgspec.to_builtins(move), schema.MoveRecord) for move in (lost, half, none)
    )
    record = msgspec.structs.replace(RECORD, spares={"laptop": (1, 2)}, envelope=envelope)
    lines = [" ".join(line.split()) for line in rendered(record).splitlines()]
    assert "laptop 1-2 4.88 KiB" in lines
    assert "pi lost laptop 0-3 30.0 ms 1.50 s" in lines
    assert "pi half as fast stays as it is 30.0 ms -" in lines
    assert "phone lost the model cannot go on: add a device - -" in lines
    assert json.loads(json.dumps(plan_json(record)))["envelope"][0]["change_s"] == 1.5


def test_a_plan_that_is_not_proven_best_says_how_far_it_may_be() -> None:
    text = rendered(msgspec.structs.replace(RECORD, status="feasible", gap=0.125))
    assert "a plan within 12.5% of the best possible" in text


def test_a_plan_with_windows_says_what_of_its_time_no_plan_saves() -> None:
    """Its bound is that of plans with all in memory: how far it is from the best is not known."""
    stages = (*RECORD.stages[:1], msgspec.structs.replace(RECORD.stages[1], window=2), *RECORD.stages[2:])
    text = " ".join(
        rendered(msgspec.structs.replace(RECORD, stages=stages, status="feasible", gap=0.96)).split()
    )
    least = "no plan takes less than 4.0% of its time"
    assert f"the best of the plans looked at whose weights stream from disk ({least})" in text
    assert "within" not in text


def test_windows_and_shares() -> None:
    stage = schema.StageRecord(devices=("laptop", "pi"), shares=(0.75, 0.25), blocks=(0, 4), window=2)
    text = rendered(msgspec.structs.replace(RECORD, stages=(stage,)))
    assert "laptop 75%, pi 25%" in text
    assert "0-3 (4), 2 in memory at once" in text


def part(tensor: str, source: str, to: str) -> schema.TransmissionRecord:
    return schema.TransmissionRecord(tensor=tensor, kind="sum", source=source, destination=to, bytes=512)


def test_a_group_with_its_shares_its_sums_and_why() -> None:
    """Messages of sums are one line for each way; the page says the same."""
    stage = schema.StageRecord(
        devices=("laptop", "pi"), shares=(0.6, 0.4), blocks=(1, 3), window=0, all_reduce="star", root=1
    )  # fmt: skip
    parts = [part("block1.part0", "laptop", "pi"), part("block1.sum0", "pi", "laptop")]
    record = msgspec.structs.replace(
        RECORD,
        stages=(RECORD.stages[0], stage, RECORD.stages[2]),
        transmissions=(*parts, part("block2.part0", "laptop", "pi"), *RECORD.transmissions),
        notes=("with a group of laptop 60%, pi 40% (star) a request takes 3 s; without one 5 s",),
    )
    lines = [" ".join(line.split()) for line in rendered(record).splitlines()]
    assert "1 laptop 60%, pi 40% 1-2 (2), summed at pi (star) 4.88 KiB" in lines
    assert "parts of 2 sums laptop pi sum f32 1.00 KiB" in lines
    assert "parts of 1 sum pi laptop sum f32 512 B" in lines
    assert "the best plan of those looked at" in " ".join(lines)
    assert record.notes[0] in lines
    model = schema.ModelInfo(
        name="small", architecture="Llama", precision=record.precision, shapes=record.shapes, vocab_size=9,
        bos_token_id=None, eos_token_ids=(),
    )  # fmt: skip
    page = report_page(model, record).decode()
    assert "<td>laptop 60%, pi 40%</td><td>1-2 (2), summed at pi (star)</td>" in page
    assert "<td>parts of 2 sums</td><td>laptop</td><td>pi</td>" in page
    assert f"<p>{record.notes[0]}</p>" in page
    assert plan_json(record)["stages"][1]["all_reduce"] == "star"
    assert plan_json(record)["transmissions"][0]["kind"] == "sum"


@pytest.mark.parametrize(("kind", "words"), [("direct", "summed direct"), ("ring", "summed in a ring")])
def test_other_ways_to_sum(kind: str, words: str) -> None:
    stage = schema.StageRecord(
        devices=("laptop", "pi"), shares=(0.6, 0.4), blocks=(1, 3), window=0, all_reduce=kind, root=0
    )  # fmt: skip
    assert f"1-2 (2), {words}" in rendered(msgspec.structs.replace(RECORD, stages=(stage,)))


PI = DeviceFigures(peak_memory_bytes=64 << 20, compute_s=0.02, wait_s=0.1, sent_bytes=640)


def run_of(prompt_tokens: int, tokens: int = 4, **changes: Any) -> Measured:
    figures = {"ttft_s": 0.4, "tpot_s": 0.03, "devices": {"pi": PI}, **changes}
    return Measured(tokens=list(range(tokens)), prompt_tokens=prompt_tokens, **figures)


@pytest.mark.parametrize(
    ("prompt_tokens", "first"),
    [
        (1, "200 ms (1 chunk, each reckoned as 16 tokens)"),
        (16, "200 ms (1 chunk, each reckoned as 16 tokens)"),
        (17, "300 ms (2 chunks, each reckoned as 16 tokens)"),  # chunk_s 0.2, slowest_chunk_s 0.1
        (48, "400 ms (3 chunks, each reckoned as 16 tokens)"),
    ],
)
def test_a_run_stands_beside_the_prediction_for_its_own_prompt(prompt_tokens: int, first: str) -> None:
    text = rendered(RECORD, run_of(prompt_tokens))
    assert f"first token after a prompt of {prompt_tokens} tokens: predicted {first}, measured 400 ms" in text
    assert (
        "each further token: predicted 20.0 ms with 64 tokens in the cache, "
        f"measured 30.0 ms with {prompt_tokens} to {prompt_tokens + 3}"
    ) in text
    row = next(line for line in text.splitlines() if line.startswith("pi"))
    assert row.split()[-4:] == ["64.0", "MiB", "20.0", "ms"]


def test_what_a_run_did_not_measure_is_not_compared() -> None:
    text = rendered(RECORD, run_of(16, tokens=1, tpot_s=None, devices={}))
    assert "first token after a prompt of 16" in text
    assert "each further token" not in text
    assert "measured 400 ms" in text
    nothing = rendered(RECORD, run_of(16, tokens=0, ttft_s=None, tpot_s=None))
    assert "first token after" not in nothing


def test_the_figures_of_a_run_are_read_as_llrun_prints_them(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    plain = msgspec.to_builtins(run_of(17)) | {"text": "x", "token_s": [0.1]}
    path.write_text(json.dumps(plain))
    assert read_measured(path) == run_of(17)
    assert comparison_json(RECORD, read_measured(path))["predicted"] == {
        "prompt_tokens": 17,
        "chunks": 2,
        "ttft_s": pytest.approx(0.3),
        "tpot_s": 0.02,
        "cached_tokens": 64,
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"results": [RUN, RUN]}', "error[B151]: PATH holds the results of 2 prompts; give the run of one"),
        ('{"tokens": [1]}', "error[B150]: PATH is not what `llrun --json` prints: "),
        ("[" * 100_000, "error[B150]: PATH is not what `llrun --json` prints: "),
        (None, "error[B150]: PATH cannot be read: No such file"),
    ],
)
def test_figures_that_are_none(tmp_path: Path, text: str | None, complaint: str) -> None:
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text.replace("RUN", json.dumps(msgspec.to_builtins(run_of(3)))))
    with pytest.raises(CompileError) as caught:
        read_measured(path)
    assert str(caught.value).startswith(complaint.replace("PATH", str(path)))


def test_print_plan_goes_to_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    print_plan(RECORD)
    shown = capsys.readouterr()
    assert shown.out == rendered(RECORD)
    assert shown.err == ""


@pytest.mark.parametrize("width", [40, 60, 100])
def test_nothing_is_wider_than_the_terminal_and_nothing_is_lost(width: int) -> None:
    narrow, wide = rendered(RECORD, run_of(17), width), rendered(RECORD, run_of(17))
    assert max(map(len, narrow.splitlines())) <= width
    assert sorted("".join(narrow.split())) == sorted("".join(wide.split()))


def test_the_width_is_that_of_the_terminal() -> None:
    controller, terminal = pty.openpty()
    reader, writer = os.pipe()
    try:
        termios.tcsetwinsize(terminal, (24, 60))
        assert columns({}, (writer, terminal)) == 60
        assert columns({"COLUMNS": "72"}, (terminal,)) == 72
        assert columns({"COLUMNS": "0"}, (terminal,)) == 60
        assert columns({"COLUMNS": "wide"}, (reader, writer)) is None
    finally:
        for descriptor in (controller, terminal, reader, writer):
            os.close(descriptor)


@pytest.mark.parametrize("is_piped", [False, True], ids=["at a terminal", "through a pager"])
def test_explain_follows_the_terminals_width(tmp_path: Path, is_piped: bool) -> None:
    build(tmp_path / "bundle")
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 64))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "dumb"}
    command = [sys.executable, "-m", "llcompile", "explain", str(tmp_path / "bundle")]
    out = subprocess.PIPE if is_piped else terminal
    with subprocess.Popen(command, stdin=terminal, stdout=out, stderr=terminal, env=environment) as process:
        os.close(terminal)
        text = process.stdout.read() if process.stdout else read_all(controller)
    os.close(controller)
    lines = text.decode().splitlines()
    assert process.returncode == 0, text
    assert 58 < max(map(len, lines)) <= 64  # the words of the first paragraph fill it, and nothing is wider


def read_all(controller: int) -> bytes:
    """What a terminal shows until the last process has left it."""
    pieces = []
    while True:
        try:
            piece = os.read(controller, 4096)
        except OSError:  # EIO: nobody holds the other end
            return b"".join(pieces)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


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
        "window": 0,
        "rounds": 1,
    }
    assert plain["unused"] == {"phone": "its link adds <9 ms> a token & saves 2 ms"}
    assert plain["transmissions"][0] == {
        "tensor": "h0",
        "kind": "sequential",
        "from": "laptop",
        "to": "pi",
        "bytes": 128,
        "wire": "f32",
    }
    assert plain["blocks"][1] == {
        "id": 1,
        "template": "t1",
        "ops": ["Linear", "Add"],
        "weights_bytes": 2000,
        "decode_flops": 4096.0,
        "bits": 4.5,
        "divergence": None,
    }


def test_memory_bars_add_up_to_the_peak() -> None:
    load = schema.LoadRecord(
        weights_bytes=300, kv_bytes=100, peak_bytes=600, memory_bytes=1000, compute_s=0.0
    )
    bar = memory_bar("pi", load)
    assert bar.parts == (("weights", 0.0, 30.0), ("cache", 30.0, 10.0), ("rest", 40.0, 20.0))
