"""A network that is gone for some seconds is borne; one that stays away ends the request and is named."""

from __future__ import annotations

import re
import time

import numpy_model
import pytest
from namespaces import Network, why_not

NAMES = ["head", "anna", "bert"]
pytestmark = pytest.mark.root


@pytest.fixture
def network():
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with Network(NAMES) as machines:
        yield machines


def start_all(network: Network, tokens: int, wait_s: float = 2.5):
    places = {name: f"{network.addresses[name]}:5700" for name in NAMES}
    pairs = ",".join(f"{name}={place}" for name, place in places.items())
    for name in NAMES[1:]:
        worker = network.start(name, "numpy_worker.py", name, ",".join(NAMES), places[name], pairs)
        assert worker.stdout
        assert worker.stdout.readline().strip() == places[name]
    workers = ",".join(f"{name}={places[name]}" for name in NAMES[1:])
    return network.start("head", "numpy_head.py", ",".join(NAMES), workers, str(tokens), str(wait_s))


@pytest.mark.slow
@pytest.mark.parametrize("after_tokens", [1, 6])
def test_three_seconds_without_a_network_are_borne(network, after_tokens):
    head = start_all(network, 24, 8.0)
    lines = [head.stdout.readline() for _ in range(after_tokens)]
    network.cut()
    time.sleep(3.0)
    network.join()
    lines += head.communicate(timeout=60)[0].splitlines(keepends=True)
    assert [line.strip() for line in lines] == [str(t) for t in numpy_model.greedy([1, 2, 3], 24)]


@pytest.mark.slow
def test_a_network_that_stays_away_ends_the_request(network):
    head = start_all(network, 200)
    head.stdout.readline()
    network.cut()
    said = head.communicate(timeout=60)[0]
    assert "error[R301]: device " in said
    assert "device head was lost" not in said


def test_link_local_addresses_are_listened_on_and_reached(network):
    listener = network.start("anna", "echo_listener.py", "[fe80::2%net]:5700")
    assert listener.stdout.readline().strip() == "[fe80::2%net]:5700"
    dialer = network.start("head", "echo_dialer.py", "[fe80::2%net]:5700")
    assert dialer.communicate(timeout=20)[0] == "hello"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.77.0.2:5700", "connection refused: the machine is there"),
        ("10.77.0.99:5700", "is it switched on|no answer in time"),
        ("10.78.0.1:5700", "no route to its network"),
    ],
)
def test_each_cause_is_told_from_the_others(network, address, reason):
    said = network.start("head", "echo_dialer.py", address).communicate(timeout=20)[0]
    assert re.search(reason, said)
    assert ("llrun running" in said) == (address == "10.77.0.2:5700")
