"""Inner loops in AArch64 assembly: found, counted, and put to llvm-mca."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

MCA, DECODER = "llvm-mca-19", "llvm-mc-19"
_FEATURES = "+dotprod,+i8mm,+fullfp16"
_ITERATIONS = 200
_BRANCH = re.compile(r"(?:b\.?\w\w|cbn?z|tbn?z|b)\s+(?:.*?[\s,])?(\.L\w+|\d+b)")
# Multiply-adds of one instruction, by the shape of what it writes.
_PRODUCTS = (
    (re.compile(r"(?:us|su|s|u)dot\s"), lambda shape: 16),
    (re.compile(r"(?:us|s|u)mmla\s"), lambda shape: 32),
    (re.compile(r"[su]ml?[au]l[l2]*\s|[su]mul[l2]+\s"), lambda shape: {"8h": 8, "4s": 4}.get(shape, 0)),
    (re.compile(r"fmla\s"), lambda shape: {"8h": 8, "4s": 4}.get(shape, 0)),
)


@dataclass(frozen=True)
class Loop:
    """An innermost loop: its instructions, labels and directives left out."""

    function: str
    instructions: tuple[str, ...]

    @property
    def products(self) -> int:
        """Multiply-adds of one turn. Integer ones alone, if there are: their sums are scaled by float ones."""
        integer = sum(_products(i) for i in self.instructions if not i.startswith("fmla"))
        return integer or sum(_products(i) for i in self.instructions)

    @property
    def stack_accesses(self) -> int:
        return sum("[sp" in i for i in self.instructions)


def inner_loops(assembly: str, function: str = r"[\w.$]+") -> list[Loop]:
    """Innermost loops of the functions whose name matches."""
    return [Loop(name, loop) for name, body in _functions(assembly, function) for loop in _loops(body)]


def hottest(loops: list[Loop]) -> Loop:
    """The one with the most products; of several, the first."""
    return max(loops, key=lambda loop: loop.products)


def cycles(loop: Loop, cpu: str) -> float:
    """Cycles of one turn as llvm-mca's model of `cpu` has them, every access a hit in the first cache."""
    text = "\n".join(_without_label(i) for i in loop.instructions)
    command = [MCA, "-mtriple=aarch64", f"-mcpu={cpu}", f"-mattr={_FEATURES}", f"-iterations={_ITERATIONS}"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{MCA} rejects a loop of {loop.function}: {done.stderr.strip()[:400]}")
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert found, done.stdout
    return int(found[1]) / _ITERATIONS


def _functions(assembly: str, name: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each function whose name matches."""
    for text in assembly.split("\n.Lfunc_end")[:-1]:
        before, _, body = text.rpartition(",@function")
        found = re.search(r"\.type\s+(\S+)$", before)
        if found and re.fullmatch(name, found[1]):
            yield found[1], body


def _loops(body: str) -> list[tuple[str, ...]]:
    """A branch back to a label closes a loop; one that holds no other is innermost."""
    lines = _decoded([_instruction(line) for line in body.splitlines()])
    labels: dict[str, int] = {}
    spans = []
    for i, line in enumerate(lines):
        if line.endswith(":"):
            labels[line[:-1]] = i
        elif (found := _BRANCH.fullmatch(line)) and found[1].removesuffix("b") in labels:
            spans.append((labels[found[1].removesuffix("b")], i))
    inner = [s for s in spans if not any(s != t and s[0] <= t[0] and t[1] <= s[1] for t in spans)]
    return [
        tuple(line for line in lines[start : stop + 1] if line and not line.endswith(":"))
        for start, stop in inner
    ]


def _instruction(line: str) -> str:
    """The instruction or label of a line, else nothing."""
    code = re.sub(r"\s+", " ", line.partition("//")[0]).strip()
    return code if code.endswith(":") or not code.startswith((".", "#")) or code.startswith(".inst") else ""


def _decoded(lines: list[str]) -> list[str]:
    """Instructions given as numbers, for assemblers that do not know their names, get the names."""
    codes = [int(line.split()[1], 16) for line in lines if line.startswith(".inst")]
    if not codes:
        return lines
    text = " ".join(f"0x{byte:02x}" for code in codes for byte in code.to_bytes(4, "little"))
    command = [DECODER, "--disassemble", "-triple=aarch64", f"-mattr={_FEATURES}"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    names = iter(" ".join(n.split()) for n in done.stdout.splitlines() if n.strip() and ".text" not in n)
    return [next(names) if line.startswith(".inst") else line for line in lines]


def _without_label(instruction: str) -> str:
    found = _BRANCH.fullmatch(instruction)
    return instruction.removesuffix(found[1]) + "0" if found else instruction


def _products(instruction: str) -> int:
    for pattern, count in _PRODUCTS:
        if pattern.match(instruction):
            shape = re.search(r"\.(\w+)", instruction)
            return count(shape[1] if shape else "")
    return 0
