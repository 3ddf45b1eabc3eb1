"""From what the user names, a directory, a GGUF file or a hub id, to what is there of it locally."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
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

from llcompile.gguf import is_gguf
from llcompile.ir.errors import CompileError

_DESCRIPTION = (
    "config.json",
    "adapter_config.json",
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
    """(directory, name) of `model`; a hub id is fetched first, with its weights if `weights` says so. For a GGUF file,
    (the file, its name).

    Raises CompileError F100 (no such directory), F101 (hub), F102 (a LoRA adapter) or F103 (a link that leads out of
    the directory).
    """
    path = Path(model).expanduser()
    if path.is_dir():
        directory, name = path.resolve(), path.resolve().name
        _require_no_adapter(directory)
        if not (directory / "config.json").is_file():
            raise CompileError("F100", f"{path} holds no config.json: {_what_it_is(path)}.")
    elif path.is_file() and is_gguf(path):
        return path.resolve(), path.resolve().stem
    elif path.exists():
        raise CompileError(
            "F100",
            f"{path} is a file and no GGUF file; a model is a directory with config.json, a GGUF file, or a hub id.",
        )
    elif not _HUB_ID.fullmatch(model) or model.endswith((".git", ".safetensors", ".gguf")):
        raise CompileError("F100", f"{model}: no such directory or file, and not a hub id (owner/name).")
    else:
        directory, name = _fetch(model, _DESCRIPTION + (_WEIGHTS if weights else ())), model
    _require_inside(directory)
    return directory, name


def _what_it_is(path: Path) -> str:
    """What a directory without config.json is, and what to name instead where that can be told."""
    snapshots = sorted(config.parent.name for config in path.glob("snapshots/*/config.json"))
    files = sorted(file.name for file in path.glob("*.gguf"))
    if files:
        return f"it holds GGUF files. Name one of them: {path / files[0]}"
    if not snapshots:
        return "not a Hugging Face model directory"
    reference = path / "refs" / "main"
    main = reference.read_text(errors="replace").strip() if reference.is_file() else ""
    chosen = main if main in snapshots else snapshots[-1]
    return f"it is a folder of the hub's cache. Use the snapshot in it: {path / 'snapshots' / chosen}"


def _require_no_adapter(directory: Path) -> None:
    if (directory / "adapter_config.json").is_file():
        raise CompileError(
            "F102",
            f"{directory} holds a LoRA adapter (adapter_config.json), which changes another model's weights. Merge it "
            "first (peft: merge_and_unload(), then save_pretrained(FOLDER)) and name that folder; if it is merged "
            "already, take adapter_config.json out.",
        )


def _require_inside(directory: Path) -> None:
    """No file that may be read is a link out of `directory`, or from a hub snapshot to elsewhere than its blobs."""
    roots = [os.path.realpath(directory)]
    if Path(roots[0]).parent.name == "snapshots":
        roots.append(os.path.join(os.path.dirname(os.path.dirname(roots[0])), "blobs"))
    for name in sorted(os.listdir(directory)):
        target = os.path.realpath(directory / name)
        read = any(fnmatchcase(name, pattern) for pattern in (*_DESCRIPTION, "*.safetensors*"))
        if read and not any(target.startswith(root + os.sep) for root in roots):
            raise CompileError(
                "F103",
                f"{directory / name} is a link to {target}, outside the model's folder, and is not read. Copy the file "
                "into the folder.",
            )


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
        _require_no_adapter(folder)
        if (folder / "config.json").is_file():
            return folder
        problem = "it holds no config.json"
    raise CompileError("F101", f"{model}: {problem}.")
