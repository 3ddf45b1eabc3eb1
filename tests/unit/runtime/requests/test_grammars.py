"""Answers held to a JSON schema: whatever is chosen of what is allowed, the schema's value is what comes out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import small_tokenizers

from llrun.errors import RunError
from llrun.requests.grammars import MAX_GRAMMAR_BYTES, SPACE, Grammars, json_grammar
from llrun.requests.sampling import Sampling, choose, generator
from llrun.requests.tokenizer import Tokenizer

END = 2  # "</s>"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["cat", "dog"]},
        "legs": {"type": "array", "items": {"type": "integer", "minimum": -9, "maximum": 120}, "maxItems": 3},
        "tame": {"type": "boolean"},
    },
    "required": ["name", "kind", "legs", "tame"],
    "additionalProperties": False,
}


def made(kind: str, vocab_size: int | None = None) -> tuple[Tokenizer, int]:
    inner = small_tokenizers.KINDS[kind]()
    size = vocab_size or inner.get_vocab_size()
    return Tokenizer("tokenizer.json", small_tokenizers.data(inner), size), size


def grammars(kind: str = "byte_level", ends: tuple[int, ...] = (END,)) -> Grammars:
    tokenizer, size = made(kind)
    return Grammars(tokenizer, size, ends)


def drawn(constraint, size: int, seed: int, limit: int = 400) -> list[int]:
    """Tokens chosen by logits that know nothing of JSON, up to the end token."""
    sampling, logits = Sampling(temperature=1.0, seed=seed), np.random.default_rng(seed)
    random, tokens = generator(sampling), list[int]()
    while len(tokens) < limit and END not in tokens:
        row = logits.standard_normal(size).astype(np.float32) * 3
        tokens.append(choose(row, sampling, random, constraint.allowed()))
        constraint.take(tokens[-1])
    return tokens


def is_right(value: object) -> bool:
    return (
        isinstance(value, dict)
        and list(value) == list(SCHEMA["properties"])
        and isinstance(value["name"], str)
        and len(value["name"]) <= 6
        and value["kind"] in ("cat", "dog")
        and len(value["legs"]) <= 3
        and all(isinstance(leg, int) and -9 <= leg <= 120 for leg in value["legs"])
        and isinstance(value["tame"], bool)
    )


@pytest.mark.parametrize("kind", ["byte_level", "gemma", "llama2", "metaspace"])
def test_any_choice_of_what_is_allowed_is_a_value_of_the_schema(kind):
    tokenizer, size = made(kind)
    several = Grammars(tokenizer, size, [END]).constraints(json_grammar(SCHEMA), 12)
    for seed, constraint in enumerate(several):
        tokens = drawn(constraint, size, seed)
        assert tokens[-1] == END
        assert is_right(json.loads(tokenizer.decode(tokens)))


def test_constraints_of_one_grammar_and_of_several_know_nothing_of_each_other():
    tokenizer, size = made("byte_level")
    rules = Grammars(tokenizer, size, [END])
    numbers = json_grammar({"type": "array", "items": {"type": "integer", "maximum": 99, "minimum": 0}})
    alone = [drawn(rules.constraints(grammar, 1)[0], size, 5) for grammar in (json_grammar(SCHEMA), numbers)]
    ones, others = rules.constraints(json_grammar(SCHEMA), 2), rules.constraints(numbers, 1)
    ones[0].take(int(ones[0].allowed()[0]))
    assert [drawn(ones[1], size, 5), drawn(others[0], size, 5)] == alone


def test_an_object_of_any_kind_is_an_object():
    tokenizer, size = made("byte_level")
    found = Grammars(tokenizer, size, [END]).constraints(json_grammar({"type": "object"}), 8)
    whole = [tokens for seed, one in enumerate(found) if (tokens := drawn(one, size, seed))[-1] == END]
    assert whole
    assert all(isinstance(json.loads(tokenizer.decode(tokens)), dict) for tokens in whole)


def test_space_between_parts_has_a_bound():
    """A model that likes spaces would go on with them for ever."""
    tokenizer, _ = made("byte_level")
    [constraint] = grammars().constraints(json_grammar(SCHEMA), 1)
    brace, space = tokenizer.encode("{")[-1], tokenizer.encode(" ")[-1]
    constraint.take(brace)
    count = 0
    while space in constraint.allowed() and count < 100:
        constraint.take(space)
        count += 1
    assert 0 < count <= 20, SPACE


def test_special_tokens_and_ids_that_no_text_has_are_never_allowed():
    tokenizer, size = made("byte_level", vocab_size=500)  # a model's table is padded
    text = json_grammar({"type": "string"})
    [constraint] = Grammars(tokenizer, size, [END]).constraints(text, 1)
    constraint.take(tokenizer.encode('"')[-1])
    allowed = constraint.allowed()
    assert len(allowed) > 150
    assert not any(tokenizer.hidden(int(token)) for token in allowed)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "strin"}, "strin"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "http://example.org/x.json"}, "fetch"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
        ({"not": {}, "x-guidance": {"lenient": True}}, "not"),
        ({"enum": ["x" * MAX_GRAMMAR_BYTES]}, f"{MAX_GRAMMAR_BYTES} are the most"),
        (
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"{i}{j}": {"type": "null"}}} for j in range(3)]}
                    for i in range(9)
                ]
            },
            "too large",
        ),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_with_the_reason(schema, reason):
    with pytest.raises(RunError, match=reason) as caught:
        grammars().constraints(json_grammar(schema), 1)
    assert caught.value.code == "R141"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("kind", "ends"), [("word_piece", (1,)), ("byte_level", ())])
def test_a_model_that_cannot_follow_any_is_told_of(kind, ends):
    with pytest.raises(RunError) as caught:
        grammars(kind, ends).constraints(json_grammar(SCHEMA), 1)
    assert caught.value.code == "R143"


def test_what_is_too_much_for_one_token_is_an_error_and_no_wrong_token():
    """Given up at llguidance's bound, not after an hour."""
    [constraint] = grammars().constraints(
        json_grammar({"type": "string", "pattern": "^((a|b){1,500}c?){1,500}$"}), 1
    )
    tokenizer, _ = made("byte_level")
    letters = [tokenizer.encode(letter)[-1] for letter in "ab"]
    random = np.random.default_rng(3)

    def go_on() -> None:
        constraint.take(tokenizer.encode('"')[-1])
        for _ in range(5000):
            if not set(letters) & set(constraint.allowed().tolist()):
                return
            constraint.take(letters[random.integers(2)])

    with pytest.raises(RunError) as caught:
        go_on()
    assert caught.value.code == "R142"
