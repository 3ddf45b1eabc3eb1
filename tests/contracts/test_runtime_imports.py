"""llrun runs where there is no torch, onnx, solver or TVM compiler: imported with those blocked."""

from __future__ import annotations

import subprocess
import sys

BLOCKED = ("torch", "onnx", "onnxruntime", "onnxscript", "onnxsim", "tvm", "transformers", "ortools",
           "networkx", "jinja2", "rich", "safetensors", "llcompile")  # fmt: skip

SCRIPT = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
import llrun
for module in pkgutil.walk_packages(llrun.__path__, "llrun."):
    if module.name != "llrun.__main__":
        importlib.import_module(module.name)
{extra}
"""


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)


def test_every_module_imports_without_the_compilers_libraries():
    result = python(SCRIPT.format(blocked=BLOCKED, extra="import tvm_ffi"))
    assert result.returncode == 0, result.stderr


def test_the_blocking_blocks():
    result = python(SCRIPT.format(blocked=BLOCKED, extra="import jinja2"))
    assert "jinja2 is blocked" in result.stderr


def test_loading_the_library_does_not_load_torch():
    result = python(
        "import sys\n"
        "from llrun.device.library import _without_torch\n"
        "with _without_torch():\n"
        "    import tvm_ffi\n"
        "assert 'torch' not in sys.modules\n"
        "assert not any(name.startswith('torch.') for name in sys.modules)\n"
    )
    assert result.returncode == 0, result.stderr


def test_help_and_version_need_neither_numpy_nor_tokenizers():
    extra = "assert not {'numpy', 'tokenizers', 'tvm_ffi'} & sys.modules.keys(), sorted(sys.modules)"
    result = python(f"import sys\nimport llrun.cli\n{extra}")
    assert result.returncode == 0, result.stderr


def test_importing_llrun_loads_nothing_and_has_what_programs_use():
    result = python(
        "import sys, llrun\n"
        "assert not {'numpy', 'msgspec', 'click'} & sys.modules.keys()\n"
        "assert {'Session', 'Answer', 'RunError'} <= set(dir(llrun))\n"
        "assert llrun.Session.__module__ == 'llrun.faces.api'\n"
        "assert all(getattr(llrun, name) is not None for name in dir(llrun))\n"
        "assert not hasattr(llrun, 'Nonsense')\n"
    )
    assert result.returncode == 0, result.stderr


def test_a_worker_needs_no_tokenizers():
    result = python(
        SCRIPT.format(
            blocked=(*BLOCKED, "tokenizers"),
            extra="import llrun.worker.worker, llrun.faces.serving",
        )
    )
    assert result.returncode == 0, result.stderr


def test_only_the_server_needs_the_servers_packages():
    """All modules but those of faces.server are imported with them blocked."""
    script = SCRIPT.replace(
        'if module.name != "llrun.__main__":',
        'if module.name != "llrun.__main__" and not module.name.startswith("llrun.faces.server."):',
    )
    blocked = (*BLOCKED, "starlette", "uvicorn", "prometheus_client")
    result = python(script.format(blocked=blocked, extra=""))
    assert result.returncode == 0, result.stderr


def test_without_the_servers_packages_serve_says_what_to_install():
    result = python(
        "import sys\n"
        "sys.modules['starlette'] = None\n"
        "from llrun.cli import _guarded, llrun\n"
        "sys.exit(_guarded(llrun, ['serve', 'bundle']))\n"
    )
    assert result.returncode == 2
    assert "error[R140]: serve needs the package" in result.stderr
    assert "pip install 'llrun[head,serve]'" in result.stderr
