"""The shared library as a file: same bytes every time, nothing needed beyond the runtime, right instructions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from llcompile.lower import compile_library
from llcompile.lower.kernels.isa import isa_of
from llcompile.lower.kernels.linear import linear_float, linear_quantised
from llcompile.lower.library import ordered_shapes
from llrun.schema import Precision, Shapes
from tests import arm
from tests.unit.lower.emulated import CPUS
from tests.unit.lower.harness import (
    PROCESSORS,
    Kernel,
    Library,
    extreme_weight,
    llama_attention,
    llama_mlp,
    new_tokens,
    random_inputs,
    random_weight,
    runnable,
)

HERE = Path(__file__).parent
DRIVER = HERE / "without_compiler.py"
ARM_RUNTIME = Path(sys.prefix) / "share/llcompile/aarch64-linux-gnu/libtvm_runtime.so"
MACHINES = {"x86_64-linux-gnu": b"\x3e\x00", "aarch64-linux-gnu": b"\xb7\x00"}


_BUILD = """
import sys
from pathlib import Path
from llrun.schema import Precision, Shapes
from tests.unit.lower.harness import PROCESSORS, compile_library, llama_attention, llama_mlp
templates = [llama_attention(64, 4, 2, 16), llama_mlp(64, 72)]
precision, shapes = Precision.of("q4", "f16"), Shapes(64, 16)
compile_library(templates, precision, shapes, PROCESSORS["neon"], Path(sys.argv[1]))
"""


def _build_elsewhere(out: Path) -> bytes:
    """The library compiled by another process, in another folder, with another hash seed."""
    env = {"PYTHONHASHSEED": "7", "PATH": "/usr/bin:/bin", "TMPDIR": str(out.parent), "HOME": str(out.parent)}
    subprocess.run([sys.executable, "-c", _BUILD, str(out)], check=True, cwd=HERE.parents[2], env=env)
    return out.read_bytes()


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    templates = [llama_attention(64, 4, 2, 16), llama_mlp(64, 72)]
    here = tmp_path / "a.so"
    compile_library(templates, Precision.of("q4", "f16"), Shapes(64, 16), PROCESSORS["neon"], here)
    (tmp_path / "elsewhere").mkdir()
    assert _build_elsewhere(tmp_path / "elsewhere/b.so") == here.read_bytes()
    assert not list((tmp_path / "elsewhere").rglob("*.o")), "objects are left behind"


def test_shapes_are_computed_in_the_order_of_their_slots() -> None:
    """TVM's own order follows addresses: two builds of one model now and then differed in it."""

    @T.prim_func(s_tir=True)
    def shape_func(H: T.Buffer((T.int64(4),), "int64")) -> None:
        H[T.int64(3)] = H[T.int64(0)] * T.int64(768)
        H[T.int64(1)] = H[T.int64(0)] * T.int64(4)
        H[T.int64(2)] = H[T.int64(0)] * T.int64(2)

    module = ordered_shapes(tvm.IRModule({"shape_func1": shape_func}), None)
    stores = module["shape_func1"].body.seq
    assert [int(store.indices[0]) for store in stores] == [1, 2, 3]
    assert [int(store.value.b) for store in stores] == [4, 2, 768]


@pytest.mark.parametrize("isa", PROCESSORS)
def test_the_library_asks_for_the_runtime_alone(isa: str, tmp_path: Path) -> None:
    """Undefined symbols are the runtime's, or memcpy and memset, which any process has; no library is named."""
    out = tmp_path / "t.so"
    compile_library([llama_mlp(64, 72)], Precision.of("q8", "f16"), Shapes(64, 16), PROCESSORS[isa], out)
    head = out.read_bytes()[:20]
    assert head[:4] == b"\x7fELF"
    assert head[18:20] == MACHINES[PROCESSORS[isa].mtriple]
    listed = subprocess.run(
        ["readelf", "-W", "--dyn-syms", "-d", out], check=True, capture_output=True, text=True
    ).stdout
    undefined = {
        line.split()[-1] for line in listed.splitlines() if " UND " in line and len(line.split()) > 7
    }
    assert {u for u in undefined if not u.startswith("TVM")} <= {"memcpy", "memset", "memmove"}
    assert "NEEDED" not in listed


def _save_mlp(quant: str, isa: str, folder: Path, extreme: bool = False) -> list[str]:
    """A library, and the arrays that without_compiler.py calls it with."""
    template, name = llama_mlp(64, 72), f"{quant}{'-extreme' if extreme else ''}"
    library, native, arrays = (folder / f"{name}{end}" for end in (".so", "-native.so", ".npz"))
    # avx2 and both kinds of NEON have tiles of 8 rows, so one set of packed weights.
    here, draw = "avx2" if "neon" in isa else isa, extreme_weight if extreme else random_weight
    driven = Library([template], quant, here, native, draw=draw)
    compile_library([template], Precision.of(quant, "f16"), Shapes(64, 16), PROCESSORS[isa], library)
    x = np.ones((1, 5, 64), np.float32) if extreme else random_inputs(template, 5)["x"]
    (y,) = driven.run("t2", {"x": x}, [5])
    np.savez(arrays, x=x, y=y, **{f"param{i}": p for i, p in enumerate(driven.params["t2"])})
    return [str(library), str(arrays)]


def _judge(output: str, libraries: int) -> None:
    lines = output.splitlines()
    assert len(lines) == libraries
    for line in lines:
        _, difference, *errors = line.split()
        assert float(difference) < 1e-5
        assert len(errors) == 3, "wrong shapes and types are refused"


def test_it_runs_without_the_compiler_and_equally_on_any_number_of_threads(tmp_path: Path) -> None:
    runtime = Path(tvm.__file__).parent / "lib/libtvm_runtime.so"
    files = [path for quant in ("f32", "q4") for path in _save_mlp(quant, runnable()[0], tmp_path)]
    command = [sys.executable, DRIVER, runtime, *files]
    said = []
    for threads in (1, 2, 3):
        env = {**os.environ, "TVM_NUM_THREADS": str(threads), "TVM_BIND_THREADS": "0"}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        _judge(done.stdout, 2)
        said.append(done.stdout)
    assert said[0] == said[1] == said[2], "same bits"


def test_what_changes_from_call_to_call_is_checked_at_each(tmp_path: Path) -> None:
    library = Library([llama_attention(64, 4, 2, 16)], "q4", runnable()[0], tmp_path / "t.so")
    inputs = list(random_inputs(library.templates["t1"], 1).values())
    library.call("t1", "decode", inputs, library.caches("t1"))
    for place, one in enumerate(inputs):
        for wrong in (np.concatenate([one, one], axis=1), one[0], one.astype(np.float64)):
            given = [*inputs[:place], np.ascontiguousarray(wrong), *inputs[place + 1 :]]
            with pytest.raises((RuntimeError, ValueError, TypeError)):
                library.call("t1", "decode", given, library.caches("t1"))


def test_the_compiler_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, llcompile.lower; sys.exit('tvm' in sys.modules or 'onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.qemu
@pytest.mark.skipif(arm.missing() is not None, reason=str(arm.missing()))
@pytest.mark.parametrize(("isa", "cpu"), list(CPUS.items()))
def test_arm_gives_what_this_machine_gives(isa: str, cpu: str, tmp_path: Path) -> None:
    cases = [("f16", False), ("q8", False), ("q4", False), ("q8", True), ("q4", True)]
    files = [path for quant, extreme in cases for path in _save_mlp(quant, isa, tmp_path, extreme)]
    done = arm.run(str(DRIVER), str(ARM_RUNTIME), *files, cpu=cpu)
    assert done.returncode == 0, done.stderr
    _judge(done.stdout, len(cases))


def _instructions(isa: str, bits: int) -> set[str]:
    function = linear_quantised(isa_of(isa), bits, new_tokens(), 64, 32)
    return set(re.findall(r"^\s+([a-z][a-z0-9.]*)\s", Kernel(function, isa).assembly(), re.MULTILINE))


def test_each_instruction_set_gets_its_multiplication() -> None:
    for bits in (4, 8):
        assert "vpdpbusd" in _instructions("avx512vnni", bits)
        avx2 = _instructions("avx2", bits)
        assert {"vpmaddubsw", "vpmaddwd"} <= avx2
        assert not any("zmm" in i or "vpdp" in i for i in avx2)
        assert any(i.startswith("sdot") for i in _instructions("neon_dotprod", bits))
        assert "smmla" in _instructions("neon_i8mm", bits)
        neon = _instructions("neon", bits)
        assert any(i.startswith("smlal") for i in neon)
        assert not any(i.startswith(("sdot", "udot", "usdot")) for i in neon)


@pytest.mark.parametrize("isa", ["neon", "neon_dotprod"])
def test_float_kernels_use_fused_multiply_add_on_arm(isa: str) -> None:
    assembly = Kernel(linear_float(isa_of(isa), "float16", 1, 64, 32), isa).assembly()
    assert "fmla" in assembly
    assert "fcvtl" in assembly
