"""One token's way is told from what devices said of the same pass, and from what links showed."""

from __future__ import annotations

import numpy_model
import pytest

from llrun.head.present import Present
from llrun.head.readings import LinkReading
from llrun.head.way import Hop, Stay, hops_of, way_of
from llrun.requests.conversation import generate
from llrun.requests.sampling import Sampling
from llrun.requests.scheduler import Scheduler
from llrun.schema import StageRecord
from llrun.wire.messages import StepDone

NAMES = ["head", "anna", "bert"]
RECORD = numpy_model.record("head", NAMES)
LINKS = RECORD.envelope.links
ROW_BYTES = numpy_model.WIDTH * 4


def done(
    position: int, compute_s: float, wait_s: float = 0.0, runs: tuple[float, ...] = (), sequence: int = 0
):
    return StepDone(sequence, position, compute_s, wait_s, 64, 0.25, runs)


def present(passes: dict[str, list[tuple[StepDone, ...]]], stages=RECORD.stages) -> Present:
    told = {name: tuple(each) for name, each in passes.items()}
    return Present(frozenset(NAMES), tuple(stages), 1, 9, 0.0, (), told)


def way(passes, links=(), planned=LINKS, stages=RECORD.stages):
    return way_of(present(passes, stages), hops_of(RECORD.graph, stages), planned, links)


def test_the_newest_token_that_all_have_told_of_is_taken():
    found = way(
        {
            "head": [(done(7, 3.0, runs=(1.0, 2.0)),), (done(8, 5.0, 0.5, runs=(2.0, 3.0)),)],
            "anna": [(done(8, 4.0, 1.5),), (done(9, 9.0),)],
            "bert": [(done(7, 6.0),), (done(8, 7.0, 2.5),)],
        }
    )
    assert found is not None
    assert (found.position, found.sequences) == (8, 1)
    stays = [leg for leg in found.legs if isinstance(leg, Stay)]
    spent = [(*stay.blocks, *(s.device for s in stay.spent), stay.spent[0].compute_s) for stay in stays]
    blocks = [stage.blocks for stage in RECORD.stages]
    assert spent == [
        (*blocks[0], "head", 2.0), (*blocks[1], "anna", 4.0), (*blocks[2], "bert", 7.0), (*blocks[3], "head", 3.0)
    ]  # fmt: skip
    assert [stay.spent[0].wait_s for stay in stays] == [0.5, 1.5, 2.5, 0.0]
    assert [stay.spent[0].send_s for stay in stays] == [0.0, 0.25, 0.25, 0.25]


def test_nothing_is_told_of_devices_that_have_not_told():
    assert way({}) is None
    assert way({"head": [(done(8, 1.0),)], "anna": [(done(8, 1.0),)]}) is None
    assert way({name: [(done(number, 1.0),)] for number, name in enumerate(NAMES)}) is None


def test_hops_follow_their_stage_and_take_what_the_link_shows():
    told = {name: [(done(8, 1.0),)] for name in NAMES}
    links = [LinkReading("head", "anna", 0.5, 64.0), LinkReading("anna", "bert", 0.25, None)]
    hops = [leg for leg in way(told, links).legs if isinstance(leg, Hop)]
    assert [(hop.source, hop.destination, hop.size_bytes) for hop in hops] == [
        ("head", "anna", ROW_BYTES), ("anna", "bert", ROW_BYTES), ("bert", "head", ROW_BYTES)
    ]  # fmt: skip
    assert (hops[0].seconds, hops[0].measured) == (0.5 + ROW_BYTES / 64, True)
    assert (hops[1].seconds, hops[1].measured) == (0.25 + ROW_BYTES / 1e8, False)
    assert (hops[2].seconds, hops[2].measured) == (1e-3 + ROW_BYTES / 1e8, False)
    assert {hop.seconds for hop in way(told, planned=()).legs if isinstance(hop, Hop)} == {None}
    order = [type(leg).__name__ for leg in way(told).legs]
    assert order == ["Stay", "Hop", "Stay", "Hop", "Stay", "Hop", "Stay"]


def test_steps_of_one_pass_are_added_up():
    both = (done(8, 1.0, 0.5), done(3, 2.0, 0.5, sequence=1))
    found = way({name: [both] for name in NAMES})
    assert (found.position, found.sequences) == (8, 2)
    anna = next(leg for leg in found.legs if isinstance(leg, Stay) and leg.spent[0].device == "anna")
    assert (anna.spent[0].compute_s, anna.spent[0].wait_s) == (3.0, 1.0)


def test_a_group_is_one_stage_of_several_devices():
    stages = [
        StageRecord.on("head", 0, 1),
        StageRecord(devices=("anna", "bert"), shares=(0.5, 0.5), blocks=(1, 6), window=0),
        StageRecord.on("head", 6, 7),
    ]
    found = way({name: [(done(8, 1.0, runs=(0.1,) * 5),)] for name in NAMES}, stages=stages)
    middle = [leg for leg in found.legs if isinstance(leg, Stay)][1]
    assert [(spent.device, spent.compute_s) for spent in middle.spent] == [("anna", 1.0), ("bert", 1.0)]
    ends = [leg.spent[0].compute_s for leg in found.legs if isinstance(leg, Stay)][::2]
    assert ends == [1.0, 0.0]  # cut otherwise than its stages: told of the first of the largest


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_real_token_is_followed_through_all_devices(cluster, count):
    names = ["d0", "d1", "d2", "d3"][:count]
    with cluster(names).session() as session:
        generate(Scheduler(session), [1, 2, 3], 20, Sampling(), lambda token: True)
        now, record = session.present, session.device.record
        hops = hops_of(record.graph, now.stages)
        found = way_of(now, hops, record.envelope.links, session.readings.links)
    assert now.tokens == 20
    assert (now.alive, now.epoch) == (frozenset(names), 1)
    assert found is not None
    assert found.position >= 3
    stays = [leg for leg in found.legs if isinstance(leg, Stay)]
    assert [stay.blocks for stay in stays] == [stage.blocks for stage in record.stages]
    assert all(spent.compute_s > 0 for stay in stays for spent in stay.spent)
    assert all(hop.seconds for hop in found.legs if isinstance(hop, Hop))
