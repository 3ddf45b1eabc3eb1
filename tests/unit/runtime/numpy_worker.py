"""A worker process that computes with numpy: `numpy_worker.py NAME DEVICES [LISTEN [NAME=ADDRESS,... [fast [WIRE]]]]`.
Prints its address, then serves."""

from __future__ import annotations

import sys
import time

import numpy_model

from llrun.wire.transport import Tcp
from llrun.worker.worker import Worker


def slow_mix(*arguments):
    time.sleep(0.02)
    return numpy_model.mix(*arguments)


if __name__ == "__main__":
    name, devices = sys.argv[1:3]
    listen, pairs, pace, wire = [*sys.argv[3:], *("127.0.0.1:0", "", "slow", "f32")[len(sys.argv) - 3 :]]
    addresses = dict(pair.split("=", 1) for pair in pairs.split(",") if pair)
    listener = Tcp().listen(listen)
    functions = numpy_model.library(**({} if pace == "fast" else {"t1": slow_mix}))
    graph = numpy_model.graph(wire)
    part = numpy_model.device(name, devices.split(","), functions, addresses=addresses, graph=graph)
    sys.stdout.write(listener.address + "\n")
    sys.stdout.flush()
    worker = Worker(part.record, Tcp(), listener, lambda text: sys.stderr.write(f"{text}\n") and None)
    worker.load(lambda: part)
    worker.serve()
