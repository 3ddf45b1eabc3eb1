"""A model's blocks in float32, in order, on a few sequences of tokens: what calibration looks at.

An operator runs on one sequence at a time. A product with a weight matrix runs on the
rows of all sequences together, so that the matrix is read once, and band by band, so that it is never whole in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from llcompile.ir.graph import Block, Graph, WeightParam
from llcompile.ir.model import WeightSource
from llcompile.quantize.layouts import unfit
from llcompile.quantize.operators import Array
from llcompile.quantize.program import Program, Step, program
from llcompile.quantize.reader import Floats, read_rows

Ids = npt.NDArray[np.int64]
Tensor = list[Array]  # a tensor of the graph: an array for each sequence
# Weights read at a time, 4 MB as float32; or so many rows, below which a product gets slow.
_BAND_ELEMENTS, _BAND_ROWS = 1 << 20, 128


class ProductObserver(Protocol):
    """Is told of every product with a weight matrix, before it is done.

    `tensor`: the name within the block's template of what is multiplied; `weight`: the matrix's index in the block;
    `rows`: float32 (tokens of all sequences, K).
    """

    def __call__(self, block: Block, tensor: str, weight: int, rows: Floats, /) -> None: ...


class Watcher(Protocol):
    """Is told of the keys and values that an attention node adds to its cache: (1, Hkv, n, d) for each sequence."""

    def __call__(self, block: Block, keys: Tensor, values: Tensor, /) -> None: ...


@dataclass(frozen=True)
class Walk:
    """How to walk over `graph` with `weights`. `progress` is told how many weights each band of a matrix held.
    `watch` is told of what is cached, layer by layer. `change`: what a matrix of the checkpoint, by its name, is taken
    for, some rows at a time.

    What neither a tensor in `wanted` nor any product reads is not computed. Raises CompileError Q101-Q104.
    """

    graph: Graph
    weights: Mapping[str, WeightSource]
    observe: ProductObserver
    progress: Callable[[int], None]
    pool: ThreadPoolExecutor
    wanted: Collection[str] = ()
    watch: Watcher | None = None
    change: Callable[[str, Floats], Floats] | None = None

    def run(self, sequences: Sequence[Ids]) -> dict[str, Tensor]:
        """The wanted tensors for `sequences` of token ids, int64 (n,) each."""
        tensors: dict[str, Tensor] = {
            "input_ids": [ids[None] for ids in sequences],
            "position_ids": [np.arange(len(ids))[None] for ids in sequences],
        }
        positions = self.graph.positions
        if positions is not None:
            names = [spec.name for spec in positions.outputs]
            inputs = {spec.name: tensors[spec.name] for spec in positions.inputs}
            tensors |= self._run_program(program(positions, names), inputs, None)
        steps = list(zip(self.graph.blocks, self._programs(), strict=True))
        last = {name: block.id for block, todo in steps for name in self._reads(block, todo)}
        for block, todo in steps:
            alive = {name for name in (*tensors, *block.outputs) if last.get(name, -1) > block.id}
            self._run_block(block, todo, alive.union(self.wanted), tensors)
        return tensors

    def _programs(self) -> list[Program]:
        """What must run of each block for what is wanted and for the inputs of products in it and behind it."""
        needed, found = set(self.wanted), list[Program]()
        known: dict[tuple[str, tuple[str, ...]], Program] = {}
        for block in reversed(self.graph.blocks):
            template = self.graph.templates[block.template]
            pairs = zip(template.outputs, block.outputs, strict=True)
            key = template.id, tuple(spec.name for spec, name in pairs if name in needed)
            if key not in known:
                known[key] = program(template, key[1])
            needed |= self._reads(block, known[key])
            found.append(known[key])
        return found[::-1]

    def _reads(self, block: Block, todo: Program) -> set[str]:
        """The tensors of the graph that `todo`, of `block`, needs."""
        pairs = zip(self.graph.templates[block.template].inputs, block.inputs, strict=True)
        return {name for spec, name in pairs if spec.name in todo.reads}

    def _run_block(
        self, block: Block, todo: Program, alive: Collection[str], tensors: dict[str, Tensor]
    ) -> None:
        """Replace in `tensors` what only `block` reads by what it makes: those in `alive`."""
        template = self.graph.templates[block.template]
        pairs = zip(template.inputs, block.inputs, strict=True)
        inputs = {spec.name: tensors[name] for spec, name in pairs if name in tensors}
        for name in tensors.keys() - alive:
            del tensors[name]
        made = self._run_program(todo, inputs, block)
        outputs = zip(template.outputs, block.outputs, strict=True)
        tensors |= {name: made[spec.name] for spec, name in outputs if name in alive}

    def _run_program(
        self, todo: Program, values: dict[str, Tensor], block: Block | None
    ) -> dict[str, Tensor]:
        """Turn `values`, a template's inputs, into what `todo` leaves; `block`: whose weights, None without any."""
        count = len(next(iter(values.values())))
        values |= {name: [array] * count for name, array in todo.constants.items()}
        for param, name in self._weights_of(block):
            if param.role == "plain":
                values[param.name] = [finite_rows(self.weights[name], 0, param.shape[0])] * count
        for step in todo.steps:
            if step.name == "Attention" and block is not None and self.watch is not None:
                self.watch(block, values[step.inputs[1]], values[step.inputs[2]])
            if block is None or step.function is not None:
                made = self._evaluate(step, values)
            elif step.name == "Linear":
                made = self._linear(step, values, block)
            else:
                made = self._embedding(step, values, block)
            values |= dict(zip(step.outputs, made, strict=False))
            for name in step.spent & values.keys():
                del values[name]
        return values

    def _weights_of(self, block: Block | None) -> Iterable[tuple[WeightParam, str]]:
        if block is None:
            return ()
        return zip(self.graph.templates[block.template].weights, block.weights, strict=True)

    def _evaluate(self, step: Step, values: Mapping[str, Tensor]) -> list[Tensor]:
        """All outputs of a node that reads no matrix."""

        def outputs_of(sequence: int) -> Sequence[Array]:
            assert step.function is not None
            return step.function([values[name][sequence] if name else None for name in step.inputs])

        sequences = range(len(next(iter(values.values()))))
        return [list(output) for output in zip(*self.pool.map(outputs_of, sequences), strict=True)]

    def _linear(self, step: Step, values: Mapping[str, Tensor], block: Block) -> list[Tensor]:
        """The product with a weight matrix; nothing when only its input is of interest."""
        params = [param.name for param, _ in self._weights_of(block)]
        index = params.index(step.inputs[1])
        source = self.weights[block.weights[index]]
        parts = values[step.inputs[0]]
        rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])
        self.observe(block, step.inputs[0], index, rows)
        outputs, columns = source.shape
        if not step.computed:
            self.progress(outputs * columns)
            return []
        made = np.empty((len(rows), outputs), np.float32)
        height = max(_BAND_ROWS, _BAND_ELEMENTS // columns)

        def multiply(start: int) -> int:
            band = finite_rows(source, start, min(outputs, start + height))
            if self.change:
                band = self.change(block.weights[index], band)
            np.matmul(rows, band.T, out=made[:, start : start + len(band)])
            return band.size

        for count in self.pool.map(multiply, range(0, outputs, height)):
            self.progress(count)
        if len(step.inputs) > 2:
            made += values[step.inputs[2]][0]
        ends = np.cumsum([part.shape[1] for part in parts])[:-1]
        return [[part[None] for part in np.split(made, ends)]]

    def _embedding(self, step: Step, values: Mapping[str, Tensor], block: Block) -> list[Tensor]:
        """Rows of a table, of which no more is read."""
        params = [param.name for param, _ in self._weights_of(block)]
        source = self.weights[block.weights[params.index(step.inputs[0])]]
        used = np.unique(np.concatenate([ids.ravel() for ids in values[step.inputs[1]]]))
        table = np.concatenate([finite_rows(source, int(row), int(row) + 1) for row in used])
        return [[table[np.searchsorted(used, ids)] for ids in values[step.inputs[1]]]]


def finite_rows(source: WeightSource, start: int, stop: int) -> Floats:
    """Rows of a weight. Raises CompileError Q104 when they are not finite, before that can be taken for an overflow."""
    rows = read_rows(source, start, stop)
    if not np.isfinite(rows).all():
        raise unfit(rows, "f32", source.name)
    return rows
