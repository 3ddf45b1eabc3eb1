"""A conversation with the numpy model at this terminal: `chat_here.py TOKENIZER SECONDS_A_STEP TOKENS [SESSION_FILE
[TEMPLATE]]`, a file `-` being none; or, without them, the console alone: lines are read and told, until the end."""

from __future__ import annotations

import fcntl
import hashlib
import sys
import termios
import time
from contextlib import ExitStack
from pathlib import Path

import numpy_model

from llrun.errors import RunError
from llrun.faces.chat import chat
from llrun.faces.console import Console
from llrun.faces.printer import Wanted
from llrun.faces.recording import recording
from llrun.head.session import Session
from llrun.requests.chat_template import ChatTemplate
from llrun.requests.dialogue import Dialogue
from llrun.requests.journal import Kind
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.requests.tokenizer import Tokenizer
from llrun.wire.transport import Tcp


def converse(
    path: Path, seconds: float, tokens: int, session_file: Path | None, template: Path | None
) -> None:
    def slow(*arguments):
        time.sleep(seconds)
        return numpy_model.mix(*arguments)

    part = numpy_model.device("d0", ["d0"], numpy_model.library(t1=slow))
    console = Console(quiet=False)
    tokenizer = Tokenizer(str(path), path.read_bytes(), numpy_model.VOCABULARY)
    wanted = Wanted(tokens, Sampling(1.2, 40, 0.98, 5), ())
    kept = recording(session_file, part.record, Kind.CONVERSATION, console)
    with ExitStack() as stack:
        dialogue = None
        if template:
            written = stack.enter_context(ChatTemplate(str(template), {"default": template.read_text()}))
            dialogue = Dialogue(written, tokenizer, part.record.model)
        file = stack.enter_context(kept)
        session = stack.enter_context(Session(part, Tcp(), {}, 20.0))
        chat(Scheduler(session), wanted, tokenizer, console, file, dialogue)


def tell_lines() -> None:
    console = Console(quiet=False)
    with console.conversation():
        while (line := console.ask()) is not None:
            if line == "wait":
                console.note("waiting")
                time.sleep(1.0)
            console.note(f"{len(line)} {hashlib.sha256(line.encode()).hexdigest()}.")


if __name__ == "__main__":
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    try:
        if sys.argv[1:]:
            files = [None if name == "-" else Path(name) for name in (*sys.argv[4:], "-", "-")]
            converse(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), files[0], files[1])
        else:
            tell_lines()
    except KeyboardInterrupt:
        sys.exit(1)
    except RunError as error:
        sys.exit(str(error))
