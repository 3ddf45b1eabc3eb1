"""The text of a session file: cut anywhere it is read up to there; damaged, edited or another's it is refused."""

from __future__ import annotations

import numpy as np
import numpy_model as synthetic
import pytest

from llrun.errors import RunError
from llrun.requests import journal
from llrun.requests.journal import Asked, Ended, Forgotten, How, Kind, Token, Turn, read
from llrun.requests.request import Request
from llrun.requests.sampling import Sampling, choose, generator

BUNDLE, MODEL = synthetic.BUNDLE, synthetic.record("d0", ["d0"]).model
FIRST = Asked((1, 2, 3), None, Sampling(), ())
SECOND = Asked((4, 5), 6, Sampling(0.8, 5, 0.9, 7), ("é\n", "</s>"))
RECORDS = (FIRST, Token(11), Token(12), Ended(How.DONE), SECOND, Token(13), Token(14))
TURNS = (Turn(FIRST, (11, 12), How.DONE), Turn(SECOND, (13, 14)))


def text(*records: journal.Record, kind: Kind = Kind.CONVERSATION) -> bytes:
    return journal.first_line(BUNDLE, kind) + b"".join(map(journal.line, records))


def past(data: bytes, kind: Kind = Kind.CONVERSATION) -> journal.Past:
    return read(data, BUNDLE, kind, MODEL)


def refused(data: bytes, code: str, words: str, kind: Kind = Kind.CONVERSATION) -> None:
    with pytest.raises(RunError, match=words) as error:
        past(data, kind)
    assert (error.value.code, error.value.exit_code) == (code, 2)


def test_what_is_written_is_read():
    found = past(text(*RECORDS))
    assert found.turns == TURNS
    assert found.size_bytes == len(text(*RECORDS))
    assert found.cut == TURNS[1]
    assert found.said == [1, 2, 3, 11, 12]


def test_cut_at_any_byte_it_says_what_was_whole():
    data = text(*RECORDS)
    ends = [len(text(*RECORDS[:count])) for count in range(len(RECORDS) + 1)]
    for size in range(len(data) + 1):
        whole = max((end for end in ends if end <= size), default=0)
        for rest in (b"", bytes(3), bytes(5000)):  # what a loss of power can leave behind the end
            found = past(data[:size] + rest) if size or not rest else past(b"")
            assert found.size_bytes == whole, size
            assert found.turns == (past(data[:whole]).turns if whole else ())


def test_a_hole_among_tokens_ends_there_and_one_before_a_request_is_damage():
    lines = text(*RECORDS).splitlines(keepends=True)
    for number, line in enumerate(lines):
        hole = b"".join([*lines[:number], bytes(len(line)), *lines[number + 1 :]])
        flipped = bytearray(line)
        flipped[len(line) // 2] ^= 1
        for damaged in (hole, b"".join([*lines[:number], bytes(flipped), *lines[number + 1 :]])):
            if number == 0:
                refused(damaged, "R120", "no session file|line 1 is damaged")
            elif number < 6:
                refused(damaged, "R120", "damaged")
            else:
                assert past(damaged).size_bytes == len(b"".join(lines[:number]))


@pytest.mark.parametrize(
    "records",
    [
        (Token(1),),
        (Ended(How.DONE),),
        (FIRST, SECOND),
        (FIRST, Token(97)),
        (FIRST, Token(-1)),
        (Asked((), None, Sampling(), ()),),
        (Asked((1, 97), None, Sampling(), ()),),
        (FIRST, Forgotten()),
        (FIRST, Ended(How.DONE), Ended(How.DONE)),
        (FIRST, Ended(How.DONE), Token(1)),
    ],
)
def test_what_cannot_follow_is_refused_by_its_line(records):
    refused(text(*records), "R120", f"line {len(records) + 1} is damaged or was edited")


def test_sampling_that_cannot_be_is_damage():
    good = journal.line(SECOND).rpartition(b" ")[0]
    bad = good.replace(b"0.8", b"-.8").replace(b"-.8", b"-1.0")
    line = b"%s %08x\n" % (bad, journal.zlib.crc32(bad))
    refused(text() + line, "R120", "line 2 is damaged")


@pytest.mark.parametrize(
    "data",
    [b"hello\n", b"\n", b"hello", b"\x7fELF" + bytes(100), b'{"is":"x"} 00000000\n', b"x" + text(FIRST)],
)
def test_other_files_are_not_taken_for_one(data):
    refused(data, "R120", "no session file of llrun")


def test_another_bundles_another_kinds_and_another_versions():
    refused(journal.first_line("c" * 64, Kind.CONVERSATION), "R121", "cccccccccccc.*bbbbbbbbbbbb")
    refused(text(kind=Kind.PROMPTS), "R122", "holds a run with prompts")
    refused(text(), "R122", "holds a conversation", Kind.PROMPTS)
    newer = journal.line(journal.Begun(3, BUNDLE, Kind.CONVERSATION))
    refused(newer, "R120", "version 3 .* up to 2")


def test_a_conversation_is_what_was_said_since_the_last_new_one():
    done, refusal = Ended(How.DONE), Ended(How.REFUSED)
    found = past(text(FIRST, Token(9), done, Forgotten(), SECOND, Token(8), done, FIRST, refusal))
    assert [turn.ended for turn in found.turns] == [How.DONE, How.REFUSED]
    assert found.said == [4, 5, 8]
    assert found.cut is None


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (Asked((1, 2, 4), None, Sampling(), ()), "prompt of 3 tokens"),
        (Asked((1, 2, 3), 9, Sampling(), ()), "-n was not given and is 9"),
        (Asked((1, 2, 3), None, Sampling(0.5), ()), "--temperature was 0.0 and is 0.5"),
        (Asked((1, 2, 3), None, Sampling(top_k=4), ()), "--top-k was 0 and is 4"),
        (Asked((1, 2, 3), None, Sampling(top_p=0.5), ()), "--top-p was 1.0 and is 0.5"),
        (Asked((1, 2, 3), None, Sampling(seed=3), ()), "--seed was 0 and is 3"),
        (Asked((1, 2, 3), None, Sampling(), ("a",)), "--stop was not given"),
    ],
)
def test_what_is_asked_otherwise_is_named(now, words):
    assert words in next(journal.faults(TURNS[0], now))
    assert not list(journal.faults(TURNS[0], FIRST))


# --- going on with an answer ---


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_choices_go_on_where_they_were(temperature):
    random = np.random.default_rng(5)
    logits = random.standard_normal((40, 97)).astype(np.float32)
    sampling = Sampling(temperature, 20, 0.95, 3)
    source = generator(sampling)
    whole = [choose(row, sampling, source) for row in logits]
    for made in range(40):
        source = generator(sampling, made)
        assert [choose(row, sampling, source) for row in logits[made:]] == whole[made:]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.1, 0, 0.95, 4)])
def test_a_request_with_the_beginning_of_its_answer_gives_the_rest(cluster, count, sampling):
    with cluster(["head", "anna", "bert"][:count]).scheduler() as scheduler:

        def ask(produced: tuple[int, ...], shown: list[int]):
            def show(token: int) -> bool:
                shown.append(token)
                return True

            request = Request([5, 6, 7], 20, sampling, show, produced)
            return scheduler.run_until(scheduler.submit(request))

        whole = ask((), [])
        assert len(whole.token_s) == 20
        assert whole.token_s[0] == whole.ttft_s
        for made in (1, 7, 19):
            shown: list[int] = []
            result = ask(whole.tokens[:made], shown)
            assert result.tokens == whole.tokens
            assert shown == list(whole.tokens[made:])
            assert result.prompt_tokens == 3
            assert result.token_s[:made] == (0.0,) * made
            assert result.token_s[made] == result.ttft_s > 0
            assert len(result.token_s) == 20
