"""The engine's outside on the head: tensors to neighbours, everything else to the driver."""

from __future__ import annotations

from collections.abc import Sequence
from queue import SimpleQueue

import numpy as np

from llrun.device.headroom import memory_left
from llrun.engine.part import Part
from llrun.head.replies import Logits, Reply, Said
from llrun.memory import Array
from llrun.programs.installed import Installed
from llrun.wire.links import Links
from llrun.wire.messages import (
    AnyMessage,
    Copied,
    Figures,
    Halted,
    Held,
    Measured,
    Opened,
    Rejected,
    StepDone,
    StepsDone,
)
from llrun.wire.transfers import Transfers


class Outbound:
    """What the head's own engine, links and transfers have to say. `attach` comes before any of them runs."""

    def __init__(self, device: str, replies: SimpleQueue[Reply]) -> None:
        self._device = device
        self._replies = replies

    def attach(self, links: Links, transfers: Transfers, own: Part) -> None:
        self._links, self._transfers, self._own = links, transfers, own

    def reply(self, message: AnyMessage) -> None:
        self._replies.put(Said(self._device, message))

    def send(self, destination: str, header: bytes, payload: memoryview) -> None:
        self._links.send(destination, header, payload)

    def copied(self, transfer: int) -> None:
        self.reply(Copied(transfer))

    def opened(self, sequence: int, figures: Figures) -> None:
        self.reply(Opened(sequence, figures))

    def rejected(self, sequence: int, reason: str) -> None:
        self.reply(Rejected(sequence, "R402", reason))

    def halted(self, epoch: int, held: tuple[Held, ...]) -> None:
        self._own.halted()
        self.reply(Halted(epoch, held))

    def switched(self, installed: Installed) -> None:
        self._own.switched(installed)

    def steps_done(self, steps: Sequence[StepDone], figures: Figures) -> None:
        self._transfers.computed()
        self.reply(StepsDone(tuple(steps), figures))

    def measured(self, figures: Figures) -> None:
        room = memory_left()
        self.reply(Measured(figures, self._links.figures(), room.free_bytes if room else 0))

    def logits(self, steps: Sequence[tuple[int, int]], rows: Array) -> None:
        matrix = rows.reshape(-1, rows.shape[-1]).astype(np.float32, copy=False)
        each = len(matrix) // len(steps)  # a row of each of several steps, or all rows of one
        self._replies.put([Logits(*step, matrix[i * each : (i + 1) * each]) for i, step in enumerate(steps)])
