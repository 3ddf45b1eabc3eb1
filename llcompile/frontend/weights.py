"""Which stored tensor each weight of the graph is: names, shapes and dtypes matched, misfits told at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from llcompile.frontend.canonical import rewriting as rw
from llcompile.frontend.checkpoint import StoredTensor, stored_dtype
from llcompile.ir.errors import CompileError
from llcompile.ir.model import WeightSource

_SHOWN = 5
_OUTPUT_TABLES = ("lm_head.weight", "embed_out.weight")
# What tensors beside or instead of "weight" are called by GPTQ, AWQ, bitsandbytes, MLX, FP8 and compressed-tensors.
_QUANTISED = (
    ".qweight", ".qzeros", ".g_idx", ".scales", ".absmax", ".quant_map", ".SCB", ".weight_packed", ".weight_scale",
    ".weight_scale_inv",
)  # fmt: skip


def _spellings(name: str, prefix: str) -> Iterator[str]:
    """A parameter's name in checkpoints: as it is; of the base model alone, or with its prefix; of a larger model
    whose language model this is (Gemma 3 with vision: both orders occur)."""
    yield name
    own = name.removeprefix(f"{prefix}.")
    yield own if own != name else f"{prefix}.{name}"
    yield f"language_model.{name}"
    yield f"{prefix}.language_model.{own}"


def choose_names(aliases: Iterable[Sequence[str]], prefix: str, stored: Mapping[str, str]) -> dict[str, str]:
    """The checkpoint's name of each parameter, by each of the names it has in the model (tied: several).

    `stored`: checkpoint names by the names the model knows them under; empty when there is no checkpoint. The
    first spelling that is stored wins; when none is, the parameter's first name.
    """
    chosen: dict[str, str] = {}
    for names in aliases:
        chosen.update(dict.fromkeys(names, first_stored(names, prefix, stored) or names[0]))
    return chosen


def first_stored(names: Sequence[str], prefix: str, stored: Mapping[str, str]) -> str | None:
    """The checkpoint's name of the first of a parameter's `names`, in any spelling, that is stored."""
    candidates = (spelling for name in names for spelling in _spellings(name, prefix))
    return next((stored[spelling] for spelling in candidates if spelling in stored), None)


def require_stored(
    shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor], folder: str
) -> None:
    """Check that the checkpoint holds every parameter, in its shape and a dtype that can be read.

    `shapes`: each parameter's shape by checkpoint name; `folder` names the checkpoint in errors. Raises
    CompileError F150 (missing), F151 (shape), F142 (dtype), F152 (any of these, and names as quantisers write them).
    """
    try:
        _require_names(shapes, stored, folder)
        _require_shapes(shapes, stored, folder)
        for name in shapes:
            stored_dtype(name, stored[name])
    except CompileError:
        quantised = min((name for name in stored if name.endswith(_QUANTISED)), default=None)
        if quantised is None:
            raise
        raise CompileError(
            "F152",
            f"{folder}: the checkpoint is quantised (it holds {quantised}, as GPTQ, AWQ and their kind write). Use the "
            "original one (F32, F16 or BF16) with --quant.",
        ) from None


def _require_names(shapes: Iterable[str], stored: Mapping[str, StoredTensor], folder: str) -> None:
    wanted = list(shapes)
    missing = [name for name in wanted if name not in stored]
    if not missing:
        return
    remedy = "Fetch it again, or correct config.json"
    if all(name.endswith(_OUTPUT_TABLES) for name in missing):
        remedy = (
            'If the output shares the embedding\'s table, write "tie_word_embeddings": true into config.json; else '
            "fetch the checkpoint again"
        )
    raise CompileError(
        "F150",
        f"{folder}: the checkpoint lacks {len(missing)} of {len(wanted)} weights: {_listed(missing)}. {remedy}.",
    )


def _require_shapes(
    shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor], folder: str
) -> None:
    misfits = [
        f"{name} is {list(stored[name].shape)}, config.json asks for {list(shape)}"
        for name, shape in shapes.items()
        if stored[name].shape != shape
    ]
    if misfits:
        raise CompileError(
            "F151", f"{folder}: {_listed(misfits)}. config.json and the weights are of different models."
        )


def weight_sources(
    model: ir.Model, stored: Mapping[str, StoredTensor] | None, deviation: float
) -> dict[str, WeightSource]:
    """A source for every weight input of a canonical graph; random ones when `stored` is None."""
    inputs = [v for v in model.graph.inputs if rw.is_weight(v)]
    if stored is None:
        return {str(v.name): _random(v, deviation) for v in inputs}
    return {str(v.name): _stored(v, stored[str(v.name)]) for v in inputs}


def _shape(value: ir.Value) -> tuple[int, ...]:
    return tuple(d for d in rw.dims(value) or () if isinstance(d, int))


def _stored(value: ir.Value, tensor: StoredTensor) -> WeightSource:
    name = str(value.name)
    return WeightSource(
        name=name,
        shape=_shape(value),
        dtype=stored_dtype(name, tensor),
        path=tensor.path,
        offset=tensor.offset,
        transpose=rw.TRANSPOSED in value.metadata_props,
        pairs=tensor.pairs,
        added=tensor.added,
    )


def _initial(value: ir.Value) -> str:
    """How an untrained model starts: norms at the identity, biases at zero, matrices normal."""
    use, index = next(iter((use.node, use.idx) for use in value.uses()))
    if len(_shape(value)) > 1:
        return "normal"
    if use.op_type in ("RMSNormalization", "LayerNormalization"):
        return "ones" if index == 1 else "zeros"
    scale_less_one = use.op_type == "Add" and any(rw.scalar(v) == 1.0 for v in use.inputs)
    bias = str(value.name).endswith("bias") or use.op_type == "Linear"
    return "zeros" if scale_less_one or bias else "ones"


def _random(value: ir.Value, deviation: float) -> WeightSource:
    return WeightSource(str(value.name), _shape(value), "f32", init=_initial(value), std=deviation)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
