"""The request that a plan is for: what the command line says of it, and what becomes of it in the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llcompile import cli, pipeline
from llcompile.ir.cluster import Cluster, Link
from llcompile.ir.errors import USAGE, CompileError
from llcompile.ir.model import Model
from llcompile.ir.plan import Plan
from llcompile.partition import request_of
from tests.unit.partition.cases import device
from tests.unit.partition.graphs import layered

CLUSTER = Cluster("h", (device("h"), device("a")), Link(1e8, 1e-4), {})


def model(positions: int) -> Model:
    return Model(
        name="made-up",
        architecture="Made",
        onnx=b"",
        weights={},
        vocab_size=32,
        hidden_size=8,
        max_positions=positions,
        bos_token_id=None,
        eos_token_ids=(),
        tokenizer_files=(),
    )


def planned(positions: int = 4096, **options: Any) -> Plan:
    build = pipeline.BuildOptions("made-up", Path("devices.json"), tensor_parallel="off", **options)
    return pipeline.plan_graph(model(positions), layered(2), CLUSTER, build).plan


@pytest.mark.parametrize(
    ("prompt", "new", "context", "expected"),
    [
        (None, None, 4096, (512, 128)),
        (None, None, 640, (512, 128)),
        (None, None, 639, (512, 127)),
        (None, None, 64, (52, 12)),
        (None, None, 1, (1, 1)),
        (60, None, 64, (60, 4)),
        (None, 60, 64, (4, 60)),
        (4000, 96, 4096, (4000, 96)),
    ],
)
def test_request_fits_the_context(
    prompt: int | None, new: int | None, context: int, expected: tuple[int, int]
) -> None:
    assert request_of(prompt, new, context) == expected


@pytest.mark.parametrize(
    ("prompt", "new", "words"),
    [
        (64, None, "--prompt-tokens 64: a request of 65 tokens, a sequence holds 64."),
        (None, 64, "--new-tokens 64: a request of 65 tokens, a sequence holds 64."),
        (40, 30, "--prompt-tokens 40 and --new-tokens 30: a request of 70 tokens, a sequence holds 64."),
    ],
)
def test_request_beyond_the_context_is_refused(prompt: int | None, new: int | None, words: str) -> None:
    with pytest.raises(CompileError) as caught:
        planned(64, prompt_tokens=prompt, new_tokens=new)
    assert (caught.value.code, caught.value.exit_code) == ("P214", USAGE)
    assert caught.value.message.startswith(words)
    assert caught.value.message.endswith("Ask for fewer, or give a larger --context")


def test_plan_is_for_the_request_that_was_asked_for() -> None:
    made = planned(prompt_tokens=1024, new_tokens=3, sequences=5)
    assert (made.prompt_tokens, made.new_tokens, made.sequences) == (1024, 3, 5)
    # Pieces of `portion` tokens, then three tokens.
    pieces = 1024 // (made.portion or 128)
    assert made.ttft_s == pytest.approx(made.chunk_s + (pieces - 1) * made.slowest_chunk_s)
    assert made.objective == pytest.approx(made.ttft_s + 3 * made.tpot_s)
    served = planned(objective="throughput", sequences=2)
    assert served.objective == pytest.approx(served.tpot_s / 2 + 1e-3 * served.tpot_s)


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[Result, list[pipeline.BuildOptions]]:
    seen: list[pipeline.BuildOptions] = []

    def stop(options: pipeline.BuildOptions, *_: Any) -> Any:
        seen.append(options)
        raise CompileError("X", "far enough", 1)

    monkeypatch.setattr(pipeline, "make_plan", stop)
    monkeypatch.setattr(pipeline, "build", stop)
    return CliRunner().invoke(cli.main, list(arguments)), seen


@pytest.mark.parametrize("command", ["plan", "build"])
def test_command_line_says_it(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    wishes = "--prompt-tokens 100 --new-tokens 20 --sequences 3 --time-limit 2.5"
    _, (seen,) = invoke(monkeypatch, command, "m", "--target", "d.json", *wishes.split())
    assert (seen.prompt_tokens, seen.new_tokens, seen.sequences, seen.time_limit) == (100, 20, 3, 2.5)
    _, (plain,) = invoke(monkeypatch, command, "m", "--target", "d.json")
    assert (plain.prompt_tokens, plain.new_tokens, plain.sequences, plain.time_limit) == (None, None, 8, 10.0)


@pytest.mark.parametrize(
    "option",
    [
        "--prompt-tokens 0",
        "--new-tokens 0",
        "--new-tokens x",
        "--sequences 0",
        "--sequences 65",
        "--time-limit x",
    ],
)
def test_wrong_numbers_are_wrong_use(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    result, seen = invoke(monkeypatch, "plan", "m", "--target", "d.json", *option.split())
    assert (result.exit_code, seen) == (USAGE, [])
    assert option.split()[0] in result.output


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e9"])
def test_no_time_to_plan_in(tmp_path: Path, seconds: str) -> None:
    target = Path(__file__).parents[3] / "examples" / "devices.json"
    assert target.exists()
    result = CliRunner().invoke(
        cli.main, ["plan", str(tmp_path), "--target", str(target), f"--time-limit={seconds}"]
    )
    assert result.exit_code == USAGE
    assert f"error[P215]: --time-limit {float(seconds):g}: not a time to plan in" in result.output
