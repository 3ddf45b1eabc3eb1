"""From the exporter's graph to the canonical one: passes over onnx_ir graphs, which they change in place."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from llcompile.frontend.canonical.activations import GaussianUnits
from llcompile.frontend.canonical.check import RequireCanonical
from llcompile.frontend.canonical.cleaning import DropNoOps, DropUnused, SequencesToSplits
from llcompile.frontend.canonical.constants import FoldConstants, StaticShapes, WeightsToInputs
from llcompile.frontend.canonical.matrices import GathersToEmbedding, ProductsToLinear, RowsToSequences
from llcompile.frontend.canonical.naming import OrderAndName
from llcompile.frontend.canonical.norms import RootMeanSquareNorms
from llcompile.frontend.canonical.properties import VERIFIER
from llcompile.frontend.canonical.rotary import RotaryEmbeddings
from llcompile.passes import Pass


def canonical_passes(names: Mapping[str, str]) -> tuple[Pass[ir.Model], ...]:
    """The passes in order. `names`: each weight's checkpoint name by the exporter's name."""
    return (
        WeightsToInputs(names),
        FoldConstants(),
        StaticShapes(),
        SequencesToSplits(),
        DropNoOps(),
        DropUnused(),
        ProductsToLinear(),
        GathersToEmbedding(),
        RowsToSequences(),
        RootMeanSquareNorms(),
        RotaryEmbeddings(),
        GaussianUnits(),
        DropNoOps(),
        DropUnused(),
        OrderAndName(),
        RequireCanonical(),
    )


__all__ = ["VERIFIER", "canonical_passes"]
