"""Builds one Relax function of a template: reads values, calls kernels, returns outputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from tvm import relax, tirx

from llcompile.ir.errors import CompileError
from llcompile.ir.graph import CacheSpec, Template
from llcompile.ir.packing import BITS, LoweredTemplate, PackedParam
from llcompile.lower.fuse import PRODUCTS
from llcompile.lower.kernels.isa import Isa
from llcompile.lower.kernels.vector import Expr, Extent
from llcompile.lower.onnx_graph import Node, OnnxGraph
from llcompile.lower.values import MAX_COST, Dim, Shape, Value, constant, loop_nest, stored
from llrun.schema import Precision, Shapes

QUANTISED = tuple(BITS)
INPUTS = "llcompile.inputs"  # attribute of a function: which arguments change from call to call
_CHEAP = 4


@dataclass
class Module:
    """The functions of one library; a kernel is compiled once however many templates call it."""

    builder: relax.BlockBuilder
    isa: Isa
    precision: Precision
    shapes: Shapes
    kernels: dict[Hashable, object] = field(default_factory=dict)

    def kernel(self, name: str, key: Hashable, make: Callable[[], tirx.PrimFunc]) -> object:
        """The kernel that `make` makes, the same for every call with the same `name` and `key`."""
        if (name, key) not in self.kernels:
            self.kernels[name, key] = self.builder.add_func(make(), name)
        return self.kernels[name, key]


class Emitter:
    """State while a template's function is built: values by ONNX name, packed weights, caches left to use.

    `function`: decode (n is 1), prefill (n tokens of one sequence) or batch (one token of each of n sequences).
    """

    def __init__(self, module: Module, template: Template, graph: OnnxGraph, function: str) -> None:
        self.module = module
        self.template = template
        self.graph = graph
        self.function = function
        self.n: Extent = 1 if function == "decode" else tirx.Var("n", "int64")
        self.values: dict[str, Value] = {name: constant(array) for name, array in graph.constants.items()}
        self.packed: dict[str, list[tuple[PackedParam, relax.Var]]] = {}
        self.caches: list[tuple[CacheSpec, list[relax.Var]]] = []
        self.slots: relax.Var | None = None
        self.position_ids: relax.Var | None = None

    @property
    def decode(self) -> bool:
        return isinstance(self.n, int)

    @property
    def mode(self) -> str:
        """For the names of kernels: a batch is computed by prefill's, but for attention."""
        return "decode" if self.decode else "prefill"

    def extent(self) -> Extent:
        """n for a kernel of its own: 1, or a fresh variable."""
        return 1 if self.decode else tirx.Var("n", "int64")

    def tensor_type(self, shape: Shape, dtype: str) -> relax.TensorType:
        return relax.TensorType([self.n if d == "n" else d for d in shape], dtype)

    def error(self, code: str, node: Node, reason: str) -> CompileError:
        where = f"operator {node.op} ({node.name or 'unnamed'}) of template {self.template.id}"
        return CompileError(code, f"{where}: {reason}")

    def value(self, name: str) -> Value:
        """The tensor `name`; one that is used often and costs much is put into memory first, unless it is inside
        a kernel (then the graph doesn't list it)."""
        value, readers = self.values[name], self.graph.readers.get(name, ())
        if readers and (value.cost > MAX_COST or (value.cost > _CHEAP and len(readers) > 1)):
            self.materialise(value)
        return value

    def quantises(self, name: str) -> bool:
        """Whether the tensor `name` is needed as int8 alone: only products with quantised weights read it."""
        readers = self.graph.readers.get(name, ())
        return self.module.precision.weights in QUANTISED and all(
            reader == (PRODUCTS, 0) for reader in readers
        )

    def materialise(self, value: Value) -> relax.Expr:
        """`value` in memory: where it is, where the same elements lie in the same order, or written by a kernel."""
        if value.source is None and (there := value.in_place()) is not None:
            shape = [self.n if d == "n" else d for d in value.shape]
            value.source = self.module.builder.emit(relax.op.reshape(there, shape))
        elif value.source is None:
            function, arguments = loop_nest(value, self.extent())
            kernel = self.module.builder.add_func(function, f"{self.template.id}_fused_{self.mode}")
            value.source = self.emit(kernel, arguments, [(value.shape, value.dtype)])[0]
        return value.source

    def call(
        self,
        name: str,
        key: Hashable,
        make: Callable[[], tirx.PrimFunc],
        arguments: Sequence[relax.Expr],
        outputs: Sequence[tuple[Shape, str]],
    ) -> list[relax.Expr]:
        """Call the kernel `make` makes, whose outputs are its last arguments."""
        return self.emit(self.module.kernel(f"{name}_{self.mode}", key, make), arguments, outputs)

    def emit(
        self, kernel: object, arguments: Sequence[relax.Expr], outputs: Sequence[tuple[Shape, str]]
    ) -> list[relax.Expr]:
        types = [self.tensor_type(shape, dtype) for shape, dtype in outputs]
        result = self.module.builder.emit(
            relax.call_tir(kernel, list(arguments), types if len(types) > 1 else types[0])
        )
        if len(types) == 1:
            return [result]
        return [self.module.builder.emit(relax.TupleGetItem(result, i)) for i in range(len(types))]

    def rows(self, shape: Shape, n: Extent) -> tuple[Expr | int, tuple[Expr | int, ...]]:
        """Number of rows (all dimensions but the last) and the shape, for a kernel with new tokens `n`."""
        dims = tuple(n if d == "n" else d for d in shape)
        fixed = prod(d for d in shape[:-1] if isinstance(d, int))
        return (fixed if self.decode or "n" not in shape else n * fixed), dims


OpEmitter = Callable[[Emitter, Node], list[Value]]


def emit_function(
    module: Module,
    template: Template,
    lowered: LoweredTemplate,
    graph: OnnxGraph,
    operators: Mapping[str, OpEmitter],
    function: str,
) -> None:
    """Add `<template>_<function>` to the module."""
    emitter = Emitter(module, template, graph, function)
    inputs = _bind_inputs(emitter)
    arguments = [*inputs, *_bind_params(emitter, lowered), *_bind_caches(emitter, lowered)]
    changing = [*inputs] if emitter.slots is None else [*inputs, emitter.slots]
    builder, refused = module.builder, None
    attributes = {INPUTS: [i for i, argument in enumerate(arguments) if argument in changing]}
    with builder.function(f"{template.id}_{function}", arguments, attributes):
        returned: list[relax.Expr] = []
        with builder.dataflow():
            # Raised once the function is closed: the builder complains on stderr about one that is left open.
            try:
                returned = [builder.emit_output(result) for result in _emit_nodes(emitter, graph, operators)]
            except CompileError as error:
                refused = error
        builder.emit_func_output(returned[0] if len(returned) == 1 else relax.Tuple(returned))
    if refused:
        raise refused


def _emit_nodes(emitter: Emitter, graph: OnnxGraph, operators: Mapping[str, OpEmitter]) -> list[relax.Expr]:
    """Run every operator's emitter; the outputs in memory."""
    for node in graph.nodes:
        if node.op not in operators:
            raise emitter.error("L110", node, "this operator cannot be compiled")
        emitter.values.update(zip(node.outputs, operators[node.op](emitter, node), strict=False))
    return [emitter.materialise(emitter.values[output.name]) for output in emitter.template.outputs]


def _bind_inputs(emitter: Emitter) -> list[relax.Var]:
    variables = []
    for spec in emitter.template.inputs:
        shape: tuple[Dim, ...] = spec.shape
        variable = relax.Var(spec.name, emitter.tensor_type(shape, spec.dtype))
        emitter.values[spec.name] = stored(shape, spec.dtype, variable)
        if spec.name == "position_ids":
            emitter.position_ids = variable
        variables.append(variable)
    return variables


def _bind_params(emitter: Emitter, lowered: LoweredTemplate) -> list[relax.Var]:
    variables = []
    for param in lowered.params:
        weight = emitter.template.weights[param.weight]
        variable = relax.Var(param.name, relax.TensorType(list(param.shape), param.dtype))
        emitter.packed.setdefault(weight.name, []).append((param, variable))
        if weight.role == "plain":
            emitter.values[weight.name] = stored(weight.shape, "float32", variable)
        variables.append(variable)
    return variables


def _bind_caches(emitter: Emitter, lowered: LoweredTemplate) -> list[relax.Var]:
    """The slots' and the caches' arguments; `capacity`, the number of slots, is known at run time alone."""
    if not lowered.caches:
        return []
    capacity = tirx.Var("capacity", "int64")
    types = [relax.TensorType([capacity, *shape], dtype) for dtype, shape in lowered.caches]
    variables = [relax.Var(f"cache{i}", kind) for i, kind in enumerate(types)]
    each = len(variables) // len(emitter.template.caches)
    groups = [variables[i : i + each] for i in range(0, len(variables), each)]
    emitter.caches = list(zip(emitter.template.caches, groups, strict=True))
    sequences = emitter.n if emitter.function == "batch" else 1
    emitter.slots = relax.Var("slots", relax.TensorType([sequences], "int64"))
    return [emitter.slots, *variables]
