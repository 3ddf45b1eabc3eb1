"""From what the user names, a directory or a hub id, to a local directory."""

from __future__ import annotations

import os
import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from llcompile.ir.errors import CompileError

_DESCRIPTION = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate(model: str, weights: bool) -> tuple[Path, str]:
    """(directory, name) of `model`; a hub id is fetched first, with its weights if `weights` says so.

    Raises CompileError F100 (no such directory) or F101 (hub).
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CompileError("F100", f"{path} holds no config.json: not a Hugging Face model directory.")
        return path.resolve(), path.resolve().name
    if path.exists():
        raise CompileError("F100", f"{path} is a file; a model is a directory with config.json, or a hub id.")
    if not _HUB_ID.fullmatch(model) or model.endswith((".git", ".safetensors", ".gguf")):
        raise CompileError("F100", f"{model}: no such directory, and not a hub id (owner/name).")
    return _fetch(model, _DESCRIPTION + (_WEIGHTS if weights else ())), model


def _fetch(model: str, patterns: tuple[str, ...]) -> Path:
    try:
        folder = Path(snapshot_download(model, allow_patterns=list(patterns)))
    except GatedRepoError:
        problem = "access to it is restricted. Ask for access on its page, then log in: hf auth login"
    except RepositoryNotFoundError:
        problem = "the hub has no such model, or it is private (log in: hf auth login)"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")
        cause = "HF_HUB_OFFLINE is set: unset it" if offline else "the hub cannot be reached: connect"
        problem = f"not in the local cache, and {cause}, or name a local directory"
    except HFValidationError:
        problem = "not a valid hub id (owner/name), and no such directory"
    except (HfHubHTTPError, OSError) as error:
        problem = f"fetching it failed ({type(error).__name__}). Try again, or name a local directory"
    else:
        if (folder / "config.json").is_file():
            return folder
        problem = "it holds no config.json"
    raise CompileError("F101", f"{model}: {problem}.")
