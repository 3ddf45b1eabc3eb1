"""A worker process that computes with numpy: `numpy_worker.py NAME DEVICES`. Prints its address, then
serves."""

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
    name, devices = sys.argv[1], sys.argv[2].split(",")
    listener = Tcp().listen("127.0.0.1:0")
    part = numpy_model.device(name, devices, numpy_model.library(t1=slow_mix))
    sys.stdout.write(listener.address + "\n")
    sys.stdout.flush()
    Worker(part, Tcp(), listener, lambda text: sys.stderr.write(f"{text}\n") and None).serve()
