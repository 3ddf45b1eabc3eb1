"""The all-reduce of a group by plain blocking sockets and numpy, without anything around it: what a sum cannot beat.

`python -m shared.bare_sums JSON RANK` takes part as one of the ranks; rank 0 prints the seconds of each sum.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from llrun.programs.sums import rounds
from llrun.schema import AllReduceKind
from shared.sum_chain import pin

TREE = "tree"  # of TPI-LLM's comparison; none of ours
_HEADER_BYTES = 32


@dataclass(frozen=True)
class Bare:
    """`sums` sums of `width` float32 values by `kind` among ranks at `addresses`."""

    addresses: tuple[str, ...]
    kind: str
    root: int
    sums: int
    width: int


def words(bare: Bare) -> str:
    """The sums as a command line has them."""
    return json.dumps(asdict(bare))


def ways(kind: str, count: int, root: int) -> list[list[tuple[int, int]]]:
    """The messages of each round: from rank, to rank."""
    if kind == TREE:
        steps = [1 << i for i in range((count - 1).bit_length())]
        up = [[(r, r - d) for r in range(d, count, 2 * d)] for d in steps]
        return [*up, *([(b, a) for a, b in step] for step in reversed(up))]
    names = [str(rank) for rank in range(count)]
    return [[(int(a), int(b)) for a, b in each] for each in rounds(AllReduceKind(kind), names, root)]


def _connect(addresses: Sequence[str], rank: int) -> dict[int, socket.socket]:
    places = [(host, int(port)) for host, _, port in (each.rpartition(":") for each in addresses)]
    peers: dict[int, socket.socket] = {}
    with socket.create_server(places[rank]) as listener:
        for other in range(rank):
            peers[other] = _dial(places[other])
            peers[other].sendall(bytes([rank]))
        while len(peers) < len(places) - 1:
            came, _ = listener.accept()
            peers[came.recv(1)[0]] = came
    for each in peers.values():
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peers


def _dial(place: tuple[str, int]) -> socket.socket:
    until = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(place)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def take_part(bare: Bare, rank: int) -> list[float]:
    """Seconds of each sum."""
    peers = _connect(bare.addresses, rank)
    plan = ways(bare.kind, len(bare.addresses), bare.root)
    size = _HEADER_BYTES + 4 * bare.width
    frames = {peer: memoryview(bytearray(size)) for peer in peers}
    mine = memoryview(bytearray(size))
    found = []
    for _ in range(bare.sums):
        began = time.perf_counter()
        total = np.frombuffer(mine, np.float32)
        for each in plan:
            for source, to in each:
                if source == rank:
                    peers[to].sendall(mine)
            for source, to in each:
                if to == rank:
                    _fill(peers[source], frames[source])
                    total = np.add(total, np.frombuffer(frames[source], np.float32))
        found.append(time.perf_counter() - began)
    return found


def _fill(peer: socket.socket, view: memoryview) -> None:
    while view:
        view = view[peer.recv_into(view) :]


def main() -> None:
    """Be the rank that the command line names."""
    told, rank = json.loads(sys.argv[1]), int(sys.argv[2])
    pin(rank)
    found = take_part(Bare(**{**told, "addresses": tuple(told["addresses"])}), rank)
    if rank == 0:
        sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
