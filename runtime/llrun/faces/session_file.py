"""A session file on disk: what `requests.journal` says, each token there before it is shown."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

from llrun.errors import INTERNAL, USAGE, RunError
from llrun.files import TEXT_LIMIT
from llrun.requests import journal
from llrun.requests.journal import NO_JOURNAL, Asked, Ended, Forgotten, How, Kind, Token
from llrun.schema import Slice

IN_USE, UNWRITTEN = "R123", "R124"
SYNC_S = 1.0


class SessionFile:
    """The file of a run, made where there is none, and this process's alone while it is open.

    A token is the operating system's when `token` returns, so that no end of this process loses it. A thread has the
    disk write what has come every SYNC_S seconds: a loss of power takes the tokens of that time at most, which are
    made again then, the same. Requests, ends and `forgotten` are on the disk when their methods return. These raise
    RunError R124 when the file cannot be written.

    `past`: what the file said when it was opened. `cut_bytes`: how much at its end was no whole line, and is cut off.
    """

    def __init__(self, path: Path, record: Slice, kind: Kind) -> None:
        """Raises RunError: R123 when another process has it open, R124 when it cannot be opened or written, R120 to
        R122 as journal.read does."""
        self.path = path
        self._fault: OSError | None = None
        self._unsynced = False
        self._ending = threading.Event()
        self._syncing = threading.Thread(target=self._sync_at_times, name="session file", daemon=True)
        try:
            self._file = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise self._unwritten(error) from error
        try:
            self._lock()
            data = self._read()
            self.past = journal.read(data, record.bundle, kind, record.model)
            self._size = self.past.size_bytes
            self.cut_bytes = len(data) - self._size
            self._begin(journal.first_line(record.bundle, kind))
        except OSError as error:
            os.close(self._file)
            raise self._unwritten(error) from error
        except RunError as error:
            os.close(self._file)
            raise RunError(error.code, f"--session {path}: {error.message}", error.exit_code) from error
        self._syncing.start()

    def __enter__(self) -> SessionFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._ending.set()
        self._syncing.join()
        try:
            self._sync()
        except OSError as error:
            if kind is None:
                raise self._unwritten(error) from error
        finally:
            os.close(self._file)

    def asked(self, asked: Asked) -> None:
        self._write(journal.line(asked))
        self._sync_now()

    def token(self, token: int) -> None:
        self._write(journal.line(Token(token)))

    def ended(self, how: How) -> None:
        self._write(journal.line(Ended(how)))
        self._sync_now()

    def forgotten(self) -> None:
        """Another conversation begins."""
        self._write(journal.line(Forgotten()))
        self._sync_now()

    # --- the file ---

    def _lock(self) -> None:
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise RunError(NO_JOURNAL, "it is no plain file: give another name")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(IN_USE, "another llrun has it open: end that one, or give another file") from error

    def _read(self) -> bytes:
        size = os.fstat(self._file).st_size
        if size > TEXT_LIMIT:
            raise RunError(
                NO_JOURNAL, f"it has {size} bytes, at most {TEXT_LIMIT} are read: give another name"
            )
        data = bytearray()
        while piece := os.pread(self._file, size + 1, len(data)):
            data += piece
        return bytes(data)

    def _begin(self, first_line: bytes) -> None:
        """Cut off what is no whole line, and write the first line of a new file."""
        if self.cut_bytes:
            os.ftruncate(self._file, self._size)
        if self._size:
            return
        self._write(first_line)
        self._sync()
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # without it a loss of power could take the name
        finally:
            os.close(folder)

    def _write(self, data: bytes) -> None:
        if self._fault:
            raise self._unwritten(self._fault)
        try:
            left = data
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            self._fault = error
            with suppress(OSError):
                os.ftruncate(self._file, self._size)  # what was written of it, on a disk that is full
            raise self._unwritten(error) from error
        self._size += len(data)
        self._unsynced = True

    def _sync(self) -> None:
        self._unsynced = False
        os.fdatasync(self._file)

    def _sync_now(self) -> None:
        try:
            self._sync()
        except OSError as error:
            self._fault = error
            raise self._unwritten(error) from error

    def _sync_at_times(self) -> None:
        while not self._ending.wait(SYNC_S):
            if self._unsynced and not self._fault:
                with suppress(RunError):  # it is kept, and what is written next tells of it
                    self._sync_now()

    def _unwritten(self, error: OSError) -> RunError:
        reason = error.strerror or error
        wrong_name = isinstance(
            error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
        )
        return RunError(
            UNWRITTEN,
            f"--session {self.path} cannot be written: {reason}. What was answered so far is in it; make room, or give"
            " another file",
            USAGE if wrong_name else INTERNAL,
        )
