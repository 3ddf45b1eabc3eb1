"""`--stop-after PASS`, `llcompile pass` and `llcompile passes`, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llcompile.cli import main
from tests.e2e import harness

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": None,
}
PRODUCT = """<ir_version: 10, opset_import: ["": 23]>
g (float[1,n,4] x, float[3,4] w) => (float[1,n,3] y)
{ t = Transpose<perm = [1, 0]>(w)
  y = MatMul(x, t) }"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "product.onnxtxt").write_text(PRODUCT)
    (tmp_path / "broken.onnxtxt").write_text(PRODUCT.replace("y = MatMul", "y = "))
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)))
    harness.devices_json(tmp_path / "devices.json", 2)
    return tmp_path


def llcompile(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [a.replace("FOLDER", str(folder)) for a in arguments])


def plan(folder: Path, *arguments: str) -> Result:
    common = ("plan", "FOLDER/model", "--target", "FOLDER/devices.json", "--random-weights", "1")
    return llcompile(folder, *common, *arguments)


def test_a_pass_alone_on_a_program_written_by_hand(folder: Path) -> None:
    done = llcompile(folder, "pass", "products-to-linear", "FOLDER/product.onnxtxt", "--weight", "w")
    assert done.exit_code == 0, done.output
    before, after = done.stdout.split("\n---\n\n")
    assert ": MatMul(x, t) -> y (1, n, 3)" in before
    assert "llcompile.Linear(x, w) -> y (1, n, 3)" in after
    plain = llcompile(folder, "pass", "products-to-linear", "FOLDER/product.onnxtxt")
    assert "Linear" not in plain.stdout  # an input is a weight only where that is said


def test_the_pipeline_stops_where_it_is_told_and_its_dump_can_be_read_back(folder: Path) -> None:
    stopped = plan(folder, "--stop-after", "drop-no-ops:2", "--dump-dir", f"{folder}/dump")
    assert stopped.exit_code == 0, stopped.output
    names = sorted(path.name for path in (folder / "dump").glob("*.txt"))
    assert names[-1] == "13-drop-no-ops.txt"
    assert stopped.stdout == (folder / "dump" / names[-1]).read_text()

    again = llcompile(folder, "pass", "drop-no-ops:2", "FOLDER/dump/12-gaussian-units.onnx")
    whole = llcompile(folder, "pass", "drop-no-ops:2", "FOLDER/model", "--random-weights", "1")
    before = (folder / "dump" / "12-gaussian-units.txt").read_text()
    assert again.stdout == whole.stdout == f"{before}\n---\n\n{stopped.stdout}"


def test_a_pass_over_the_dataflow(folder: Path) -> None:
    stopped = plan(folder, "--stop-after", "merge-position-arithmetic", "--dump-dir", f"{folder}/dump")
    alone = llcompile(folder, "pass", "drop-dead-nodes", "FOLDER/dump/16-require-canonical.onnx")
    assert "activation logits = llcompile.Linear(" in stopped.stdout
    assert "activation logits = llcompile.Linear(" in alone.stdout
    raw = llcompile(folder, "pass", "merge-position-arithmetic", "FOLDER/dump/10-root-mean-square-norms.onnx")
    assert raw.exit_code == 2
    assert (
        "error[E113]: pass merge-position-arithmetic requires live, which this program is not: " in raw.stderr
    )


def test_the_passes_are_listed_in_order(folder: Path) -> None:
    lines = llcompile(folder, "passes").stdout.splitlines()
    names = [line.split()[0] for line in lines[::2]]
    assert (names[0], names[-1], len(names)) == ("weights-to-inputs", "merge-position-arithmetic", 18)
    assert "drop-unused:2" in names
    assert lines[17].strip() == "requires linear, static-shapes; ensures sequences"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("pass", "rotry-embedding", "FOLDER/model"),
         "error[E104]: there is no pass rotry-embedding: did you mean rotary-embeddings"),
        (("pass", "drop-unused:3", "FOLDER/model"), "did you mean drop-unused"),
        (("pass", "drop-unused", "FOLDER/missing.onnx"), "error[F180]: FOLDER/missing.onnx cannot be read: No such"),
        (("pass", "drop-unused", "FOLDER/noise.onnx"), "error[F180]: FOLDER/noise.onnx is no ONNX program: "),
        (("pass", "drop-unused", "FOLDER/broken.onnxtxt"), "error[F180]: FOLDER/broken.onnxtxt is no ONNX program: "),
        (("pass", "drop-unused", "FOLDER/product.onnxtxt", "--weight", "v"),
         "error[F181]: --weight v: the program's inputs are x, w"),
        (("pass", "rows-to-sequences", "FOLDER/product.onnxtxt", "--weight", "w"),
         "error[E113]: pass rows-to-sequences requires linear, static-shapes, which this program is not: MatMul -> y"),
        (("plan", "FOLDER/model", "--target", "FOLDER/devices.json", "--stop-after", "gaussian"),
         "error[E104]: there is no pass gaussian: did you mean gaussian-units"),
        (("build", "FOLDER/model", "--target", "FOLDER/devices.json", "--stop-after", "zzz"),
         "error[E104]: there is no pass zzz: `llcompile passes` lists them all"),
        (("plan", "FOLDER/model", "--target", "FOLDER/devices.json", "--json", "--stop-after", "drop-unused"),
         "error[E105]: --stop-after prints a program, not a plan; leave out --json"),
    ],
)  # fmt: skip
def test_what_is_refused(folder: Path, arguments: tuple[str, ...], complaint: str) -> None:
    done = llcompile(folder, *arguments)
    assert done.exit_code == 2, done.output
    assert not done.stdout
    assert complaint.replace("FOLDER", str(folder)) in done.stderr
