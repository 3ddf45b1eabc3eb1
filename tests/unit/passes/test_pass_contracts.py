"""The order, the checks and the contracts of passes, on a toy; and that every predicate of the stages can say no."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import onnx_ir as ir
import pytest

from llcompile import graph
from llcompile.dataflow.nodes import Dataflow, read_dataflow
from llcompile.frontend.canonical import VERIFIER, canonical_passes
from llcompile.frontend.canonical import rewriting as rw
from llcompile.graph.simplify import VERIFIER as DATAFLOW_VERIFIER
from llcompile.ir.errors import INTERNAL, USAGE, CompileError
from llcompile.passes import Pass, Verifier, run_alone, run_passes
from tests.golden.frontend_graphs import CASES, build, raw_parameters
from tests.unit.graph.synthetic import decoder

Letters = tuple[str, ...]
FRONTEND = {step.name: step for step in canonical_passes({})}


@dataclass(frozen=True)
class Sort:
    name: ClassVar[str] = "sort"
    requires: ClassVar[frozenset[str]] = frozenset()
    ensures: ClassVar[frozenset[str]] = frozenset({"sorted"})

    def run(self, value: Letters) -> Letters:
        return tuple(sorted(value))


@dataclass(frozen=True)
class Double:
    """Ensures what it has no hand in: that the letters are still sorted when each is there twice."""

    broken: bool = False
    name: ClassVar[str] = "double"
    requires: ClassVar[frozenset[str]] = frozenset({"sorted"})
    ensures: ClassVar[frozenset[str]] = frozenset()

    def run(self, value: Letters) -> Letters:
        return value + value if self.broken else tuple(letter for letter in value for _ in range(2))


def out_of_order(value: Letters) -> Iterator[str]:
    yield from (f"{a} before {b}" for a, b in pairwise(value) if a > b)


def capitals(value: Letters) -> Iterator[str]:
    yield from (f"{letter} is a capital" for letter in value if letter.isupper())


TOY = Verifier(capitals, {"sorted": out_of_order})


def fault_of(run: Callable[[], object], code: str, exit_code: int = INTERNAL) -> str:
    with pytest.raises(CompileError) as caught:
        run()
    assert (caught.value.code, caught.value.exit_code) == (code, exit_code)
    return caught.value.message


def test_passes_run_in_order_and_are_seen() -> None:
    seen: list[tuple[str, Letters]] = []
    result = run_passes(
        ("b", "a"), [Sort(), Double()], TOY, lambda name, value, _: seen.append((name, value))
    )
    assert result == ("a", "a", "b", "b")
    assert seen == [("input", ("b", "a")), ("sort", ("a", "b")), ("double", result)]


def test_a_pass_before_what_it_requires() -> None:
    steps: list[Pass[Letters]] = [Double(), Sort()]
    assert fault_of(lambda: run_passes(("a",), steps, TOY), "E111") == "pass double requires sorted"
    assert run_passes(("a",), steps, TOY, given=frozenset({"sorted"})) == ("a", "a")


def test_a_property_that_a_later_pass_breaks_names_both() -> None:
    steps: list[Pass[Letters]] = [Sort(), Double(broken=True)]
    message = fault_of(lambda: run_passes(("b", "a"), steps, TOY), "E112")
    assert message == "after pass double: the program is not sorted: b before a"


def test_a_program_that_is_not_sound() -> None:
    message = fault_of(lambda: run_passes(("A",), [Sort()], TOY), "E112")
    assert message == "after input: the program is not sound: A is a capital"


def test_a_pass_alone_refuses_what_lacks_its_requirements() -> None:
    assert run_alone(("a", "b"), Double(), TOY, "".join) == ("ab", "aabb")
    message = fault_of(lambda: run_alone(("b", "a"), Double(), TOY, "".join), "E113", USAGE)
    assert message.startswith("pass double requires sorted, which this program is not: b before a. Run the")


@pytest.mark.parametrize("step", [*canonical_passes({}), *graph.PASSES], ids=lambda step: step.name)
def test_a_contract_belongs_to_the_class_and_means_something(step: Pass[Any]) -> None:
    assert {"name", "requires", "ensures"}.isdisjoint(f.name for f in dataclasses.fields(step))  # type: ignore[arg-type]
    assert step.name == type(step).name
    meanings = {**VERIFIER.properties, **DATAFLOW_VERIFIER.properties}
    assert (step.requires | step.ensures) <= meanings.keys()


# --- the frontend's predicates: each on what its pass made, and on that with one thing changed ---


def drop_constants_value(model: ir.Model) -> None:
    next(iter(model.graph.initializers.values())).const_value = None


def shape_of(op: str, *shape: int | str) -> Callable[[ir.Model], None]:
    """The result of the first `op` gets another shape."""

    def change(model: ir.Model) -> None:
        next(rw.nodes(model, op)).outputs[0].shape = ir.Shape(shape)

    return change


def rename_last(model: ir.Model) -> None:
    list(model.graph)[-1].name = "other"


def halves_apart(model: ir.Model) -> None:
    next(rw.nodes(model, "RotaryEmbedding")).inputs[1].shape = ir.Shape((1, "n", 3))  # type: ignore[union-attr]


def foreign_table(model: ir.Model) -> None:
    model.graph.inputs[1].name = "angles"


def unmark(model: ir.Model) -> None:
    for value in model.graph.inputs:
        value.metadata_props.pop(rw.WEIGHT, None)


BREAKS: list[tuple[str, str, Callable[[ir.Model], None], str]] = [
    ("fold-constants", "constants-are-initializers", drop_constants_value, "initializer .* has no value"),
    (
        "static-shapes",
        "static-shapes",
        shape_of("Reshape", 1, "n", 3, 2),
        r"reshapes to \(1, -1, 2, 3\), and its",
    ),
    (
        "products-to-linear",
        "linear",
        shape_of("Linear", 1, "n", 5),
        r"maps \(1, 'n', 4\) to \(1, 'n', 5\)",
    ),
    ("products-to-linear", "linear", unmark, "the second is no weight matrix"),
    (
        "gathers-to-embedding",
        "embedding",
        shape_of("Embedding", 1, "n", 9),
        r"takes .* from rows of \(9, 4\)",
    ),
    (
        "rows-to-sequences",
        "sequences",
        shape_of("LayerNormalization", "n", 4),
        r"LayerNormalization -> l maps",
    ),
    (
        "root-mean-square-norms",
        "norms",
        shape_of("RMSNormalization", 1, "n", 3),
        "RMSNormalization -> y maps",
    ),
    ("rotary-embeddings", "rotary", halves_apart, "turns 4 features by tables of"),
    ("rotary-embeddings", "rotary", foreign_table, "depend on more than positions"),
    ("order-and-name", "deterministic", rename_last, "the node of y is named other"),
]


@pytest.mark.parametrize(
    ("name", "property", "change", "complaint"), BREAKS, ids=lambda x: getattr(x, "__name__", x)
)
def test_a_predicate_holds_after_its_pass_and_fails_on_what_is_changed(
    name: str, property: str, change: Callable[[ir.Model], None], complaint: str
) -> None:
    text = CASES[name].graph.replace("float[1,n,2] a", "float[1,n,2] position_ids")
    model = build(text.replace("(a, a)", "(position_ids, position_ids)"), CASES[name].weights)
    after = FRONTEND[name].run(model)
    assert property in FRONTEND[name].ensures
    assert VERIFIER.violations(after, frozenset({property})) == {}
    change(after)
    where = rf"^error\[E112\]: after pass {name}: the program is not {property}: "
    with pytest.raises(CompileError, match=f"{where}.*{complaint}"):
        VERIFIER.require(after, f"pass {name}", frozenset({property}))


def test_the_frontend_sees_weights_that_stay_initializers_and_values_out_of_order() -> None:
    model = raw_parameters()
    assert VERIFIER.violations(model, frozenset({"weights-are-inputs"})) == {
        "weights-are-inputs": [f"{name} is a weight, and an initializer" for name in ("w", "unused", "kept")]
    }
    first = next(iter(model.graph))
    model.graph.remove(first)
    model.graph.append(first)
    assert VERIFIER.violations(model, frozenset()) == {"": ["Add -> c reads a, which nothing made before"]}


def test_a_pass_of_the_frontend_that_does_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: the pipeline's own verifier stops at the pass that broke its word."""
    step = FRONTEND["weights-to-inputs"]
    monkeypatch.setattr(type(step), "run", lambda self, value: value)
    message = fault_of(lambda: run_passes(raw_parameters(), [step], VERIFIER), "E112")
    assert message.startswith(
        "after pass weights-to-inputs: the program is not weights-are-inputs: w is a weight"
    )


def test_the_dataflows_predicates_see_dead_and_repeated_nodes() -> None:
    flow = read_dataflow(decoder(1))
    for step in graph.PASSES:
        flow = step.run(flow)
    both = frozenset({"live", "positions-merged"})
    assert DATAFLOW_VERIFIER.violations(flow, both) == {}
    node = next(n for n in flow.nodes if flow.kinds[n.outputs[0]].value == "position")
    twice: Dataflow = replace(flow, nodes=(*flow.nodes, replace(node, outputs=("again",))))
    assert DATAFLOW_VERIFIER.violations(twice, both) == {
        "live": [f"nothing reads again of {node.op}"],
        "positions-merged": [f"again is computed as {node.outputs[0]} is"],
    }
