"""What is read from the measured programs, and how it is set in tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
from quality import scored
from shared import ours, parts, peer
from shared.gguf_files import checkpoint_name, halves, interleaved
from shared.memory import Held
from shared.parts import Line
from shared.rounds import Spread, spread
from shared.tables import memory_table, rates_table, reads_sentence


def test_llama_bench_rows_are_named_by_their_test() -> None:
    rows = [{"n_prompt": 512, "n_gen": 0, "avg_ts": 130.5}, {"n_prompt": 0, "n_gen": 128, "avg_ts": 40.25}]
    assert peer.parse_bench(json.dumps(rows)) == {"pp512": 130.5, "tg128": 40.25}


def test_batched_bench_gives_the_rate_of_decoding() -> None:
    text = 'warning\n{"pl": 1, "speed_tg": 48.0, "speed_pp": 9.0}\n\n{"pl": 16, "speed_tg": 231.0}\n'
    assert peer.parse_batched(text) == {"x1": 48.0, "x16": 231.0}


def test_the_final_perplexity_is_found() -> None:
    assert peer.parse_perplexity("[1]8.1,[2]8.2,\nFinal estimate: PPL = 9.0983 +/- 0.11\n") == 9.0983
    with pytest.raises(ValueError, match="no final estimate"):
        peer.parse_perplexity("[1]8.1")


def test_llrun_bench_rows() -> None:
    rows = [{"test": "pp512", "depth": 0, "sequences": 1, "tokens_per_s": 260.0, "sd": 0.0, "runs": 1}]
    assert ours.parse_bench(json.dumps(rows)) == {"pp512": 260.0}


def test_rotary_halves_become_neighbours() -> None:
    matrix = np.arange(8)[:, None] * np.ones((1, 3), int)
    assert interleaved(matrix, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert (halves(interleaved(matrix, 2), 2) == matrix).all()


def _line(test: str, **changes: object) -> Line:
    rates = {"peer": spread([40.0, 42.0, 38.0]), "ours": spread([60.0, 64.0, 61.0])}
    given = {"ratio": Spread(1.5, 1.4, 1.6), "read": Spread(41.0, 40.0, 42.0), "work": (24.0, 36.0)}
    return Line(
        **{"quant": "q4", "threads": 1, "test": test, "share": (0.6, 0.88), "peer_name": "llama.cpp",
           **rates, **given, **changes}
    )  # fmt: skip


def test_a_line_of_the_table_holds_medians_spread_ratio_and_share() -> None:
    row = rates_table([_line("tg128")]).splitlines()[-1]
    assert "40.0 (38.0..42.0)" in row
    assert "**1.50** (1.40..1.60)" in row
    assert row.endswith("| 24.0 GB/s, 60% | 36.0 GB/s, 88% |")


def test_prefill_is_measured_in_products_and_the_peers_switch_is_named() -> None:
    row = rates_table([_line("pp512 @ d2048", peer_name="llama.cpp -fa 0")]).splitlines()[-1]
    assert row.endswith("| 24 GMAC/s | 36 GMAC/s |")
    assert "(38.0..42.0) (-fa 0) |" in row


def test_the_memorys_rate_is_given_for_each_number_of_threads() -> None:
    lines = [_line("tg128"), _line("tg128", threads=2, read=Spread(50.0, 47.0, 52.0))]
    expected = "Memory was read at 40.0 to 42.0 GB/s with 1 thread, 47.0 to 52.0 GB/s with 2 threads in these rounds."
    assert reads_sentence(lines) == expected


def test_memory_beside_weights_and_cache_is_held_against_the_limit() -> None:
    within = Held("q4", "llrun", 582_000_000, 12_000_000, 690_000_000, 650_000_000, 40_000_000)
    beyond = Held("q4", "llama.cpp", 599_000_000, 12_000_000, 1_250_000_000, 613_000_000, 645_000_000)
    rows = memory_table([within, beyond]).splitlines()[2:]
    assert rows[0].endswith("| 96.0 | yes |")
    assert rows[1].endswith("| 639.0 | no |")


def test_depths_after_the_first_take_the_peers_better_switch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, list[str], int]] = []

    def lines(chosen, tell, folder, quant, threads, sizes, depth, context, peers):
        asked.append((depth, list(peers), chosen.rounds))
        yield _line(f"pp512 @ d{depth}", peer_name="llama.cpp -fa 0")

    monkeypatch.setattr(parts, "_lines", lines)
    found = list(parts.depth_lines(parts.Settings(("q4",), (1, 2), 3, "x86-64-v4"), print))
    both = ["llama.cpp -fa 0", "llama.cpp -fa 1"]
    assert asked == [(2048, both, 2), (2048, both, 2), (8192, ["llama.cpp -fa 0"], 1)]
    assert len(found) == 3


def test_names_of_tensors_in_a_checkpoint() -> None:
    assert checkpoint_name("blk.3.attn_k.weight") == "model.layers.3.self_attn.k_proj.weight"
    assert checkpoint_name("blk.0.ffn_norm.weight") == "model.layers.0.post_attention_layernorm.weight"
    assert checkpoint_name("token_embd.weight") == "model.embed_tokens.weight"


def test_divergence_and_perplexity() -> None:
    reference = np.log(np.array([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]]))
    same = scored([[0, 1, 0]], iter([reference]), [reference])
    assert same.divergence == 0
    assert same.perplexity == pytest.approx((1 / 0.5 / 0.25) ** 0.5)
    other = np.log(np.array([[0.25, 0.75], [0.25, 0.75], [0.5, 0.5]]))
    assert scored([[0, 1, 0]], iter([other]), [reference]).divergence == pytest.approx(
        (0.5 * np.log(2) + 0.5 * np.log(2 / 3)) / 3
    )
