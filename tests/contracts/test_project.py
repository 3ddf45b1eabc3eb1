"""The repository keeps its rules: licence, sources of figures, imports, lengths, what it promises to run."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from llcompile.cluster import load_cluster
from tests.contracts import rules

REPOSITORY = Path(__file__).parents[2]
PRODUCT = ("llcompile", "runtime/llrun")
EVERYTHING = (*PRODUCT, "scripts", "tests", "benchmarks", "examples")
AROUND = ("benchmarks", "docs", "examples", "scripts", "targets", "templates", "tests")
HEAD_NEEDS = {"jinja2", "llguidance", "tokenizers", "prometheus-client", "starlette", "uvicorn"}
RUNTIME_NEEDS = {"apache-tvm-ffi", "click", "msgspec", "numpy", "typing-extensions"}


def sources(folders: tuple[str, ...]) -> Iterator[tuple[PurePosixPath, str]]:
    for folder in folders:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            yield PurePosixPath(path.relative_to(REPOSITORY).as_posix()), path.read_text()


def violations(rule, folders: tuple[str, ...]) -> list[str]:
    return [line for path, text in sources(folders) for line in rule(path, ast.parse(text))]


def test_third_party_packages_stay_in_their_home() -> None:
    assert violations(rules.foreign_imports, PRODUCT) == []


def test_nothing_runs_code_out_of_data() -> None:
    assert violations(rules.unsafe_code, (*PRODUCT, "scripts", "benchmarks", "examples")) == []


def test_nothing_happens_at_import() -> None:
    assert violations(rules.work_at_import, PRODUCT) == []


def test_no_script_lets_a_library_report_before_it_is_silenced() -> None:
    assert violations(rules.talks_first, ("scripts", "benchmarks", "examples")) == []


def test_a_docstrings_first_sentence_does_not_end_in_a_line_of_a_word() -> None:
    assert violations(rules.broken_first_sentences, EVERYTHING) == []


def test_the_map_names_every_folder() -> None:
    """README's map: each stage of the compiler, each room of the runtime, each folder of the repository."""
    text = (REPOSITORY / "README.md").read_text().partition("## A map")[2]
    inits = [path for folder in PRODUCT for path in (REPOSITORY / folder).glob("*/__init__.py")]
    packages = [path.parent.relative_to(REPOSITORY).as_posix() for path in inits]
    missing = [path for path in [*packages, *AROUND] if f"]({path})" not in text]
    assert missing == []
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_files_and_functions_are_short() -> None:
    found = [
        line
        for path, text in sources(EVERYTHING)
        for line in rules.too_long(path, ast.parse(text), len(text.splitlines()))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("rule", "place", "text", "complaint"),
    [
        (rules.foreign_imports, "llcompile/graph/cuts.py", "import torch", "torch"),
        (
            rules.foreign_imports,
            "llcompile/cost/x.py",
            "def f():\n    from tvm import relax",
            "x.py:2",
        ),
        (rules.foreign_imports, "llcompile/ir/x.py", "import requests", "whose place is nowhere"),
        (rules.foreign_imports, "llcompile/graphics.py", "import networkx", "imports networkx"),
        (rules.unsafe_code, "a.py", "import pickle", "imports pickle"),
        (rules.unsafe_code, "a.py", "eval('1')", "calls eval"),
        (rules.unsafe_code, "a.py", "np.load(p, allow_pickle=True)", "allow_pickle"),
        (rules.unsafe_code, "a.py", "subprocess.run(c, shell=flag)", "shell"),
        (rules.unsafe_code, "a.py", "torch.load(p)", "torch.load"),
        (
            rules.broken_first_sentences,
            "a.py",
            'def f():\n    """What it does, and in which\n    order. More."""',
            "order.",
        ),
        (rules.talks_first, "a.py", "import onnxruntime", "before llcompile"),
        (rules.talks_first, "a.py", "import transformers.utils\nimport llcompile", "a.py:1"),
        (rules.work_at_import, "a.py", "register(1)", "runs at import"),
        (rules.work_at_import, "a.py", "telemetry.switch_off()", "runs at import"),
        (rules.work_at_import, "llcompile/__init__.py", "register(1)", "runs at import"),
        (rules.work_at_import, "a.py", "def f():\n    global x", "global state"),
    ],
)
def test_a_rule_sees_what_it_forbids(rule, place: str, text: str, complaint: str) -> None:
    found = rule(PurePosixPath(place), ast.parse(text))
    assert len(found) == 1
    assert complaint in found[0]


def test_the_length_rule_sees_long_files_and_functions() -> None:
    text = "def f():\n" + "    x = 1\n" * rules.FUNCTION_LINES
    assert "f has 61 lines" in rules.too_long(PurePosixPath("a.py"), ast.parse(text), 401)[1]
    assert rules.too_long(PurePosixPath("a.py"), ast.parse(text), 401)[0] == "a.py: 401 lines, at most 400"


def test_the_licence_is_the_whole_of_apache_2() -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    assert text.lstrip().startswith("Apache License\n                           Version 2.0, January 2004")
    assert "END OF TERMS AND CONDITIONS" in text
    for name in ("llcompile", "llrun"):
        assert importlib.metadata.metadata(name)["License-Expression"] == "Apache-2.0"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "targets").glob("*.json")), ids=lambda path: path.stem)
def test_every_figure_of_a_target_names_its_source(path: Path) -> None:
    target = json.loads(path.read_text())
    assert target["name"] == path.stem
    figures = {key: value for key, value in target.items() if key not in ("name", "description", "processor")}
    assert len(figures) >= 5
    for key, figure in figures.items():
        assert figure["value"] > 0, key
        assert len(figure["source"]) > 20, key


@pytest.mark.parametrize("path", sorted((REPOSITORY / "examples").glob("*.json")), ids=lambda path: path.stem)
def test_the_example_clusters_load(path: Path) -> None:
    cluster = load_cluster(path)
    assert len(cluster.devices) >= 2
    assert cluster.device(cluster.head)


def test_the_runtime_needs_nothing_heavy() -> None:
    needed, pending = set[str](), ["llrun"]
    while pending:
        for text in importlib.metadata.distribution(pending.pop()).requires or ():
            need = Requirement(text)
            name = canonicalize_name(need.name)
            if name not in needed and (need.marker is None or need.marker.evaluate({"extra": ""})):
                needed.add(name)
                pending.append(name)
    assert needed <= RUNTIME_NEEDS
    optional = [
        text for text in importlib.metadata.distribution("llrun").requires or () if "extra ==" in text
    ]
    names = {Requirement(text).name for text in optional}
    assert "tokenizers" in names
    assert names <= HEAD_NEEDS


@pytest.mark.parametrize("target", ["help", "setup", "demo", "test", "lint", "clean"])
def test_make_offers(target: str) -> None:
    result = subprocess.run(
        ["make", "--dry-run", target], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_ci_runs_make_test_and_nothing_else() -> None:
    script = REPOSITORY / ".ci/run"
    lines = script.read_text().splitlines()[1:]
    commands = [line for line in lines if not line.startswith(("set ", "cd "))]
    assert commands == ["make test"]
    assert script.stat().st_mode & 0o111


def test_every_dependency_is_pinned() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    names = {pin.split("==")[0] for pin in pins}
    for own in ("llcompile", "llrun"):
        for text in importlib.metadata.distribution(own).requires or ():
            name = canonicalize_name(Requirement(text).name)
            assert name in names | {"llrun"}
