"""A user's text as token ids, to calibrate 4-bit weights on."""

from __future__ import annotations

from pathlib import Path

from llcompile.frontend.tokenizer import open_tokenizer
from llcompile.ir.errors import CompileError
from llcompile.ir.model import Model

# What is read of a file, characters: some 16 for each token that calibration takes.
_LARGEST = 1 << 15
_LEAST_TOKENS = 128
_REMEDY = "fetch it again, or use --calibrate random"


def read_text(path: Path) -> str:
    """The beginning of a UTF-8 file. Raises CompileError F160 when it cannot be read or is none."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_LARGEST)
    except OSError as error:
        problem = f"cannot be read ({error.strerror}). --calibrate takes random, none or a text file"
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (byte {error.start}). Convert it, or use --calibrate random"
    raise CompileError("F160", f"{path} {problem}.")


def text_ids(text: str, model: Model, most: int) -> list[int]:
    """The first token ids of `text`, at most `most`, by the model's tokenizer as prompts are read.

    Raises CompileError F161 without a tokenizer that can be read, F162 for a text of fewer than 128 tokens, F163 for
    a tokenizer of another model.
    """
    files = [path for path in model.tokenizer_files if path.endswith("tokenizer.json")]
    if not files:
        raise CompileError(
            "F161",
            f"{model.name} has no tokenizer, so no text can be calibrated on; use --calibrate random",
        )
    ids: list[int] = open_tokenizer(files[0], _REMEDY).encode(text).ids[:most]
    if len(ids) < _LEAST_TOKENS:
        raise CompileError(
            "F162",
            f"the text to calibrate on is {len(ids)} tokens long, {_LEAST_TOKENS} are needed; {most} are used. "
            "Give more text, or use --calibrate random",
        )
    if max(ids) >= model.vocab_size:
        raise CompileError(
            "F163",
            f"{files[0]} makes token id {max(ids)} of the text, {model.name} has {model.vocab_size}: it belongs "
            "to another model; use --calibrate random",
        )
    return ids
