"""What a GGUF file says beside weights: configuration, beginning and ends, tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llcompile.frontend.configuration import read_configuration
from llcompile.frontend.ends import begin_and_ends
from llcompile.frontend.from_gguf import Described, describe, stored_tensors
from llcompile.frontend.tokenizer import read_tokenizer, tokenizer_files
from llcompile.gguf import read_header
from llcompile.ir.errors import CompileError
from tests.gguf_bytes import Entry, File
from tests.gguf_models import FAMILIES, family_file
from tests.unit.runtime.small_tokenizers import byte_level

# What transformers has no use for, or has from elsewhere than the file.
_APART = (
    "_name_or_path",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
    "dtype",
    "transformers_version",
)
TEXTS = (
    "def main(arguments): return 12345 + 6",
    " it's  a naïve\n\n  test ok <|im_start|>user",
    "한 안 é",
    "",
)
WORDS = ["▁ok", "▁o", "ok", "ab", "▁▁", "▁a", "▁ab", "▁", *"abcdeko0123", "it", "▁it"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def described(path: Path) -> Described:
    return describe(read_header(path))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_configuration_is_transformers_own(family: str) -> None:
    file = family_file(family)
    found = read_configuration(described(file).directory / "config.json").to_dict()
    expected = AutoConfig.from_pretrained(file.parent, gguf_file=file.name).to_dict()
    for key in _APART:
        found.pop(key, None), expected.pop(key, None)
    assert found == expected


def with_divisors(path: Path, divisors: np.ndarray) -> Path:
    """The small Llama with heads of 16 and a base of 500,000, whose frequencies are divided."""
    file = File().with_values(llama__rope__freq_base=500000.0)
    file.with_tensor("rope_freqs.weight", Entry((len(divisors),))).written(path)
    with path.open("r+b") as written:
        written.seek(read_header(path).tensors["rope_freqs.weight"].offset)
        written.write(divisors.astype("<f4").tobytes())
    return path


def llama3(factor: float) -> tuple[LlamaConfig, np.ndarray]:
    """Llama 3's configuration with such heads, and by what transformers divides their frequencies."""
    scaling = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"rope_type": "llama3", "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, rope_theta=500000.0, rope_scaling=scaling)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    return config, 500000.0 ** -(np.arange(0, 16, 2) / 16) / scaled.numpy()


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_scaled_rotary_embedding_is_found_by_what_it_made(factor: float, tmp_path: Path) -> None:
    expected, divisors = llama3(factor)
    path = with_divisors(tmp_path / "m.gguf", divisors)
    made = described(path)
    found = read_configuration(made.directory / "config.json").rope_parameters
    assert found.pop("factor") == pytest.approx(expected.rope_parameters.pop("factor"), rel=1e-6)
    assert found == expected.rope_parameters
    assert not any("rope" in name for name in stored_tensors(read_header(path), made.config))


@pytest.mark.parametrize("change", [0, 3, 7])
def test_any_other_scaling_is_refused(change: int, tmp_path: Path) -> None:
    _, divisors = llama3(8.0)
    divisors[change] *= 1.001
    with pytest.raises(
        CompileError, match=r"rope_freqs.weight scales the rotary embedding in another way"
    ) as error:
        described(with_divisors(tmp_path / "m.gguf", divisors))
    assert error.value.code == "F144"
    with pytest.raises(CompileError, match="in another way"):
        described(with_divisors(tmp_path / "n.gguf", llama3(8.0)[1][:7]))


def test_a_window_that_others_leave_out_bounds_the_context(tmp_path: Path) -> None:
    file = File().with_values(llama__attention__sliding_window=32)
    made = described(file.written(tmp_path / "m.gguf"))
    assert made.config["max_position_embeddings"] == 32
    assert "--context is at most 32 of 128" in made.notes[0]
    whole = described(File().with_values(llama__attention__sliding_window=128).written(tmp_path / "n.gguf"))
    assert (whole.config["max_position_embeddings"], len(whole.notes)) == (128, 1)


def test_beginning_and_ends_are_those_of_the_file(tmp_path: Path) -> None:
    file = File().with_values(
        tokenizer__ggml__bos_token_id=1, tokenizer__ggml__eos_token_id=2, tokenizer__ggml__eot_token_id=7
    )
    for made, expected in ((file, (1, (2, 7))), (File(), (None, ()))):
        folder = described(made.written(tmp_path / "m.gguf")).directory
        assert begin_and_ends(folder, read_configuration(folder / "config.json"), None) == expected


def test_the_same_file_makes_the_same_folder_and_mends_it(tmp_path: Path) -> None:
    path = File().written(tmp_path / "m.gguf")
    first = described(path).directory
    whole = (first / "config.json").read_bytes()
    (first / "config.json").write_bytes(whole[:5])
    assert described(path).directory == first
    assert (first / "config.json").read_bytes() == whole


def test_without_a_vocabulary_a_model_takes_ids(tmp_path: Path) -> None:
    for file in (File(), File().with_values(tokenizer__ggml__model="no_vocab")):
        made = described(file.written(tmp_path / "m.gguf"))
        assert "takes token ids alone" in made.notes[0]
        assert tokenizer_files(made.directory)[0].endswith("generation_config.json")


def vocabulary(kind: str, pre: str | None, tokens: Sequence[str], **more: Any) -> File:
    """The small file with a vocabulary; its first tokens are control tokens, if they look so."""
    special = [3 if token[0] + token[-1] == "<>" and len(token) > 1 else 1 for token in tokens]
    keys = {
        "tokenizer__ggml__model": kind,
        "tokenizer__ggml__pre": pre,
        "tokenizer__ggml__tokens": list(tokens),
    }
    keys |= {"tokenizer__ggml__token_type": special, "llama__vocab_size": len(tokens)}
    return File().with_values(**keys, **{f"tokenizer__ggml__{key}": value for key, value in more.items()})


def bpe(pre: str | None, extra: Sequence[str] = (), joins: Sequence[str] = (), **more: Any) -> File:
    """A byte-level vocabulary, with `extra` tokens and `joins` (merges) behind those of a small one."""
    model = json.loads(byte_level().to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].__getitem__), "<|im_start|>", *extra]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return vocabulary(
        "gpt2", pre, tokens, merges=[*merges, *joins], eos_token_id=tokens.index("<|im_start|>"), **more
    )


def sentencepiece(architecture: str, **more: Any) -> File:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    scores = [0.0] * 259 + [-float(number) for number in range(len(WORDS))]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    file = vocabulary("llama", "default", tokens, scores=scores, **ids | more)
    values = {key.replace("llama.", f"{architecture}.", 1): value for key, value in file.values.items()}
    values["general.architecture"] = architecture
    own = {"gemma3.attention.key_length": 256, "gemma3.attention.sliding_window": 8}
    if architecture == "gemma3":
        values = {key: value for key, value in values.items() if "rope.dimension" not in key} | own
    return File(values=values)


def read(path: Path) -> Tokenizer:
    folder = described(path).directory
    files = tokenizer_files(folder)
    size = read_configuration(folder / "config.json").vocab_size
    tokenizer, notes = read_tokenizer(folder, files, size)
    assert tokenizer is not None
    assert not notes
    return tokenizer


@pytest.mark.parametrize(
    "file",
    [
        bpe("gpt-2"),
        bpe("qwen2", bos_token_id=3, add_bos_token=True),
        bpe("llama-bpe", bos_token_id=3, add_bos_token=True),
        bpe("tekken", bos_token_id=3, add_bos_token=True),
        bpe("gpt-4o"),
        sentencepiece("llama"),
        sentencepiece("llama", add_bos_token=False),
        sentencepiece("gemma3", add_space_prefix=False),
        sentencepiece("phi3"),
    ],
    ids=["gpt-2", "qwen2", "llama-bpe", "tekken", "gpt-4o", "llama", "llama-no-bos", "gemma3", "phi3"],
)
def test_texts_become_the_tokens_that_transformers_makes(file: File, tmp_path: Path) -> None:
    path = file.written(tmp_path / "m.gguf")
    ours, theirs = read(path), AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_digits_stand_alone_where_the_vocabulary_was_made_so(tmp_path: Path) -> None:
    for pre, expected in (("gpt-2", ["01", "2", "3"]), ("smollm", ["0", "1", "2", "3"])):
        file = bpe(pre, extra=["01"], joins=["0 1"])
        assert read(file.written(tmp_path / f"{pre}.gguf")).encode("0123").tokens == expected


def test_a_space_is_put_before_a_text_as_the_file_says(tmp_path: Path) -> None:
    for architecture in ("llama", "phi3"):
        without = read(sentencepiece(architecture, add_space_prefix=False).written(tmp_path / "n.gguf"))
        tokens = without.encode("ok ok").tokens
        assert tokens == ["<s>", "ok", "▁ok"]
        assert without.decode(without.encode(" ok").ids) == " ok"
        before = read(sentencepiece(architecture, add_space_prefix=True).written(tmp_path / "y.gguf"))
        assert before.encode("ok").tokens == ["<s>", "▁ok"]


def test_tokens_of_other_characters_are_found_whole(tmp_path: Path) -> None:
    path = bpe("deepseek-r1-qwen", extra=["<｜User｜>", "<｜End｜>"]).written(tmp_path / "m.gguf")
    tokenizer = read(path)
    number = tokenizer.token_to_id("<｜User｜>")
    assert tokenizer.encode("<｜User｜>").ids == [number]
    assert tokenizer.encode("<｜End｜>").ids == [number + 1]


def test_a_word_that_is_a_token_stays_whole_in_llama_3(tmp_path: Path) -> None:
    """Though no merges lead to it: its vocabulary has such words."""
    for pre, count in (("llama-bpe", 1), ("gpt-2", 6)):
        tokenizer = read(bpe(pre, extra=["zzqqzz"]).written(tmp_path / f"{pre}.gguf"))
        assert len(tokenizer.encode("zzqqzz", add_special_tokens=False).ids) == count


def test_the_chat_template_goes_along(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    path = bpe("gpt-2").with_values(tokenizer__chat_template=template).written(tmp_path / "m.gguf")
    folder = described(path).directory
    assert (folder / "chat_template.jinja").read_text() == template
    names = [Path(name).name for name in tokenizer_files(folder)]
    assert names == [
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
    ]


@pytest.mark.parametrize(
    ("file", "code", "named"),
    [
        (bpe("brand-new"), "F145", "tokenizer.ggml.pre is 'brand-new'"),
        (bpe(None), "F145", "tokenizer.ggml.pre is None"),
        (bpe("gpt-2", bos_token_id=10**6), "F145", "bos_token_id is 1000000, outside"),
        (bpe("gpt-2").with_values(tokenizer__ggml__merges=["a b c"]), "F161", "vocabulary does not hold together"),
        (bpe("gpt-2").with_values(tokenizer__ggml__merges=["a 한"]), "F161", "vocabulary does not hold together"),
        (bpe("gpt-2").with_values(tokenizer__ggml__merges=[1]), "F161", "vocabulary does not hold together"),
        (bpe("gpt-2").with_values(tokenizer__ggml__tokens=["a", "a"]), "F161", "token_type is of"),
        (vocabulary("gpt2", "gpt-2", ["a", "a"]), "F161", "has a token twice"),
        (vocabulary("gpt2", "gpt-2", ["a", "b" * 2000]), "F161", "has one of 2000 characters"),
        (vocabulary("gpt2", "gpt-2", ["a", "b"]), "F161", "vocabulary does not hold together"),
        (vocabulary("bert", None, ["a", "b"]), "F145", "tokenizer.ggml.model is 'bert'"),
        (sentencepiece("gemma3", add_space_prefix=True), "F145", "add_space_prefix is true"),
        (sentencepiece("llama", remove_extra_whitespaces=True), "F145", "remove_extra_whitespaces"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_is_not_understood(file: File, code: str, named: str, tmp_path: Path) -> None:
    path = file.written(tmp_path / "m.gguf")
    with pytest.raises(CompileError) as caught:
        described(path)
    assert caught.value.code == code
    assert named in caught.value.message
    assert str(path) in caught.value.message
