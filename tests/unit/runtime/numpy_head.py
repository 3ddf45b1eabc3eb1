"""A head process that computes with numpy: `numpy_head.py DEVICES NAME=ADDRESS,... TOKENS WAIT`. Nothing can take a
lost device's place: it is waited for for WAIT seconds. Prints each token as it comes, then `error[...]`."""

from __future__ import annotations

import sys

import numpy_model
from losses import irreplaceable

from llrun.errors import RunError
from llrun.head.options import Balancing
from llrun.head.session import Session
from llrun.requests.conversation import generate
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.wire.transport import Tcp


def say(text: object) -> bool:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    return True


if __name__ == "__main__":
    devices = sys.argv[1].split(",")
    addresses = dict(pair.split("=", 1) for pair in sys.argv[2].split(","))
    head = numpy_model.device(devices[0], devices)
    try:
        waiting = Balancing(wait_s=float(sys.argv[4]))
        with irreplaceable(Session(head, Tcp(), addresses, 30.0, balancing=waiting)) as session:
            generate(Scheduler(session), [1, 2, 3], int(sys.argv[3]), Sampling(), say)
    except RunError as error:
        say(error)
