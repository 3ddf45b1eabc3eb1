"""Products with packed weights and what follows them element by element (fuse.Product), as kernel calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tvm import relax, tirx

from llcompile.ir.packing import GROUP, pad
from llcompile.lower.emitter import QUANTISED, Emitter, OpEmitter
from llcompile.lower.fuse import PRODUCTS, Product
from llcompile.lower.kernels.linear import Finish, Output, Spec, products
from llcompile.lower.kernels.quantise import quantise
from llcompile.lower.kernels.vector import Expr, Extent, add, is_product, rounded
from llcompile.lower.onnx_graph import Node
from llcompile.lower.operators.elementwise import ELEMENTWISE, pointwise
from llcompile.lower.values import Index, Loads, Shape, Value, quantised, stored


@dataclass(frozen=True)
class _Plan:
    """A product as it is computed: `rows` of its matrices; `result`: an expression of their sums and of `operands`,
    values by where they are in memory; None: the sums themselves. `quantised`: written in int8."""

    product: Product
    form: str
    rows: int
    result: Value | None
    operands: Mapping[relax.Expr, Value]
    quantised: bool

    @property
    def kind(self) -> tuple[str, int, bool]:
        """Tasks of products of the same kind take the same time."""
        return self.form, len(self.product.linears), self.quantised


def weight_of(emitter: Emitter, node: Node, name: str) -> tuple[tuple[int, ...], list[relax.Var], str]:
    """Shape of weight `name`, its packed tensors, and their format."""
    if name not in emitter.packed:
        raise emitter.error("L115", node, f"{name!r} is not a weight of the template")
    entries = emitter.packed[name]
    shape = emitter.template.weights[entries[0][0].weight].shape
    return shape, [variable for _, variable in entries], entries[0][0].layout.format


def quantised_types(columns: int) -> list[tuple[Shape, str]]:
    """Shapes and types of a tensor (1, n, columns) in int8: codes, scales and totals."""
    groups = pad(columns, GROUP) // GROUP
    return [(("n", groups, GROUP), "int8"), (("n", groups), "float32"), (("n", groups), "int32")]


def _products(emitter: Emitter, node: Node) -> list[Value]:
    """One kernel for all products of a kind."""
    wanted: tuple[Product, ...] = node.attributes["products"]
    x = emitter.value(node.inputs[0])
    plans = [plan for product in wanted for plan in _plans(emitter, product)]
    for kind in dict.fromkeys(plan.kind for plan in plans):
        _call(emitter, x, [plan for plan in plans if plan.kind == kind])
    for product in wanted:
        if product.output not in emitter.values:
            _evaluate(emitter, product.then)
    return [emitter.values[product.output] for product in wanted]


def _evaluate(emitter: Emitter, nodes: Sequence[Node]) -> None:
    for node in nodes:
        emitter.values[node.outputs[0]] = ELEMENTWISE[node.op](emitter, node)[0]


def _plans(emitter: Emitter, product: Product) -> list[_Plan]:
    """The product with all that follows; each sum alone where that has another shape, or the matrices other formats."""
    alike = len({weight_of(emitter, linear, linear.inputs[1])[2] for linear in product.linears}) == 1
    plan = _plan(emitter, product) if alike else None
    if plan and (
        plan.result is None or (plan.result.shape, plan.result.dtype) == ((1, "n", plan.rows), "float32")
    ):
        return [plan]
    return [_plan(emitter, Product((linear,), (), linear.outputs[0])) for linear in product.linears]


def _plan(emitter: Emitter, product: Product) -> _Plan:
    linears, then = product.linears, product.then
    (rows, _), _, form = weight_of(emitter, linears[0], linears[0].inputs[1])
    in_int8 = rows % GROUP == 0 and emitter.quantises(product.output)
    biases = [name for name in map(_bias, linears) if name]
    if not then and not biases:
        return _Plan(product, form, rows, None, {}, in_int8)
    inside = {node.outputs[0] for node in (*linears, *then)}
    read = [name for node in then for name in node.inputs if name]
    operands = {}
    for name in dict.fromkeys(name for name in [*biases, *read] if name not in inside):
        value = emitter.value(name)
        if value.constant is None or value.constant.size != 1:
            operands[emitter.materialise(value)] = value
    known = dict(emitter.values)
    emitter.values |= {linear.outputs[0]: _sum(emitter, linear, rows) for linear in linears}
    for node in then:
        _evaluate(emitter, [node])
        if read.count(node.outputs[0]) > 1:
            emitter.values[node.outputs[0]] = _once(node.outputs[0], emitter.values[node.outputs[0]])
    result, emitter.values = emitter.values[product.output], known
    return _Plan(product, form, rows, result, operands, in_int8)


def _bias(linear: Node) -> str:
    return linear.inputs[2] if len(linear.inputs) > 2 else ""


def _sum(emitter: Emitter, linear: Node, rows: int) -> Value:
    """What the kernel has just summed, with the bias."""
    name, bias = linear.outputs[0], _bias(linear)
    value = Value((1, "n", rows), "float32", lambda loads, index: loads.sums[name])
    if not bias:
        return value
    terms = [value, emitter.value(bias)]
    return _once(name, pointwise(emitter, linear, terms, "float32", 0, add))


def _once(name: str, value: Value) -> Value:
    """The same tensor; an element that is used several times is computed once."""

    def element(loads: Loads, index: Index) -> Expr:
        return loads.once(name, lambda: _whole(value.at(loads, index)))

    return Value(value.shape, value.dtype, element)


def _whole(x: Expr) -> Expr:
    """x, of which a part can't be taken once it has a name: a product is rounded for all that read it."""
    return rounded(x) if is_product(x) else x


def _call(emitter: Emitter, x: Value, plans: Sequence[_Plan]) -> None:
    """Call the kernel of `plans`; their results become values."""
    linears = [linear for plan in plans for linear in plan.product.linears]
    weights = [weight_of(emitter, linear, linear.inputs[1]) for linear in linears]
    (_, columns), _, form = weights[0]
    rows = tuple(shape[0] for shape, *_ in weights)
    if x.shape != (1, "n", columns):
        raise emitter.error("L111", linears[0], f"input {x.shape} does not fit weight {(rows[0], columns)}")
    spec = Spec(emitter.module.isa, form, emitter.extent(), columns, rows)
    types = [
        quantised_types(plan.rows) if plan.quantised else [((1, "n", plan.rows), "float32")] for plan in plans
    ]
    operands = {source: value for plan in plans for source, value in plan.operands.items()}
    function = _kernel(spec, plans, operands)
    arguments = [*_input(emitter, x, form), *(part for _, parts, _ in weights for part in parts), *operands]
    kernel = emitter.module.builder.add_func(function, _name(spec, plans, emitter.mode))
    made = iter(emitter.emit(kernel, arguments, [kind for group in types for kind in group]))
    for plan, group in zip(plans, types, strict=True):
        parts = tuple(next(made) for _ in group)
        shape: Shape = (1, "n", plan.rows)
        value = quantised(shape, parts) if plan.quantised else stored(shape, "float32", parts[0])
        emitter.values[plan.product.output] = value


def _kernel(spec: Spec, plans: Sequence[_Plan], operands: Mapping[relax.Expr, Value]) -> tirx.PrimFunc:
    extents = Loads(spec.n).extents
    shapes = [(extents(value.shape), value.dtype) for value in operands.values()]

    def outputs(buffers: Sequence[tirx.Buffer]) -> list[Output]:
        read, first, made = dict(zip(operands, buffers, strict=True)), 0, []
        for plan in plans:
            numbers = tuple(range(first, first + len(plan.product.linears)))
            made.append(Output(numbers, plan.rows, _finish(plan, spec.n, read), plan.quantised))
            first += len(numbers)
        return made

    return products(spec, shapes, outputs)


def _finish(plan: _Plan, n: Extent, buffers: Mapping[relax.Expr, tirx.Buffer]) -> Finish | None:
    result, names = plan.result, [linear.outputs[0] for linear in plan.product.linears]
    if result is None:
        return None

    def finish(sums: Sequence[Expr], token: Expr, row: Expr) -> Expr:
        loads = Loads(n, dict(zip(names, sums, strict=True)))
        loads.buffers.update(buffers)
        return result.at(loads, [tirx.const(0, "int64"), token, row])

    return finish


def _name(spec: Spec, plans: Sequence[_Plan], mode: str) -> str:
    parts = ["linear", spec.form, *map(str, spec.rows), "by", str(spec.columns)]
    for plan in plans:
        parts += [node.op.lower() for node in plan.product.then] + ["q"] * plan.quantised
    return "_".join([*parts, mode])


def _input(emitter: Emitter, value: Value, form: str) -> list[relax.Expr]:
    """What a product reads. Activations in int8 are made once for all products that read them."""
    if form not in QUANTISED:
        return [emitter.materialise(value)]
    if not value.quantised:
        columns = value.shape[-1]
        assert isinstance(columns, int)
        make = partial(quantise, emitter.extent(), columns)
        source = emitter.materialise(value)
        made = emitter.call(f"quantise_{columns}", None, make, [source], quantised_types(columns))
        value.quantised = tuple(made)
    return list(value.quantised)


LINEAR: Mapping[str, OpEmitter] = {PRODUCTS: _products}
