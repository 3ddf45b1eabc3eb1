"""The stage itself: from a Hugging Face directory, a GGUF file or a hub id to a Model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxsim
from transformers import PretrainedConfig

from llcompile.frontend.canonical import VERIFIER, canonical_passes
from llcompile.frontend.canonical import rewriting as rw
from llcompile.frontend.checkpoint import StoredTensor, read_checkpoint
from llcompile.frontend.configuration import read_configuration
from llcompile.frontend.ends import begin_and_ends
from llcompile.frontend.export import export_graph
from llcompile.frontend.from_gguf import describe, naming, require_all_used, stored_tensors
from llcompile.frontend.functions import local_functions
from llcompile.frontend.rotary import RotaryLimit
from llcompile.frontend.skeleton import (
    Skeleton,
    aliases,
    build_skeleton,
    parameter_shapes,
    stored_names,
    untie,
)
from llcompile.frontend.source import locate
from llcompile.frontend.tied import differing_copies
from llcompile.frontend.tokenizer import read_tokenizer, tokenizer_files
from llcompile.frontend.weights import choose_names, require_stored, weight_sources
from llcompile.gguf import Header, read_header
from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.ir.model import Model
from llcompile.passes import Observer, run_passes

_IR_VERSION = 10
_UNLIMITED_POSITIONS = 1 << 17


@dataclass(frozen=True)
class _Source:
    """What a Model is made of: the folder with config.json and tokenizer, the `stored` tensors by their names in a
    checkpoint (None: none are read), and of a GGUF file its `header`."""

    name: str
    directory: Path
    stored: Mapping[str, StoredTensor] | None
    header: Header | None = None
    notes: tuple[str, ...] = ()


def load_model(
    model: str, random_seed: int | None = None, observe: Observer[ir.Model] | None = None
) -> Model:
    """The model named `model`: a directory with config.json, safetensors and tokenizer files, a GGUF file, or a hub id.

    With `random_seed`, config.json alone is enough and no weight is read. `observe` is called after every
    pass. Raises CompileError: F10x source, F11x configuration, F12x and F13x a model that cannot be compiled,
    F14x files of the checkpoint, F15x weights that do not fit the configuration, F16x tokenizer.
    """
    path, name = locate(model, weights=random_seed is None)
    if path.is_file():
        return _load_gguf(path, name, random_seed, observe)
    stored = read_checkpoint(path) if random_seed is None else None
    return _load(_Source(name, path, stored), random_seed, observe)


def _load_gguf(path: Path, name: str, random_seed: int | None, observe: Observer[ir.Model] | None) -> Model:
    header = read_header(path)
    described = describe(header)
    stored = stored_tensors(header, described.config) if random_seed is None else None
    with naming(header, described):
        source = _Source(name, described.directory, stored, header, described.notes)
        return _load(source, random_seed, observe)


def _load(source: _Source, random_seed: int | None, observe: Observer[ir.Model] | None) -> Model:
    directory, stored = source.directory, source.stored
    config = read_configuration(directory / "config.json")
    files = tokenizer_files(directory)
    tokenizer, tokenizer_notes = read_tokenizer(directory, files, config.vocab_size)
    begin, ends = begin_and_ends(directory, config, tokenizer)
    built = build_skeleton(config)
    skeleton = built.model
    known = stored_names(skeleton, stored or ())
    notes = _untie_copies(built, known, stored or {})
    names = choose_names(aliases(skeleton), skeleton.base_model_prefix, known)
    if stored is not None:
        wanted = {names[own]: shape for own, shape in parameter_shapes(skeleton).items()}
        require_stored(wanted, stored, str(source.header.path if source.header else directory))
        if source.header:
            require_all_used(stored, wanted, type(skeleton).__name__)
    graph = _canonical_graph(built, config, names, observe)
    sources = weight_sources(graph, stored, float(getattr(config, "initializer_range", 0.02)))
    positions = _positions(config, built.rotary)
    return Model(
        name=source.name,
        architecture=type(skeleton).__name__,
        onnx=_serialize(graph),
        weights=sources,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        max_positions=positions.most,
        positions_reason=positions.reason,
        notes=source.notes + notes + tokenizer_notes,
        bos_token_id=begin,
        eos_token_ids=ends,
        tokenizer_files=files,
        tokenizer_bytes=sum(Path(path).stat().st_size for path in files if path.endswith("tokenizer.json")),
        random_seed=random_seed,
    )


def _canonical_graph(
    built: Skeleton, config: PretrainedConfig, names: Mapping[str, str], observe: Observer[ir.Model] | None
) -> ir.Model:
    """`names`: the checkpoint's name of each parameter."""
    graph = export_graph(built.model, built.mode)
    passes = canonical_passes({f"model.{own}": stored_name for own, stored_name in names.items()})
    graph = run_passes(graph, passes, VERIFIER, observe)
    _require_attention(graph, config, type(built.model).__name__)
    return graph


def _untie_copies(
    built: Skeleton, known: Mapping[str, str], stored: Mapping[str, StoredTensor]
) -> tuple[str, ...]:
    """Give tied parameters whose stored copies differ places of their own; what the user should know of it."""
    apart = differing_copies(aliases(built.model), built.model.base_model_prefix, known, stored)
    for name in apart:
        untie(built, name)
    return tuple(
        f"config.json ties {name} to {other} (tie_word_embeddings), but the checkpoint holds two that differ: each is "
        "used in its place, as transformers does"
        for name, other in apart.items()
    )


@dataclass(frozen=True)
class _Positions:
    """The `most` positions a text may have, and the `reason` where that is less than config.json says."""

    most: int
    reason: str = ""


def _positions(config: PretrainedConfig, rotary: RotaryLimit | None) -> _Positions:
    """Positions the model was made for; ALiBi has no limit of its own, and BLOOM calls it seq_length."""
    given = getattr(config, "max_position_embeddings", None) or getattr(config, "seq_length", None)
    most = int(given or _UNLIMITED_POSITIONS)
    if rotary is None or rotary.positions >= most:
        return _Positions(most)
    return _Positions(
        rotary.positions,
        f"its rotary embedding ({rotary.kind}) changes its frequencies beyond {rotary.positions} of the {most} "
        "positions in config.json, and would change those of all keys already cached",
    )


def _require_attention(graph: ir.Model, config: PretrainedConfig, architecture: str) -> None:
    """Every layer attends through the symbolic node, over the window that the configuration gives it."""
    windows = {
        n.attributes["layer"].as_int(): n.attributes["window"].as_int() for n in rw.nodes(graph, "Attention")
    }
    layers, count = config.num_hidden_layers, len(list(rw.nodes(graph, "Attention")))
    if sorted(windows) != list(range(layers)) or count != layers:
        raise CompileError(
            "F132",
            f"{architecture}: {count} attention nodes for {layers} layers; this architecture attends in a "
            "way that is not supported.",
        )
    for layer, kind in enumerate(getattr(config, "layer_types", None) or ()):
        expected = {"full_attention": 0, "sliding_attention": getattr(config, "sliding_window", None) or 0}
        if windows[layer] != expected.get(kind, -1):
            raise CompileError(
                "F133",
                f"{architecture}: layer {layer} is of type {kind}, but its attention has window "
                f"{windows[layer]} (0: all); this mask is not supported.",
            )


def _serialize(graph: ir.Model) -> bytes:
    """Checked, simplified, with bodies for the own operators; free of the exporter's notes."""
    _clear_notes(graph)
    proto = ir.to_proto(graph)
    proto.ir_version = _IR_VERSION
    proto.producer_name, proto.producer_version = "llcompile", ""
    proto.functions.extend(local_functions())
    try:
        simplified, _ = onnxsim.simplify(proto, check_n=0)
        onnx.checker.check_model(simplified, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise CompileError("F121", f"the exported graph is not valid ONNX: {error}", INTERNAL) from None
    del simplified.metadata_props[:]  # onnxsim's own settings
    return bytes(simplified.SerializeToString(deterministic=True))


def _clear_notes(graph: ir.Model) -> None:
    for holder in (graph, graph.graph, *graph.graph, *graph.graph.inputs, *graph.graph.initializers.values()):
        holder.metadata_props.clear()
    for node in graph.graph:
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
