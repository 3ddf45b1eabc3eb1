"""What the pieces of a graph's blocks cost, as the planner asks for it."""

from __future__ import annotations

from llcompile import cost
from llcompile.graph import build_graph
from llcompile.sharding import Sharding
from llrun.schema import Precision, Shapes
from tests.unit.graph.synthetic import decoder

SHAPES = Shapes(256, 16)
Q8 = Precision.of("q8", "f16")


def sharding(**sizes: int) -> Sharding:
    return Sharding(build_graph(decoder(2, hidden=128, heads=4, kv_heads=2, **sizes)), Q8, SHAPES)


def test_shards_cost_their_share_and_the_norms() -> None:
    model = sharding(ffn=256)
    whole = cost.block_costs(model.graph, Q8, SHAPES)
    costs = model.costs(range(1, 5), (0.5, 0.5), 2)
    assert list(costs) == [1, 2, 3, 4]
    for block, each in costs.items():
        (shard, twin), (tail, same) = each.shards, each.tails
        assert (shard, tail) == (twin, same)
        assert (shard.block, tail.block) == (block, block)
        assert 2 * shard.cache_bytes == whole[block].cache_bytes
        # Norms are on both devices, and every stored tensor fills pages of its own.
        assert 0 <= 2 * shard.weights_bytes - whole[block].weights_bytes <= 16 * cost.blocks.PAGE_BYTES
        assert 0 <= 2 * shard.decode_flops - whole[block].decode_flops < 1000
        assert tail.cache_bytes == tail.weights_bytes == 0
        assert 0 < tail.decode_flops < 1000
        assert (each.partial_decode_bytes, each.partial_prefill_bytes) == (512, 16 * 512)
    # The last MLP is computed for the newest row alone, its pieces too.
    assert costs[4].shards[0].prefill_flops * SHAPES.chunk == costs[2].shards[0].prefill_flops


def test_unequal_shares_and_one_sum() -> None:
    costs = sharding(ffn=256).costs((2,), (0.75, 0.25), 1)[2]
    large, small = costs.shards
    assert large.weights_bytes > 2 * small.weights_bytes
    assert costs.tails[0] == costs.tails[1]


def test_a_block_that_cannot_be_cut_is_left_out_and_says_why() -> None:
    model = sharding(ffn=256)
    shares = (0.2,) * 5
    assert list(model.costs((0, 1, 2, 5), shares, 5)) == [2]
    reason = "4 heads of 32 features, 2 to a key head, cannot be cut for 5 devices"
    assert model.pieces(1, shares, 5) == reason
    assert model.pieces(0, shares, 5) == "no matrix multiplies what other matrices make"
