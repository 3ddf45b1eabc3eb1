"""Packing a block's weights into its file: band by band, in bounded memory, on a few threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import lcm, prod
from pathlib import Path

import numpy as np

from llcompile.ir.errors import INTERNAL, CompileError
from llcompile.ir.graph import Block, Template
from llcompile.ir.model import WeightSource
from llcompile.ir.packing import Layout, LoweredTemplate, PackedParam
from llcompile.ir.shard import WeightCut
from llcompile.quantize.calibrate import Calibration
from llcompile.quantize.container import FileLayout, HashedFile, file_layout
from llcompile.quantize.feedback import ROWS, Factors
from llcompile.quantize.formats import Floats
from llcompile.quantize.layouts import Array, has_feedback, pack, unpack
from llcompile.quantize.reader import cut_shape, read_part, read_rows
from llrun.schema import FileEntry

# Weights read and packed at a time. Every intermediate of a band together stays below 24 bytes a weight.
BAND_ELEMENTS = 1 << 20
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Band:
    """Rows start..stop-1 of what is stored of a weight: the unit of work. `params`: the weight's stored tensors.
    `cut`: what of the weight they are. `factors`: by which it is rounded, if it is with error feedback."""

    source: WeightSource
    cut: WeightCut
    params: tuple[PackedParam, ...]
    start: int
    stop: int
    factors: Factors | None = None

    @property
    def elements(self) -> int:
        return (self.stop - self.start) * prod(cut_shape(self.source.shape, self.cut)[1:])


def write_block(
    path: Path,
    lowered: LoweredTemplate,
    template: Template,
    block: Block,
    weights: Mapping[str, WeightSource],
    seed: int = 0,
    progress: Advance | None = None,
    jobs: int = 1,
    calibration: Calibration | None = None,
    cuts: Sequence[WeightCut] | None = None,
) -> FileEntry:
    """Write the safetensors file of `block`, or of a piece of it, at `path` and return its size and sha256.

    Tensors are those of `lowered.params`, in their order (a weight's data before its scales), each on a page
    boundary. `seed` is that of random weights. `progress` is told of each band how many weights it packed.
    `jobs` threads work at once and share nothing: the bytes do not depend on their number. At most jobs + 1
    bands are in memory. `calibration`: matrices of fewer than 8 bits are rounded with error feedback. `template` is the
    whole block's; `cuts`: what each weight of a piece, whose `lowered` is, is of the block's weights. A piece's values
    are those of the whole weight. Raises CompileError Q101-Q107; nothing is left at `path` then.
    """
    layout = file_layout(lowered.params)
    cuts = [WeightCut(i) for i in range(len(template.weights))] if cuts is None else cuts
    sources = [(_source(template, block, weights, cut.weight), cut) for cut in cuts]
    bands = _bands(lowered.params, sources, partial(calibration.factors, block) if calibration else None)
    with HashedFile(path) as file:
        file.append(layout.header)
        for band, parts in _packed(bands, seed, jobs):
            _store(file, layout, band, parts)
            if progress:
                progress(band.elements)
        file.advance(layout.size_bytes)
        return file.result()


def dequantised(
    source: WeightSource, layout: Layout, seed: int = 0, factors: Factors | None = None
) -> Floats:
    """The whole tensor `source` as the kernels see it once packed, by `factors` if any: float32, the source's shape."""
    out = np.empty(source.shape, np.float32)
    for start, stop in _ranges(source.shape, layout, factors is not None):
        parts = pack(read_rows(source, start, stop, seed), layout, source.name, factors)
        out[start:stop] = unpack(parts, layout, (stop - start, *source.shape[1:]))
    return out


def _source(
    template: Template, block: Block, weights: Mapping[str, WeightSource], index: int
) -> WeightSource:
    name, expected = block.weights[index], template.weights[index].shape
    if name not in weights:
        raise CompileError("Q107", f"block {block.id} needs the tensor {name}, which the checkpoint lacks")
    if weights[name].shape != expected:
        raise CompileError(
            "Q107", f"tensor {name} has shape {weights[name].shape}, block {block.id} needs {expected}"
        )
    return weights[name]


def _bands(
    params: Sequence[PackedParam],
    sources: Sequence[tuple[WeightSource, WeightCut]],
    factors_of: Callable[[int], Factors | None] | None,
) -> Iterator[Band]:
    """The work in the order of the file; `factors_of`: those of a weight of the block, by its index."""
    done: set[int] = set()
    for param in params:
        if param.weight in done:
            continue
        done.add(param.weight)
        source, cut = sources[param.weight]
        mine = tuple(p for p in params if p.weight == param.weight)
        factors = factors_of(cut.weight) if factors_of and has_feedback(param.layout.format) else None
        rows = cut_shape(source.shape, cut)[0], *source.shape[1:]  # whole ones are read
        for start, stop in _ranges(rows, param.layout, factors is not None):
            yield Band(source, cut, mine, start, stop, factors)


def _ranges(shape: tuple[int, ...], layout: Layout, feedback: bool) -> Iterator[tuple[int, int]]:
    """Ranges of rows, whole tiles each, of about BAND_ELEMENTS weights; `feedback`: whole pieces of its rows, too."""
    unit = lcm(layout.tile_rows, ROWS) if feedback else layout.tile_rows
    step = max(1, BAND_ELEMENTS // max(1, prod(shape[1:]) * unit)) * unit
    for start in range(0, shape[0], step):
        yield start, min(shape[0], start + step)


def _packed(bands: Iterator[Band], seed: int, jobs: int) -> Iterator[tuple[Band, dict[str, Array]]]:
    """Pack `bands` on `jobs` threads; results in order, at most jobs + 1 at a time."""

    def work(band: Band) -> dict[str, Array]:
        rows = read_part(band.source, band.cut, band.start, band.stop, seed)
        columns = band.cut.ranges if band.cut.axis == 1 else None
        return pack(rows, band.params[0].layout, band.source.name, band.factors, columns)

    if jobs <= 1:
        yield from ((band, work(band)) for band in bands)
        return
    pending: deque[tuple[Band, Future[dict[str, Array]]]] = deque()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for band in bands:
                pending.append((band, pool.submit(work, band)))
                if len(pending) > jobs:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _store(file: HashedFile, layout: FileLayout, band: Band, parts: Mapping[str, Array]) -> None:
    """Write a band's part of each stored tensor: bands lie one after another in every one of them."""
    for param in band.params:
        array = parts[param.part]
        if array.dtype != np.dtype(param.dtype) or array.shape[1:] != param.shape[1:]:
            raise CompileError(
                "Q107",
                f"{param.name} is {param.dtype} {param.shape}, its weight {band.source.name} packs to "
                f"{array.dtype} {array.shape}",
                INTERNAL,
            )
        unit = param.layout.tile_rows if param.layout.kind == "tiled" else 1
        offset = layout.offsets[param.name] + band.start // unit * (array.nbytes // array.shape[0])
        data = array.data.cast("B")
        if param.part == "data":
            file.advance(offset)
            file.append(data)
        else:
            file.write_at(offset, data)
