"""llrun as a user runs it, on a compiled model: prompts, streams, slices as daemons, and what is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e import harness, runtime_bundle
from tests.models import prompt, reference_greedy

LLRUN = [sys.executable, "-m", "llrun"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runtime_bundle.make(tmp_path_factory.mktemp("runtime"))


def llrun(*arguments: object, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*LLRUN, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == code, done.stderr
    return done


def ids(tokens: list[int]) -> str:
    return ",".join(map(str, tokens))


@contextlib.contextmanager
def daemons(bundle: Path, *names: str) -> Iterator[dict[str, str]]:
    """Workers started on their slices alone; their addresses."""
    running = {
        name: subprocess.Popen(
            [*LLRUN, str(bundle / "devices" / name), "--listen", "127.0.0.1:0"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    }
    try:
        lines = {name: process.stderr.readline() for name, process in running.items() if process.stderr}
        assert all(line.startswith(f"{name}: listening on 127.0.0.1:") for name, line in lines.items()), lines
        yield {name: line.split()[-1] for name, line in lines.items()}
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        for process in running.values():
            _, rest = process.communicate(timeout=10)
            assert process.returncode == 1
            assert "Traceback" not in rest


def peers(addresses: dict[str, str]) -> list[str]:
    return [word for name, address in addresses.items() for word in ("--peer", f"{name}={address}")]


def test_slices_serve_one_head_after_another(bundle):
    tokens = prompt(61)
    expected = reference_greedy(bundle.parent / "model", tokens, 12)
    with daemons(bundle, "d1", "d2") as addresses:
        for path in (bundle, bundle / "devices/d0"):
            done = llrun(path, *peers(addresses), "--prompt-ids", ids(tokens), "-n", 12, "--json")
            assert json.loads(done.stdout)["tokens"] == expected


def test_json_is_one_object_and_the_text_is_what_streams(bundle):
    common = ["--local", "--prompt", "def main(", "-n", "20"]
    found = json.loads(llrun(bundle, *common, "--json").stdout)
    streamed = llrun(bundle, *common)
    assert streamed.stdout == found["text"] + "\n"
    assert f"({len(found['tokens'])} tokens)" in streamed.stderr
    fields = "tokens text ttft_s tpot_s prompt_tokens token_s guessed moves devices measured"
    assert set(fields.split()) == found.keys()
    assert found["token_s"] == sorted(found["token_s"])
    assert len(found["token_s"]) == len(found["tokens"])
    assert (found["token_s"][0], found["moves"]) == (found["ttft_s"], [])
    assert found["devices"].keys() == {"d0", "d1", "d2"}
    for figures in found["devices"].values():
        assert figures.keys() == {"compute_s", "wait_s", "sent_bytes", "peak_memory_bytes"}
        assert all(value > 0 for value in figures.values())


def test_no_device_takes_more_memory_than_its_plan_says(bundle):
    """A prompt of many chunks, and a context that is full in the end."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    context = manifest["model"]["shapes"]["context"]
    done = llrun(bundle, "--local", "--prompt-ids", ids([3] * (context - 8)), "-n", 8, "--json")
    for name, figures in json.loads(done.stdout)["devices"].items():
        assert figures["peak_memory_bytes"] <= manifest["plan"]["devices"][name]["peak_bytes"], name


def test_rows_from_the_file_are_those_of_the_whole_table(bundle):
    tokens = [0, 299, 5, 5, 130, 298]
    whole, by_row = (harness.logits(bundle, tokens, size) for size in (1 << 30, 1))
    assert np.array_equal(whole, by_row)


def test_prompts_in_a_row_and_lines_of_stdin(bundle):
    several = json.loads(
        llrun(bundle, "--local", "--prompt", "def ", "--prompt", "for ", "-n", "8", "--json").stdout
    )
    assert len(several["results"]) == 2
    assert several["results"][-1]["tokens"] == several["tokens"]
    piped = json.loads(llrun(bundle, "--local", "-n", "8", "--json", stdin="def \n\nfor \n").stdout)
    assert [one["tokens"] for one in piped["results"]] == [one["tokens"] for one in several["results"]]


def test_a_stop_string_ends_the_text_before_it(bundle):
    whole = json.loads(llrun(bundle, "--local", "--prompt", "def ", "-n", "30", "--json").stdout)["text"]
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    cut = json.loads(
        llrun(bundle, "--local", "--prompt", "def ", "-n", "30", "--stop", stop, "--json").stdout
    )
    assert cut["text"] == whole[: whole.index(stop)]
    assert len(cut["tokens"]) < 30


def test_seeds(bundle):
    def sample(seed: int) -> list[int]:
        done = llrun(
            bundle,
            "--local",
            "--prompt-ids",
            "1,2",
            "-n",
            "16",
            "--temperature",
            "1.2",
            "--seed",
            seed,
            "--json",
        )
        tokens: list[int] = json.loads(done.stdout)["tokens"]
        return tokens

    assert sample(1) == sample(1) != sample(2)


def test_bench(bundle):
    common = ["bench", bundle, "--local", "-p", "140", "-n", "8", "-d", "16", "-r", "2", "--sequences", "3"]
    rows = json.loads(llrun(*common, "-o", "json").stdout)
    assert [(row["test"], row["depth"], row["sequences"], row["runs"]) for row in rows] == [
        ("pp140", 16, 3, 2),
        ("tg8", 16, 3, 2),
    ]
    assert all(row.keys() == {"test", "depth", "sequences", "tokens_per_s", "sd", "runs"} for row in rows)
    assert "| tg8 @ d16 |" in llrun(*common).stdout


@pytest.mark.parametrize("devices", [1, 3])
def test_sequences_decoded_together_give_what_each_gives_alone(bundle, tmp_path, devices):
    path = bundle if devices == 3 else runtime_bundle.make(tmp_path, 1)
    model = path.parent / "model"
    prompts = [prompt(length) for length in (140, 1, 129, 3, 30, 5, 17, 16, 2, 61, 7, 4, 15, 9, 128, 6, 8)]
    expected = [reference_greedy(model, tokens, 6) for tokens in prompts]
    for count in (2, 5, 17):
        words = [sys.executable, "-m", "tests.e2e.together", str(path), "6", json.dumps(prompts[:count])]
        done = subprocess.run(words, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        assert (found := json.loads(done.stdout))["together"] == found["alone"] == expected[:count]


def test_a_conversation_at_a_terminal(bundle):
    """Each line goes on in the same sequence; /new forgets it; a line that does not fit is no end."""
    first = typed(bundle, "def main", "/new", "def main", "x " * 300, "def main")
    answers = [line for line in first.splitlines() if line.startswith("[")]
    assert len(answers) == 3
    assert "tokens/s" in answers[0]
    assert "more than the context of 256" in first
    assert "/reset begins another" in first
    assert "Traceback" not in first
    texts = first.split("> ")[1:]
    assert texts[0].splitlines()[1] == texts[2].splitlines()[1] != texts[4].splitlines()[1]


def typed(bundle: Path, *lines: str) -> str:
    """What a terminal shows when `lines` are typed, each after the prompt, then the end of input."""
    ours, theirs = pty.openpty()
    command = [*LLRUN, str(bundle), "--local", "-n", "12"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    shown = b""
    try:
        for line in (*lines, None):
            before = shown.count(b"> ")
            while shown.count(b"> ") == before:
                shown += os.read(ours, 4096)
            os.write(ours, b"\x04" if line is None else f"{line}\n".encode())
        with contextlib.suppress(OSError):  # the terminal is gone when its last user is
            while piece := os.read(ours, 4096):
                shown += piece
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    text = shown.decode().replace("\x1b[?2004h", "").replace("\x1b[?2004l\r", "")  # marks for pasted text
    return text.replace("\r\n", "\n")


PROGRAM = """
import json, sys, llrun
seen = []
with llrun.Session(sys.argv[1], local=True, rebalance=lambda view: None) as session:
    text = session.generate("def main(", 20, temperature=1.2, seed=3, each=lambda *both: seen.append(both))
    ids = session.generate([1, 2, 3], 8, each=lambda token, piece: False)
    try:
        session.generate([1] * 300)
    except llrun.RunError as error:
        refused = str(error)
    took = session.readings
computed = [took.devices[name].compute_s > 0 for name in sorted(took.devices)]
print(json.dumps([text.tokens, text.text, seen, text.token_s, sorted(text.devices), ids.tokens, refused, computed]))
"""


def test_a_python_program_runs_it(bundle):
    done = subprocess.run([sys.executable, "-c", PROGRAM, bundle], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    tokens, text, seen, token_s, devices, ids, refused, took = json.loads(done.stdout)
    words = ["--prompt", "def main(", "-n", 20, "--temperature", 1.2, "--seed", 3, "--json"]
    found = json.loads(llrun(bundle, "--local", *words).stdout)
    assert (tokens, text) == (found["tokens"], found["text"])
    assert [token for token, _ in seen] == tokens
    assert text.startswith("".join(piece for _, piece in seen))
    assert len(token_s) == 20
    assert (devices, len(ids)) == (["d0", "d1", "d2"], 1)
    assert refused.startswith("error[R105]: 300 prompt tokens")
    assert took == [True] * 3
    assert sorted(found["measured"]["devices"]) == devices


def test_a_killed_run_goes_on_from_its_session_file(bundle, tmp_path):
    path = tmp_path / "run.session"
    words = ["--local", "--prompt", "def ", "--prompt", "for ", "-n", 120, "--temperature", 1.1, "--json"]
    whole = json.loads(llrun(bundle, *words).stdout)["results"]
    command = [*LLRUN, str(bundle), *map(str, words), "--session", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not path.exists() or path.stat().st_size < 6000:  # in the second answer
        assert time.monotonic() < until
        time.sleep(0.001)
    process.kill()
    process.wait()
    had = path.read_bytes().count(b'"token"')
    done = llrun(bundle, *words, "--session", path)
    results = json.loads(done.stdout)["results"]
    assert [(one["tokens"], one["text"]) for one in results] == [(o["tokens"], o["text"]) for o in whole]
    assert sum(one["token_s"].count(0.0) for one in results) == had
    again = llrun(bundle / "devices/d0", *words[1:], "--session", path)  # which starts no device
    assert [one["tokens"] for one in json.loads(again.stdout)["results"]] == [one["tokens"] for one in whole]


def test_a_reader_that_leaves_is_no_traceback(bundle):
    words = [*LLRUN, str(bundle), "--local", "-n", "200", "--prompt-ids", "1,2,3"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.read(4)
    process.stdout.close()
    assert process.stderr
    assert b"Traceback" not in process.stderr.read()
    assert process.wait(20) == 1


# --- what is left behind ---


def children_of(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, pids))


@contextlib.contextmanager
def long_run(bundle: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A local run in the middle of many prompts, and its workers' process ids (d1, d2)."""
    words = ["--local", "-n", "200", *["--prompt-ids", "1,2,3"] * 2000]
    process = subprocess.Popen(
        [*LLRUN, str(bundle), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout
        assert process.stdout.read(10)
        yield process, children_of(process.pid)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_head(bundle, how):
    with long_run(bundle) as (process, workers):
        assert len(workers) == 2
        os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
        process.wait(10)
        assert gone(workers)
        if how == signal.SIGINT:
            assert process.returncode == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_ends_the_run_in_time_and_by_name(bundle, how):
    """Without spare blocks nothing can take its place."""
    with long_run(bundle.parent / "bare") as (process, workers):
        os.kill(workers[1], how)
        start = time.monotonic()
        _, errors = process.communicate(timeout=20)
        seconds = time.monotonic() - start
        assert process.returncode == 1
        # A process that ends says so; of a frozen one, silence is borne for five seconds.
        assert seconds < (5 if how == signal.SIGKILL else 10)
        lines = [line for line in errors.decode().splitlines() if line.startswith("error[")]
        assert len(lines) == 1
        assert "device d2 was lost" in lines[0]
        assert b"Traceback" not in errors
        assert gone(workers)


ASKED = ["--local", "-n", "200", "--rebalance", "off"]
ASKED += [word for text in ("def main(", "for name in", "print(") for word in ("--prompt", text)]


@pytest.fixture(scope="module")
def undisturbed(bundle: Path) -> bytes:
    """What is printed where nothing is lost."""
    return llrun(bundle, *ASKED).stdout.encode()


def printed_and_told(bundle: Path, lost: int, first: str = "") -> tuple[bytes, str]:
    """What is printed, and told, when a worker is killed in the middle of the first answer, once `first` was told."""
    command = [*LLRUN, str(bundle), *ASKED]
    process = subprocess.Popen(command, bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stderr
        assert not first or process.stderr.readline().decode() == f"{first}\n"
        begun = process.stdout.read(10)
        os.kill(children_of(process.pid)[lost], signal.SIGKILL)
        rest, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    return begun + rest, errors.decode()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_worker_changes_nothing_of_the_text(bundle, undisturbed, lost):
    """Its blocks go to others that hold them, and the same answer goes on."""
    printed, told = printed_and_told(bundle, lost)
    assert printed == undisturbed
    assert f"device d{lost + 1} was lost" in told


def test_a_device_on_standby_runs_nothing_until_another_is_lost(bundle, undisturbed):
    standing = bundle.parent / "standing"
    described = json.loads((standing / "devices/d3/slice.json").read_text())
    assert described["program"]["instructions"] == []
    stages = described["stages"]
    assert {name for stage in stages for name in stage["devices"]} == {"d0", "d1", "d2"}
    lost = {b for stage in stages if stage["devices"] == ["d2"] for b in range(*stage["blocks"])}
    assert {block["id"] for block in described["blocks"]} >= lost
    printed, told = printed_and_told(standing, 1, "device d3 takes part")
    assert printed == undisturbed
    assert re.search(r"device d2 was lost.* Its blocks go: [-0-9, ]+ to d3; the answer goes on", told)
