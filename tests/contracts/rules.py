"""Rules about code that ruff and import-linter cannot state, as pure functions over one source file.

A rule takes a path relative to the repository and the parsed file, and returns what is wrong, line by line.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

FILE_LINES, FUNCTION_LINES = 400, 60

# Third-party packages by the only folders or files that import them. Whatever is not here is not allowed.
HOMES: dict[str, tuple[str, ...]] = {
    "click": ("llcompile/cli.py", "runtime/llrun"),
    "gguf": ("llcompile/gguf",),
    "huggingface_hub": ("llcompile/frontend",),
    "jinja2": ("llcompile/explain", "runtime/llrun/requests/rendering.py"),
    "llguidance": ("runtime/llrun/requests/grammars.py",),
    "msgspec": ("llcompile/bundle", "llcompile/explain/measured.py", "runtime/llrun"),
    "networkx": ("llcompile/graph",),
    "numpy": ("llcompile", "runtime/llrun"),
    "onnx": (
        "llcompile/frontend",
        "llcompile/dataflow",
        "llcompile/graph",
        "llcompile/shard",
        "llcompile/lower",
        "llcompile/quantize",
    ),
    "onnx_ir": ("llcompile/frontend", "llcompile/graph"),
    "onnxscript": ("llcompile/frontend",),
    "onnxsim": ("llcompile/frontend",),
    "ortools": ("llcompile/partition",),
    "prometheus_client": ("runtime/llrun/faces/server",),
    "rich": ("llcompile/console.py", "llcompile/explain"),
    "safetensors": ("llcompile/frontend",),
    "starlette": ("runtime/llrun/faces/server",),
    "tokenizers": ("llcompile/frontend", "runtime/llrun"),
    "torch": ("llcompile/frontend",),
    "transformers": ("llcompile/frontend",),
    "tvm": ("llcompile/lower",),
    "tvm_ffi": ("runtime/llrun",),
    "uvicorn": ("runtime/llrun/faces/server",),
    "ziglang": ("llcompile/lower",),
}
# Packages that report to their makers unless they are told not to before they are imported; importing ours tells them.
TALKATIVE = frozenset({"huggingface_hub", "onnxruntime", "onnxsim", "transformers"})
OWN = frozenset({"llcompile", "llrun"})
UNSAFE_MODULES = frozenset(
    {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
)
# The one thing that must be done before anything can be imported.
AT_IMPORT = {PurePosixPath("llcompile/__init__.py"): ("telemetry.switch_off()",)}
UNSAFE_CALLS = frozenset({"eval", "exec", "__import__"})
UNSAFE_METHODS = frozenset({("torch", "load"), ("np", "fromregex"), ("os", "system"), ("os", "popen")})


def foreign_imports(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """Third-party packages imported outside their one home."""
    found = []
    for line, module in imports(tree):
        package = module.split(".")[0]
        if package in OWN or package in sys.stdlib_module_names:
            continue
        homes = HOMES.get(package, ())
        if not any(path.is_relative_to(home) for home in homes):
            found.append(
                f"{path}:{line}: imports {package}, whose place is {' or '.join(homes) or 'nowhere'}"
            )
    return found


def unsafe_code(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """Anything that could run code out of data: pickle and its kin, eval, exec, a shell."""
    found = [
        f"{path}:{line}: imports {module}"
        for line, module in imports(tree)
        if module.split(".")[0] in UNSAFE_MODULES
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (reason := _unsafe_call(node)):
            found.append(f"{path}:{node.lineno}: {reason}")
    return found


def too_long(path: PurePosixPath, tree: ast.Module, lines: int) -> list[str]:
    """Files and functions longer than a reader takes in at once."""
    found = [f"{path}: {lines} lines, at most {FILE_LINES}"] if lines > FILE_LINES else []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = _own_lines(node)
            if size > FUNCTION_LINES:
                found.append(f"{path}:{node.lineno}: {node.name} has {size} lines, at most {FUNCTION_LINES}")
    return found


def work_at_import(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """Bare calls, loops and mutable `global` state that run or live at module level; `__main__` is there to run."""
    if path.name == "__main__.py":
        return []
    kinds = (ast.For, ast.While, ast.With, ast.Delete)
    body = [node for node in tree.body if ast.unparse(node) not in AT_IMPORT.get(path, ())]
    found = [f"{path}:{n.lineno}: runs at import" for n in body if isinstance(n, kinds) or _bare_call(n)]
    found += [f"{path}:{n.lineno}: global state" for n in ast.walk(tree) if isinstance(n, ast.Global)]
    return found


def talks_first(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """Talkative packages imported by a script before the compiler, whose import silences them."""
    quiet = [line for line, module in imports(tree) if module.split(".")[0] == "llcompile"]
    return [
        f"{path}:{line}: imports {module} before llcompile"
        for line, module in imports(tree)
        if module.split(".")[0] in TALKATIVE and not (quiet and min(quiet) < line)
    ]


def broken_first_sentences(path: PurePosixPath, tree: ast.Module) -> list[str]:
    """Docstrings whose first sentence runs over a line for the sake of one word or two."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        sentence = re.split(r"(?<=\.)\s|\n\n", text, maxsplit=1)[0].splitlines() if text else []
        if len(sentence) > 1 and len(sentence[-1].split()) <= 2:
            line = getattr(node, "lineno", 1)
            found.append(f"{path}:{line}: the docstring's first sentence ends in a line of {sentence[-1]!r}")
    return found


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and module of every absolute import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module


def _own_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of `function` without those of the functions defined in it, which count for themselves."""
    inner = [n for n in ast.walk(function) if isinstance(n, type(function)) and n is not function]
    skipped = {line for n in inner for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}
    return len(set(range(function.lineno, (function.end_lineno or function.lineno) + 1)) - skipped)


def _unsafe_call(node: ast.Call) -> str | None:
    called = node.func
    if isinstance(called, ast.Name) and called.id in UNSAFE_CALLS:
        return f"calls {called.id}"
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        pair = (called.value.id, called.attr)
        if pair in UNSAFE_METHODS:
            return f"calls {'.'.join(pair)}"
    return next(
        (f"passes {word}=True" for word in ("allow_pickle", "shell") if _is_true(node.keywords, word)), None
    )


def _is_true(keywords: Sequence[ast.keyword], name: str) -> bool:
    return any(
        k.arg == name and not (isinstance(k.value, ast.Constant) and k.value.value is False) for k in keywords
    )


def _bare_call(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
